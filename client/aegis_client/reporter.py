"""What a long operation tells its user on the way; the command line and others implement it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aegis_protocol.http_api.jobs import Reason


class Reporter(Protocol):
    """Methods never raise, and return at once but for `output` and `console`."""

    def waiting(self, reasons: Sequence[Reason]) -> None:
        """No agent is free yet, and why."""

    def connected(self, agent: str, path: str) -> None:
        """The peer link is up. path: how, such as `host/host`."""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """How far a phase has come; total 0 where that is not known."""

    async def output(self, data: bytes) -> None:
        """The next bytes of the build's terminal; may take its time."""

    async def console(self, data: bytes) -> None:
        """The next bytes of the board's console; may take its time."""

    def gap(self, start: int, stop: int) -> None:
        """Bytes of the output that are no longer kept."""

    def note(self, text: str) -> None:
        """One line worth knowing."""


class Silent:
    """A reporter that says nothing."""

    def waiting(self, reasons: Sequence[Reason]) -> None: ...
    def connected(self, agent: str, path: str) -> None: ...
    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None: ...
    async def output(self, data: bytes) -> None: ...
    async def console(self, data: bytes) -> None: ...
    def gap(self, start: int, stop: int) -> None: ...
    def note(self, text: str) -> None: ...
