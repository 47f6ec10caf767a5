"""
What a key may be limited to: words by kind (`LIMIT_KINDS`).

    targets   chips, such as esp32p4
    labels    agents that have one of these, written site=lab1
    agents    these agents, by id or name
    boards    these boards, by id
    channels  data channels, such as firmware
    jobs      one number: how many jobs it may have running at once

A kind that is absent is not limited. An empty one would be a key that is of no use, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aegis_protocol.channels import ChannelName
from aegis_protocol.failures.http import BadRequest

from aegis_control.identity import LIMIT_KINDS

MAX_WORDS: Final = 64
MAX_JOBS: Final = 10_000

_SHAPES: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "targets": (re.compile(r"[a-z][a-z0-9]{1,19}"), "a chip such as esp32p4"),
    "labels": (re.compile(r"[A-Za-z0-9_.-]{1,40}=.{0,80}"), "a label such as site=lab1"),
    "agents": (re.compile(r"[A-Za-z0-9_.:@-]{1,80}"), "an agent's id or name"),
    "boards": (re.compile(r"[A-Za-z0-9_.:@-]{1,80}"), "a board's id"),
    "channels": (
        re.compile("|".join(re.escape(str(name)) for name in ChannelName)),
        f"one of {', '.join(str(name) for name in ChannelName)}",
    ),
    "jobs": (re.compile(r"[1-9][0-9]{0,4}"), f"a number from 1 to {MAX_JOBS}"),
}


def checked(limits: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return `limits` without repeats. BadRequest for a kind or a word that makes no sense."""
    found: dict[str, tuple[str, ...]] = {}
    for kind, words in limits.items():
        if kind not in LIMIT_KINDS:
            raise _wrong(kind[:40], f"there are {', '.join(LIMIT_KINDS)}")
        shape, meant = _SHAPES[kind]
        for word in words:
            if not shape.fullmatch(word):
                raise _wrong(kind, f"{word[:80]!r} is not {meant}")
        unique = tuple(dict.fromkeys(words))
        if not unique:
            raise _wrong(kind, f"name at least one ({meant}), or leave {kind} out")
        if len(unique) > MAX_WORDS:
            raise _wrong(kind, f"at most {MAX_WORDS}")
        if kind == "jobs" and (len(unique) > 1 or int(unique[0]) > MAX_JOBS):
            raise _wrong(kind, meant)
        found[kind] = unique
    return found


def max_jobs(limits: Mapping[str, Sequence[str]]) -> int | None:
    """How many jobs an identity may have running at once; None: as many as there is room for."""
    words = limits.get("jobs")
    return None if not words else int(words[0])


def from_words(words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read `targets=esp32p4,esp32c6 jobs=2`, as a command line has it. BadRequest as `checked`."""
    limits: dict[str, tuple[str, ...]] = {}
    for word in words:
        kind, sign, value = word.partition("=")
        if not sign:
            raise BadRequest(
                f"--limit {word[:80]}: written as targets=esp32p4,esp32c6", field="limit"
            )
        values = tuple(part.strip() for part in value.split(",") if part.strip())
        limits[kind] = (*limits.get(kind, ()), *values)
    return checked(limits)


def _wrong(kind: str, why: str) -> BadRequest:
    return BadRequest(f"limits.{kind}: {why}", field=f"limits.{kind}")
