"""The addresses in a session description, counted by their kind (RFC 8839 section 5.1)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

_LINE: Final = re.compile(r"^a=candidate:.* typ (host|srflx|prflx|relay)\b", re.MULTILINE)


def kinds(sdp: str) -> dict[str, int]:
    """`{"host": 2, "srflx": 1}`: only the kinds that are there."""
    return dict(sorted(Counter(_LINE.findall(sdp)).items()))


def told(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in found.items()) or "none"
