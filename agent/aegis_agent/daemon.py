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
from contextlib import AsyncExitStack
from typing import Final

import structlog
from aegis_links.ice_guide import IceGuide
from aegis_protocol import __version__
from aegis_protocol.board import Board
from aegis_protocol.control_link import BoardsChanged, Facts, Status, ToControl, Welcome
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import AgentGone
from aegis_protocol.failures.build import SandboxUnavailable
from aegis_protocol.states import JobState

from aegis_agent import state_dir
from aegis_agent.boards import BoardRegistry
from aegis_agent.build import Builder
from aegis_agent.claims import Claims
from aegis_agent.config import AgentConfig
from aegis_agent.control_link import ControlLink
from aegis_agent.cut_uploads import CutUploads
from aegis_agent.disk.trees import remove_tree
from aegis_agent.enroll import enrolled
from aegis_agent.grants import GrantGate
from aegis_agent.http import trust
from aegis_agent.identity import Enrollment, Identity
from aegis_agent.intake import Intake, Why
from aegis_agent.jobs import JobTable
from aegis_agent.ledger import Ledger
from aegis_agent.orders import Orders
from aegis_agent.owned_tasks import OwnedTasks, unless
from aegis_agent.quarantine import Quarantine
from aegis_agent.results import ResultStore
from aegis_agent.revoking import Revoking
from aegis_agent.rounds import Rounds, used_percent
from aegis_agent.sandbox import Sandbox
from aegis_agent.services import Services
from aegis_agent.sessions import SessionTable
from aegis_agent.source import SourceStore
from aegis_agent.status_server import AgentStatus, JobStatus, Listen, status_server
from aegis_agent.system_manager import SystemManager
from aegis_agent.toolchains import Toolchains

log = structlog.get_logger()

_MOST_BOARDS: Final = 256
"""As many as a frame may name."""
_LAST_WORDS_S: Final = 2.0
_ENROLL_AGAIN_S: Final = 5.0


async def start(config: AgentConfig) -> None:
    """
    Detect what this machine has, then run the daemon to its end.

    Raises what makes it impossible: StateUnusable, StateDirBusy, KeyUnreadable, NotEnrolled, what
    enrolling raises, and control's refusal (`link.refused` …).
    """
    state_dir.prepare(config.state_dir)
    # Before anything there is touched: another agent may be at work in it.
    with state_dir.held(config.state_dir):
        identity = Identity.open(config.state_dir)
        toolchains = await Toolchains.detect(platformio_home=config.toolchain_home)
        sandbox = Sandbox(uid_base=config.build_uid_base)
        try:
            await sandbox.check()
        except SandboxUnavailable as exc:
            log.warning("sandbox.unavailable", detail=exc.message, remedy=exc.remedy)
        if not toolchains.found:
            log.warning("toolchains.none", remedy="Run `aegis-agent toolchains install`.")
        with Ledger(config.state_dir / "ledger.sqlite") as ledger:
            with state_dir.usable(config.state_dir):
                daemon = Daemon(config, toolchains, sandbox, identity, ledger)
            await daemon.run()


class Daemon:
    """Everything that runs while `aegis-agent run` does; the state directory is held meanwhile."""

    def __init__(
        self,
        config: AgentConfig,
        toolchains: Toolchains,
        sandbox: Sandbox,
        identity: Identity,
        ledger: Ledger,
    ) -> None:
        state, quota = config.state_dir, config.disk_quota_mb * 1024 * 1024
        self._config = config
        self._identity = identity
        self._toolchains = toolchains
        self._ledger = ledger
        self._stopping = asyncio.Event()
        self._started_at = time.time()
        self._signals = 0
        self._manager = SystemManager()
        self._link: ControlLink | None = None
        self._claims = Claims(identity, self._sent)
        self._owned = OwnedTasks()
        self.intake = Intake(self._intake_changed)
        self.quarantine = Quarantine(state / "quarantine.json", self.intake)
        self.boards = BoardRegistry(
            config.boards,
            discover=config.discover_boards,
            state_dir=state,
            on_change=self._boards_changed,
            spool_bytes=config.spool_bytes,
        )
        self.jobs = JobTable(
            slots=config.slots,
            folder=state / "jobs",
            boards=self.boards,
            intake=self.intake,
            linger_s=config.linger_secs,
            report=self._tell_control,
        )
        sources = SourceStore(state / "source", quota_bytes=quota // 2)
        results = ResultStore(state / "results", quota_bytes=quota // 2)
        incoming = state / "incoming"
        if incoming.exists():
            remove_tree(incoming)
        incoming.mkdir(mode=0o700)
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
            boards=self.boards,
            quarantine=self.quarantine,
            guide=IceGuide(trust(config.ca_file), relay_only=config.relay_only),
            incoming=incoming,
            cut_uploads=CutUploads(),
            background=self._owned,
            tell_control=self._tell_control,
        )

    async def run(self) -> None:
        """Run until signals end it; raises what `start` does."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._signaled)
                stack.callback(loop.remove_signal_handler, number)
            enrollment = await unless(self._stopping, self._enrolled())
            if enrollment is not None:
                await stack.enter_async_context(self._services.guide.running())
                await stack.enter_async_context(self._owned)
                await self._live(enrollment, stack)
        log.info("agent.stopped")

    def stop(self) -> None:
        """Cancel what runs and go, as after a second signal."""
        self._stopping.set()

    async def _enrolled(self) -> Enrollment:
        """The enrolment; where the secret enrols us and control is away, it is waited for."""
        while True:
            try:
                return await enrolled(self._config, self._identity)
            except AegisError as exc:
                if not exc.retryable:
                    raise
                log.warning("agent.not_enrolled_yet", code=exc.code, detail=exc.message)
                self._manager.ready()  # it does what it can: a restart would not do better
                self._manager.status(f"not enrolled yet: {exc.message}")
                self._manager.alive()
            await asyncio.sleep(_ENROLL_AGAIN_S)

    async def _live(self, enrollment: Enrollment, stack: AsyncExitStack) -> None:
        link = ControlLink(
            self._config,
            self._identity,
            enrollment,
            describe=lambda: self._describe() | {"revoked_through": revoking.through},
            on_frame=lambda frame: orders.obey(frame),
            on_up=lambda welcome: self._link_is_up(orders, welcome),
        )
        self._link = link
        gate = GrantGate(
            self._ledger,
            agent_id=self._identity.agent_id,
            issuer_keys=lambda: link.enrollment.keys(),
            skew_s=lambda: link.skew_s,
        )
        sessions = SessionTable(gate, self.jobs, self._services, self._owned)
        revoking = Revoking(self._ledger, sessions, tell_control=self._tell_control)
        orders = Orders(
            self.jobs,
            sessions,
            revoking,
            self.intake,
            self.quarantine,
            self._services.guide,
            self._owned,
        )
        rounds = Rounds(
            self._config,
            link=link,
            jobs=self.jobs,
            sessions=sessions,
            intake=self.intake,
            ledger=self._ledger,
            manager=self._manager,
        )
        working = [
            self._owned.start(self.boards.run(), name="boards"),
            self._owned.start(link.run(), name="control-link"),
            self._owned.start(rounds.run(), name="rounds"),
            self._owned.start(self._stopping.wait(), name="stopping"),
        ]
        if self._config.status_listen is not None:
            served = status_server(
                Listen.read(self._config.status_listen), lambda: self._status(link, sessions)
            )
            await stack.enter_async_context(served)
        self._manager.ready()
        log.info("agent.started", agent_id=self._identity.agent_id, version=__version__)
        try:
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._manager.stopping()
            self.intake.close(Why.STOPPING, "the agent is being stopped")
            await self.jobs.close(JobState.CANCELED, AgentGone("the agent is being stopped"))
            await link.flush(deadline_s=_LAST_WORDS_S)

    def _signaled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("agent.draining", jobs=len(self.jobs.jobs))
            self.intake.close(Why.STOPPING, "draining")
            if self.jobs.idle():
                self._stopping.set()
        elif self._signals == 2:
            log.info("agent.canceling")
            self.stop()
        else:
            os._exit(1)

    def _describe(self) -> dict[str, object]:
        return {
            "version": __version__,
            "targets": self._toolchains.targets,
            "toolchains": self._toolchains.found,
            "boards": self.boards.boards()[:_MOST_BOARDS],
            "jobs": self.jobs.held(),
            "warm_projects": self.jobs.warm_projects,
            "paused": self.intake.reason,
            "quarantined": self.quarantine.reason,
            "resets": self.quarantine.resets,
        }

    async def _status(self, link: ControlLink, sessions: SessionTable) -> AgentStatus:
        """What the agent says of itself on its own machine."""
        used = await asyncio.to_thread(used_percent, self._config.state_dir)
        return AgentStatus(
            agent_id=self._identity.agent_id,
            name=self._config.name,
            version=__version__,
            started_at=self._started_at,
            control=self._config.control_base_url,
            linked=link.up,
            trouble=None if link.up or link.trouble is None else link.trouble.message,
            closed=self.intake.reason,
            draining=self.intake.draining,
            quarantined=self.quarantine.reason is not None,
            slots=self._config.slots,
            sessions=len(sessions),
            jobs=tuple(
                JobStatus(
                    job_id=job.job_id,
                    identity=job.identity,
                    state=job.state,
                    ends_at=job.ends_at,
                    peers=len(job.peers),
                    running=tuple(task.kind for task in job.tasks.values() if not task.over),
                    boards=tuple(job.boards),
                )
                for job in self.jobs.jobs
            ),
            jobs_ended=dict(self.jobs.ended),
            boards=self.boards.boards(),
            toolchains=self._toolchains.found,
            disk_used_percent=used,
        )

    def _intake_changed(self) -> None:
        status = Status(
            paused=self.intake.reason,
            draining=self.intake.draining,
            quarantined=self.quarantine.reason,
            resets=self.quarantine.resets,
        )
        self._tell_control(status)

    def _boards_changed(self, boards: tuple[Board, ...]) -> None:
        self._tell_control(BoardsChanged(boards=boards[:_MOST_BOARDS]))

    def _tell_control(self, frame: ToControl) -> bool:
        if isinstance(frame, Facts):
            return self._claims.tell(frame)
        return self._sent(frame)

    def _sent(self, frame: ToControl) -> bool:
        return self._link is not None and self._link.send(frame)

    async def _link_is_up(self, orders: Orders, welcome: Welcome) -> None:
        await orders.begin(welcome)
        self._claims.send_kept()
