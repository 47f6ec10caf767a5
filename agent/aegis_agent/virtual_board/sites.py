# SPDX-License-Identifier: GPL-2.0-or-later
"""
Where an image has instructions that the board executes instead of Unicorn: see `csr`, `atomics`.

They are found when the image is loaded. Code that firmware writes into RAM later is not searched:
there a cycle counter shows the host's, and an atomic instruction may, rarely, be done twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from aegis_agent.virtual_board import atomics, csr
from aegis_agent.virtual_board.image import Segment

# Each is looked through for every instruction that is translated: a bound for images full of them.
MOST_SITES: Final = 2048
_MOST_CANDIDATES: Final = 131_072

# Little-endian, overlapping: an access to mtvec, to a cycle counter or to the chips' own one, or
# an atomic instruction on a word.
_CANDIDATE: Final = re.compile(
    rb"(?=([\x73\xf3][\s\S](?:[\x50-\x5f]\x30|[\x00-\x0f][\xb0\xb8\xc0\xc8]|[\x20-\x2f]\x7e)"
    rb"|[\x2f\xaf][\x20-\x2f\xa0-\xaf][\s\S]{2}))"
)


def is_ours(word: int) -> bool:
    """Return whether the board executes the instruction `word`."""
    access = csr.decode(word)
    if access is not None:
        return access.csr in csr.OURS
    return atomics.decode(word) is not None


def sites(loaded: Sequence[Segment]) -> Iterator[int]:
    """
    Return the addresses that look like such an instruction, at most `MOST_SITES`.

    Data can look like one too: nothing comes to execute it.
    """
    candidates = (
        (segment.load_address + match.start(), int.from_bytes(match[1], "little"))
        for segment in loaded
        for match in _CANDIDATE.finditer(segment.data)
    )
    found = (
        address
        for address, word in islice(candidates, _MOST_CANDIDATES)
        if address % 2 == 0 and is_ours(word)
    )
    return islice(found, MOST_SITES)
