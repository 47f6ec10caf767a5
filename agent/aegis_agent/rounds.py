"""The slow loop: it feeds the watchdog, watches disk and link, and ends a stopping agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone

from aegis_agent.config import AgentConfig
from aegis_agent.control_link import ControlLink
from aegis_agent.intake import Intake, Why
from aegis_agent.jobs import JobTable
from aegis_agent.ledger import Ledger
from aegis_agent.sessions import SessionTable
from aegis_agent.system_manager import SystemManager

log = structlog.get_logger()

_ROUND_S: Final = 2.0
_FORGET_EVERY_S: Final = 60.0
_DISK_FULL_PERCENT: Final = 95
_DISK_FREE_PERCENT: Final = 93
"""Below it jobs are taken again: not at the same mark, or each file would open and close us."""


class Rounds:
    def __init__(
        self,
        config: AgentConfig,
        *,
        link: ControlLink,
        jobs: JobTable,
        sessions: SessionTable,
        intake: Intake,
        ledger: Ledger,
        manager: SystemManager,
    ) -> None:
        self._config = config
        self._link = link
        self._jobs = jobs
        self._sessions = sessions
        self._intake = intake
        self._ledger = ledger
        self._manager = manager
        self._forgot_at = 0.0

    async def run(self) -> None:
        """Look every two seconds; return once the agent is to stop and has no job left."""
        while not (self._intake.stopping and self._jobs.idle()):
            await self.look()
            self._jobs.one_ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._jobs.one_ended.wait()

    async def look(self) -> None:
        """One round."""
        self._manager.alive()
        self._manager.status(self._status())
        await self._watch_disk()
        await self._forget()
        self._watch_link()

    def _status(self) -> str:
        where = "linked to control" if self._link.up else "no link to control"
        if self._link.trouble is not None:
            where += f": {self._link.trouble.message}"
        closed = f"; {self._intake.reason}" if self._intake.reason else ""
        return f"{where}; {len(self._jobs.jobs)} jobs, {len(self._sessions)} sessions{closed}"

    async def _watch_disk(self) -> None:
        used = await asyncio.to_thread(used_percent, self._config.state_dir)
        if used >= _DISK_FULL_PERCENT:
            if not self._intake.closed_by(Why.DISK):
                self._intake.close(Why.DISK, f"disk {used} %")
        elif used < _DISK_FREE_PERCENT:
            self._intake.open(Why.DISK)

    async def _forget(self) -> None:
        if time.monotonic() - self._forgot_at < _FORGET_EVERY_S:
            return
        self._forgot_at = time.monotonic()
        try:
            await asyncio.to_thread(self._ledger.forget, now_s=time.time())
        except AegisError as exc:
            log.warning("ledger.not_tidied", detail=exc.message)

    def _watch_link(self) -> None:
        offline_s = time.monotonic() - self._link.last_contact
        if self._link.up or offline_s <= self._config.max_offline_secs or not len(self._sessions):
            return
        log.warning("sessions.closed_offline", offline_s=round(offline_s))
        self._sessions.close_all(
            AgentGone("the agent has had no contact with control for too long")
        )


def used_percent(path: Path) -> int:
    """How full the file system of `path` is, for who is not root."""
    usage = os.statvfs(path)
    return 100 - 100 * usage.f_bavail // max(1, usage.f_blocks)
