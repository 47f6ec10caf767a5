"""
What each command needs of a grant: channels and actions, and nothing more.

A key whose role lacks one of them is refused by control before there is a job; an `optional` one
is then done without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aegis_protocol.actions import Action
from aegis_protocol.channels import ChannelName


@dataclass(frozen=True)
class Needs:
    """optional: those of `actions` without which the command still makes sense."""

    channels: frozenset[ChannelName]
    actions: frozenset[Action] = frozenset()
    optional: frozenset[Action] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        """What both need together; what one of them can't do without is not optional."""
        return Needs(
            self.channels | other.channels,
            self.actions | other.actions,
            (self.optional | other.optional)
            - (self.actions - self.optional)
            - (other.actions - other.optional),
        )

    def without_optional(self) -> Needs:
        return Needs(self.channels, self.actions - self.optional)


LINK: Final = Needs(frozenset({ChannelName.ESPCTL}))
"""A link and a greeting: what may be asked without any action."""

UPLOAD: Final = LINK | Needs(frozenset({ChannelName.SOURCE}), frozenset({Action.SOURCE_WRITE}))

START_BUILD: Final = UPLOAD | Needs(frozenset(), frozenset({Action.BUILD_RUN}))
"""Start a build and leave it to the agent."""

DOWNLOAD: Final = LINK | Needs(
    frozenset({ChannelName.FIRMWARE}), frozenset({Action.ARTIFACT_READ, Action.BUILD_READ})
)

ATTACH: Final = DOWNLOAD | Needs(frozenset({ChannelName.PTY}), frozenset({Action.BUILD_RUN}))
"""`build.run`: the terminal's size is that of whoever watches."""

BUILD: Final = START_BUILD | ATTACH

FLASH: Final = LINK | Needs(frozenset(), frozenset({Action.BOARD_READ, Action.BOARD_FLASH}))

WATCH: Final = LINK | Needs(
    frozenset({ChannelName.SERIAL}), frozenset({Action.BOARD_READ, Action.CONSOLE_READ})
)

TYPE: Final = Needs(
    frozenset(), frozenset({Action.CONSOLE_WRITE}), optional=frozenset({Action.CONSOLE_WRITE})
)
"""Type at the board that is watched, if the key may."""

RESET: Final = Needs(frozenset(), frozenset({Action.BOARD_FLASH}))

RUN: Final = BUILD | FLASH | WATCH
