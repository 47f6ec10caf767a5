"""What systemd is told, where it runs us: ready, alive, stopping, and a line for people."""

from __future__ import annotations

import os
from typing import Final

import sdnotify

_LONGEST_CHARS: Final = 500


class SystemManager:
    """Every method does nothing where no NOTIFY_SOCKET is set."""

    def __init__(self) -> None:
        # Without a socket to speak to it would leave one open.
        speaks = bool(os.environ.get("NOTIFY_SOCKET"))
        self._notifier = sdnotify.SystemdNotifier() if speaks else None

    def ready(self) -> None:
        self._notify("READY=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._notify("WATCHDOG=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def status(self, line: str) -> None:
        """Show `line`; what control said may stand in it, so it is made one line for sure."""
        one_line = " ".join(line.split())
        self._notify(f"STATUS={one_line[:_LONGEST_CHARS]}")

    def _notify(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)
