"""
The agent's life: wire the parts, keep the link up, and go when told to.

First SIGTERM (or SIGINT) drains: no new jobs, running ones finish. A second cancels what runs.
A third exits at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final

import sdnotify
import structlog
from aegis_protocol import __version__
from aegis_protocol.board import Board
from aegis_protocol.control_link import (
    BoardsChanged,
    Drain,
    JobCancel,
    JobOffer,
    JobRevoke,
    LeaseRevoke,
    Pause,
    Resume,
    SignalCandidate,
    Status,
    ToAgent,
    ToControl,
    Welcome,
)
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.build import SandboxUnavailable
from aegis_protocol.failures.http import JobCanceled
from aegis_protocol.states import JobState

from aegis_agent.boards import BoardRegistry
from aegis_agent.build import Builder
from aegis_agent.config import AgentConfig
from aegis_agent.control_link import ControlLink
from aegis_agent.enroll import enrolled
from aegis_agent.grants import GrantGate
from aegis_agent.identity import Identity, state_lock
from aegis_agent.jobs import JobTable
from aegis_agent.ledger import Ledger
from aegis_agent.owned_tasks import OwnedTasks
from aegis_agent.results import ResultStore
from aegis_agent.sandbox import Sandbox
from aegis_agent.services import Services
from aegis_agent.sessions import SessionTable
from aegis_agent.source import SourceStore
from aegis_agent.toolchains import Toolchains

log = structlog.get_logger()

_ROUND_S: Final = 2.0
_DISK_FULL_PERCENT: Final = 95


class Daemon:
    """Everything that runs while `aegis-agent run` does."""

    def __init__(
        self, config: AgentConfig, toolchains: Toolchains, sandbox: Sandbox, identity: Identity
    ) -> None:
        state, quota = config.state_dir, config.disk_quota_mb * 1024 * 1024
        self._config = config
        self._identity = identity
        self._toolchains = toolchains
        self._stopping = asyncio.Event()
        self._signals = 0
        self._notify = sdnotify.SystemdNotifier()
        self._draining = False
        self._link: ControlLink | None = None
        self._owned = OwnedTasks()
        self._ledger = Ledger(state / "ledger.sqlite")
        self._boards = BoardRegistry(
            config.boards,
            discover=config.discover_boards,
            state_dir=state,
            on_change=self._boards_changed,
        )
        self._jobs = JobTable(
            slots=config.slots,
            folder=state / "jobs",
            boards=self._boards,
            linger_s=config.linger_secs,
            report=self._tell_control,
        )
        sources = SourceStore(state / "source", quota_bytes=quota // 2)
        results = ResultStore(state / "results", quota_bytes=quota // 2)
        incoming = state / "incoming"
        _emptied(incoming)
        builder = Builder(
            sources=sources,
            results=results,
            toolchains=toolchains,
            sandbox=sandbox,
            sign=identity.sign,
            silence_s=config.silence_secs,
        )
        self._services = Services(
            config=config,
            identity=identity,
            sources=sources,
            results=results,
            builder=builder,
            boards=self._boards,
            incoming=incoming,
            tell_control=self._tell_control,
        )

    async def run(self) -> None:
        """Run until signals end it; raises what makes it impossible (`link.refused` …)."""
        lock = state_lock(self._config.state_dir)
        loop = asyncio.get_running_loop()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._signaled)
            enrollment = await enrolled(self._config, self._identity)
            self._link = ControlLink(
                self._config,
                self._identity,
                enrollment,
                describe=self._describe,
                on_frame=self._on_frame,
                on_up=self._on_up,
            )
            await self._live(self._link)
        finally:
            self._ledger.__exit__()
            os.close(lock)

    async def _live(self, link: ControlLink) -> None:
        gate = GrantGate(
            self._ledger,
            agent_id=self._identity.agent_id,
            issuer_keys=lambda: link.enrollment.keys(),
            skew_s=lambda: link.skew_s,
        )
        async with self._owned:
            self._sessions = SessionTable(gate, self._jobs, self._services, self._owned)
            self._owned.start(self._boards.run(), name="boards")
            linking = self._owned.start(link.run(), name="control-link")
            rounds = self._owned.start(self._rounds(link), name="rounds")
            stopping = self._owned.start(self._stopping.wait(), name="stopping")
            self._notify.notify("READY=1")
            log.info("agent.started", agent_id=self._identity.agent_id, version=__version__)
            try:
                done, _ = await asyncio.wait(
                    [linking, rounds, stopping], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {stopping}:
                    task.result()
            finally:
                self._notify.notify("STOPPING=1")
                await self._jobs.close(JobState.CANCELED, AgentGone("the agent is being stopped"))
        log.info("agent.stopped")

    async def _rounds(self, link: ControlLink) -> None:
        """The slow loop: watchdog, disk, offline limit, drain's end."""
        while not (self._draining and self._jobs.idle()):
            self._notify.notify("WATCHDOG=1")
            self._notify.notify(f"STATUS={self._status(link)}")
            self._ledger.forget(now_s=time.time())
            self._watch_disk(link)
            offline_s = time.monotonic() - link.last_contact
            if not link.up and offline_s > self._config.max_offline_secs and len(self._sessions):
                log.warning("sessions.closed_offline", offline_s=round(offline_s))
                self._sessions.close_all(
                    AgentGone("the agent has had no contact with control for too long")
                )
            await asyncio.sleep(_ROUND_S)
        self._stopping.set()

    def _status(self, link: ControlLink) -> str:
        where = "linked to control" if link.up else "no link to control"
        if link.trouble is not None:
            where += f": {link.trouble.message}"
        closed = f"; {self._jobs.closed_reason}" if self._jobs.closed_reason else ""
        return f"{where}; {len(self._jobs.jobs)} jobs, {len(self._sessions)} sessions{closed}"

    def _watch_disk(self, link: ControlLink) -> None:
        usage = os.statvfs(self._config.state_dir)
        used = 100 - 100 * usage.f_bavail // max(1, usage.f_blocks)
        reason = f"disk {used} %" if used >= _DISK_FULL_PERCENT else None
        was_disk = (self._jobs.closed_reason or "").startswith("disk ")
        if reason and self._jobs.closed_reason is None:
            self._close_jobs(reason)
        elif reason is None and was_disk:
            self._close_jobs(None)

    def _close_jobs(self, reason: str | None) -> None:
        self._jobs.closed_reason = reason
        log.info("agent.paused" if reason else "agent.resumed", reason=reason)
        self._tell_control(Status(paused=reason, draining=self._draining))

    def _signaled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("agent.draining", jobs=len(self._jobs.jobs))
            self._drain()
        elif self._signals == 2:
            log.info("agent.canceling")
            self._stopping.set()
        else:
            os._exit(1)

    def _drain(self) -> None:
        self._draining = True
        self._close_jobs("draining")
        if self._jobs.idle():
            self._stopping.set()

    def _describe(self) -> dict[str, object]:
        return {
            "version": __version__,
            "targets": self._toolchains.targets,
            "toolchains": self._toolchains.found,
            "boards": self._boards.boards(),
            "jobs": self._jobs.held(),
            "warm_projects": self._jobs.warm_projects,
            "paused": self._jobs.closed_reason,
        }

    async def _on_up(self, welcome: Welcome) -> None:
        for job_id in welcome.over_jobs:
            job = self._jobs.get(job_id)
            if job is not None:
                job.end(JobState.CANCELED, JobCanceled("control says that this job is over"))
        self._jobs.report_again()

    async def _on_frame(self, frame: ToAgent) -> None:
        match frame:
            case JobOffer():
                self._sessions.offer(frame)
            case SignalCandidate():
                self._sessions.candidate(frame)
            case JobCancel():
                job = self._jobs.get(frame.job_id)
                if job is not None:
                    job.end(JobState.CANCELED, JobCanceled(frame.reason or "the job was canceled"))
            case JobRevoke():
                self._sessions.revoke(frame)
            case LeaseRevoke():
                await self._lease_revoked(frame)
            case Pause():
                self._close_jobs(frame.reason or "paused by an operator")
            case Resume():
                self._close_jobs(None)
            case Drain():
                self._drain()
            case _:
                log.info("link.frame_unexpected", frame=frame.type)

    async def _lease_revoked(self, frame: LeaseRevoke) -> None:
        for job in self._jobs.jobs:
            if job.execution.boards.get(frame.board_id, frame.fence + 1) <= frame.fence:
                flashing = [
                    task
                    for task in job.tasks.values()
                    if task.board_id == frame.board_id and task.kind == "flash" and not task.over
                ]
                if flashing and not frame.force:
                    log.info("lease.revoked_after_flash", board_id=frame.board_id)
                    continue
                job.end(JobState.CANCELED, JobCanceled("the board's lease was taken back"))

    def _boards_changed(self, boards: tuple[Board, ...]) -> None:
        self._tell_control(BoardsChanged(boards=boards))

    def _tell_control(self, frame: ToControl) -> bool:
        return self._link is not None and self._link.send(frame)


def _emptied(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for leftover in folder.iterdir():
        leftover.unlink()


async def start(config: AgentConfig) -> None:
    """Detect what this machine has, then run the daemon to its end."""
    config.state_dir.mkdir(parents=True, exist_ok=True)
    identity = Identity.open(config.state_dir)
    toolchains = await Toolchains.detect(platformio_home=config.toolchain_home)
    sandbox = Sandbox(uid_base=config.build_uid_base)
    try:
        await sandbox.check()
    except SandboxUnavailable as exc:
        log.warning("sandbox.unavailable", detail=exc.message, remedy=exc.remedy)
    if not toolchains.found:
        log.warning("toolchains.none", remedy="Run `aegis-agent toolchains install`.")
    await Daemon(config, toolchains, sandbox, identity).run()
