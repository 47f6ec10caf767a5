"""A board as agents report it and clients see it."""

from __future__ import annotations

from pydantic import Field

from aegis_protocol.model import Id, Labels, TargetName, Wire
from aegis_protocol.states import BoardState


class Board(Wire):
    """
    id     stable: from the MAC once that was read, until then from vid, pid, serial and location
    chip   as esptool names it in lower case without dashes, where it is known
    """

    id: Id
    chip: TargetName | None = None
    labels: Labels = Field(default_factory=dict)
    state: BoardState = BoardState.FREE
    description: str = Field(default="", max_length=200)
    mac: str | None = Field(default=None, pattern=r"^([0-9a-f]{2}:){5,7}[0-9a-f]{2}$")


class BoardWish(Wire):
    """A board that a job asks for: by id, or by chip and labels."""

    id: Id | None = None
    chip: TargetName | None = None
    labels: Labels = Field(default_factory=dict)
