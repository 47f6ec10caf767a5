"""
The requests of a peer on `espctl`: each is checked against the grant, then answered.

A method that isn't in the protocol's table is denied, one whose action the grant lacks too, and
nothing but `session.hello` is answered before it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aegis_links.transfers import TransferPort
from aegis_protocol import PROTOCOL_VERSION, __version__
from aegis_protocol.actions import METHOD_ACTION, allowed
from aegis_protocol.channels import MAX_MESSAGE_BYTES
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.agent import SessionInvalid, VersionMismatch
from aegis_protocol.failures.board import BoardNotGranted
from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.grant import ActionNotGranted, MethodUnknown
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.model import Wire
from aegis_protocol.rpc import (
    METHODS,
    ArtifactFetchParams,
    ArtifactFetchResult,
    ArtifactsResult,
    BoardResetParams,
    BoardsResult,
    BuildStartParams,
    Empty,
    FlashStartParams,
    JobExtendParams,
    JobExtendResult,
    LinkMeasureParams,
    LinkMeasureResult,
    LogsTailParams,
    MonitorOpenParams,
    MonitorOpenResult,
    SessionHelloParams,
    SessionHelloResult,
    SessionLimits,
    SourcePlanParams,
    SourcePushParams,
    TaskInfo,
    TaskParams,
    TransferRef,
)
from aegis_protocol.source import MAX_FILE_BYTES, MAX_SOURCE_BYTES

from aegis_agent import boards_work, build_work, log_tail
from aegis_agent.jobs import running
from aegis_agent.tasks import MESSAGE_ROOM_BYTES, wire_bytes

if TYPE_CHECKING:
    from aegis_agent.session import PeerSession
    from aegis_agent.tasks import Task

_TASKS_TOLD: Final = 20


class Methods:
    """The handler of one session's requests."""

    def __init__(self, session: PeerSession) -> None:
        self._session = session
        self._greeted = False
        self._plans = build_work.Plans()

    async def __call__(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; the errors are those of the protocol."""
        if method not in METHODS:
            raise MethodUnknown(f"there is no method {method[:80]}")
        if not allowed(method, self._session.actions):
            needed = METHOD_ACTION[method]
            self._session.log.warning("action.refused", method=method, action=str(needed))
            raise ActionNotGranted(
                f"{method} needs the action {needed}, which the grant does not hold",
                action=str(needed),
            )
        if not self._greeted and method != "session.hello":
            raise SessionInvalid(f"{method} came before session.hello")
        wish = METHODS[method][0].model_validate(params)
        try:
            result = await self._answer(method, wish)
        except AegisError as exc:
            self._session.log.info("request.refused", method=method, code=exc.code)
            raise
        except OSError as exc:
            self._session.log.warning("request.failed", method=method, detail=str(exc))
            raise DiskFull(f"the agent's disk refused it: {exc.strerror}") from exc
        return result.model_dump(mode="json")

    async def _answer(self, method: str, wish: Wire) -> Wire:
        session, job = self._session, self._session.job
        board_id = getattr(wish, "board_id", None)
        if board_id is not None and board_id not in session.claims.execution.boards:
            raise BoardNotGranted(f"the grant holds no board {board_id}", board=board_id)
        match method, wish:
            case "session.hello", SessionHelloParams():
                return self._hello(wish)
            case "source.plan", SourcePlanParams():
                return await build_work.plan(session, self._plans, wish)
            case "source.push", SourcePushParams():
                return await build_work.push(session, self._plans, wish)
            case "build.start", BuildStartParams():
                return await build_work.start(session, self._plans, wish)
            case "build.status", TaskParams():
                return job.task(wish.task_id).info()
            case "build.cancel" | "flash.cancel", TaskParams():
                return await self._cancel(wish, kind=method.partition(".")[0])
            case "monitor.close", TaskParams():
                return await self._close_monitor(wish)
            case "artifacts.list", TaskParams():
                found = session.services.results.artifacts(job.identity, wish.task_id)
                return ArtifactsResult(task_id=wish.task_id, artifacts=found)
            case "artifact.fetch", ArtifactFetchParams():
                return await self._fetch(wish)
            case "logs.tail", LogsTailParams():
                return await log_tail.tail(session, wish)
            case "boards.list", Empty():
                granted = session.claims.execution.boards
                every = session.services.boards.boards()
                return BoardsResult(boards=tuple(b for b in every if b.id in granted))
            case "board.reset", BoardResetParams():
                await session.services.boards.device(wish.board_id, job.job_id).reset()
                return Empty()
            case "flash.start", FlashStartParams():
                return await boards_work.start_flash(session, wish)
            case "monitor.open", MonitorOpenParams():
                return await self._open_monitor(wish)
            case "link.measure", LinkMeasureParams():
                return LinkMeasureResult(data="0" * wish.reply_bytes)
            case "job.extend", JobExtendParams():
                allowed_s = session.services.config.max_job_secs
                job.extend(wish.timeout_secs, max_job_secs=allowed_s)
                session.services.tell_control(running(job))
                return JobExtendResult(ends_at=job.ends_at)
            case "job.end", Empty():
                job.end(job.outcome())
                return Empty()
            case _:
                raise MethodUnknown(f"there is no method {method[:80]}")

    def _hello(self, wish: SessionHelloParams) -> SessionHelloResult:
        if wish.protocol != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"the client speaks protocol {wish.protocol}, this agent {PROTOCOL_VERSION}"
            )
        self._greeted = True
        session, config = self._session, self._session.services.config
        self._session.log.info("session.greeted", client=wish.client)
        return SessionHelloResult(
            protocol=PROTOCOL_VERSION,
            agent_id=session.services.identity.agent_id,
            agent_name=config.name,
            version=__version__,
            job_id=session.job.job_id,
            ends_at=session.job.ends_at,
            channels=tuple(sorted(session.granted)),
            actions=tuple(sorted(session.actions)),
            compressions=("none", "deflate"),
            limits=SessionLimits(
                send_queue_bytes=config.send_queue_bytes,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_file_bytes=MAX_FILE_BYTES,
                max_source_bytes=MAX_SOURCE_BYTES,
            ),
            tasks=self._newest_tasks(),
        )

    def _newest_tasks(self) -> tuple[TaskInfo, ...]:
        """Those that the peer may know of and that fit a message; results go by build.status."""
        told: list[TaskInfo] = []
        room_bytes = MESSAGE_ROOM_BYTES
        for task in reversed(self._session.job.tasks.values()):
            summary = task.summary()
            room_bytes -= wire_bytes(summary)
            if room_bytes < 0 or len(told) == _TASKS_TOLD:
                break
            if self._session.may_see(task):
                told.append(summary)
        return tuple(reversed(told))

    async def _cancel(self, wish: TaskParams, *, kind: str) -> TaskInfo:
        task = self._own(wish, kind)
        if not task.over:
            await self._session.job.cancel(task)
        return task.info()

    async def _open_monitor(self, wish: MonitorOpenParams) -> MonitorOpenResult:
        opened = await boards_work.open_monitor(self._session, wish)
        self._session.job.task(opened.task_id).readers.add(self._session)
        return opened

    async def _close_monitor(self, wish: TaskParams) -> TaskInfo:
        """Close the console with its last reader; who else has it open reads on."""
        task = self._own(wish, "monitor")
        task.readers.discard(self._session)
        if task.writer is self._session:
            task.writer = None
        if task.readers or task.over:
            return task.info()
        await self._session.job.cancel(task)
        return task.info()

    def _own(self, wish: TaskParams, kind: str) -> Task:
        task = self._session.job.task(wish.task_id)
        if task.kind != kind:
            raise TaskNotFound(f"{wish.task_id} is no {kind}")
        return task

    async def _fetch(self, wish: ArtifactFetchParams) -> ArtifactFetchResult:
        session = self._session
        path, artifact = session.services.results.path(
            session.job.identity, wish.task_id, wish.name
        )
        port = session.firmware
        if port is None:
            raise ActionNotGranted("artifacts travel on `firmware`, which the grant lacks")
        sending = session.owned.start(
            self._send(wish, path, artifact.sha256, port), name=f"send-{wish.transfer}"
        )
        # What can't even begin (a number in use, too many at once) is this request's to tell.
        await asyncio.sleep(0)
        if sending.done() and not sending.cancelled():
            sending.result()
        return ArtifactFetchResult(
            transfer=TransferRef(
                transfer=wish.transfer, size_bytes=artifact.size_bytes, sha256=artifact.sha256
            )
        )

    async def _send(
        self, wish: ArtifactFetchParams, path: Path, sha256: str, port: TransferPort
    ) -> None:
        try:
            sent = await port.send_file(wish.transfer, path, from_offset=wish.offset, sha256=sha256)
        except AegisError as exc:
            self._session.log.warning("artifact.not_sent", name=wish.name, code=exc.code)
            raise
        except OSError as exc:  # evicted in this moment
            self._session.log.warning("artifact.not_read", name=wish.name, detail=str(exc))
        else:
            self._session.log.info("artifact.sent", name=wish.name, size_bytes=sent.size_bytes)
