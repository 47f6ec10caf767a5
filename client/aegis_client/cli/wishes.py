"""Words of the command line as the models that control takes; what makes no sense is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aegis_protocol.board import BoardWish
from aegis_protocol.http_api.toolchains import ToolchainWish

from aegis_client.failures import UsageInvalid

_LABEL: Final = re.compile(r"([A-Za-z0-9_.-]{1,40})=(.{0,80})")
_ID: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,80}")
_TARGET: Final = re.compile(r"[a-z][a-z0-9]{1,19}")


def chip(name: str) -> str:
    """A chip as everything spells it: ESP32-P4 becomes esp32p4."""
    plain = name.lower().replace("-", "").replace("_", "")
    if not _TARGET.fullmatch(plain):
        raise UsageInvalid(f"{name!r} is not the name of a chip such as esp32p4")
    return plain


def labels(given: Sequence[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        match = _LABEL.fullmatch(text)
        if match is None:
            raise UsageInvalid(f"--label is written as site=lab1, not {text!r}")
        found[match[1]] = match[2]
    return found


def identifier(name: str | None, option: str) -> str | None:
    if name is not None and not _ID.fullmatch(name):
        raise UsageInvalid(f"{option}: {name!r} can't be an id or a name")
    return name


def board_wishes(ids: Sequence[str] | None) -> tuple[BoardWish, ...]:
    return tuple(BoardWish(id=identifier(one, "--board")) for one in ids or ())


def board_wish(
    board: str | None, of_chip: str | None, given_labels: Sequence[str] | None = None
) -> BoardWish:
    """A board by id, or any of a chip and labels."""
    return BoardWish(
        id=identifier(board, "--board"),
        chip=chip(of_chip) if of_chip else None,
        labels={} if board else labels(given_labels),
    )


def toolchain_wish(kind: str | None) -> ToolchainWish | None:
    """`platformio`, or with a version: `platformio>=6.1`."""
    if kind is None:
        return None
    match = re.fullmatch(r"([a-z][a-z0-9-]*)(.{0,80})", kind)
    if match is None:
        raise UsageInvalid(f"--toolchain: {kind!r} is no toolchain such as platformio")
    return ToolchainWish(kind=match[1], version=match[2])
