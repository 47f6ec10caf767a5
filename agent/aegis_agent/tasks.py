"""One build, flash or monitor inside a job: its state, its stream and its outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Final

import structlog
from aegis_links.spool import Spool
from aegis_protocol.errors import AegisError, ErrorBody
from aegis_protocol.failures.board import FlashCanceled
from aegis_protocol.failures.build import BuildCanceled
from aegis_protocol.model import Wire
from aegis_protocol.rpc import BuildResult, FlashResult, TaskInfo, TaskKind
from aegis_protocol.states import TaskState, ended, move

log = structlog.get_logger()

MESSAGE_ROOM_BYTES: Final = 56_000
"""What a description may take of a 64 KiB message."""
_SHORT_TEXT_CHARS: Final = 1000


class Task:
    """
    A task of a job. Every change is told to `on_change`.

    stream  its number on `pty` or `serial`, where it has one
    spool   what its stream has carried
    """

    def __init__(
        self,
        kind: TaskKind,
        *,
        task_id: str,
        on_change: Callable[[Task], None],
        stream: int | None = None,
        spool: Spool | None = None,
        board_id: str | None = None,
    ) -> None:
        self.task_id = task_id
        self.kind: TaskKind = kind
        self.state = TaskState.PENDING
        self.stream = stream
        self.spool = spool
        self.board_id = board_id
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.error: ErrorBody | None = None
        self.build: BuildResult | None = None
        self.flash: FlashResult | None = None
        self.writer: object | None = None
        """Who types: one peer at a time."""
        self.readers: set[object] = set()
        """The peers that have this console open."""
        self.type: Callable[[bytes], None] | None = None
        self.resize: Callable[[int, int], None] | None = None
        self._on_change = on_change

    @property
    def over(self) -> bool:
        return ended(self.state)

    def start(self) -> None:
        self._move(TaskState.RUNNING)

    def succeed(
        self, *, build: BuildResult | None = None, flash: FlashResult | None = None
    ) -> None:
        self.build, self.flash = build, flash
        self._move(TaskState.SUCCEEDED)

    def fail(self, error: AegisError, *, build: BuildResult | None = None) -> None:
        """End as failed; a cancellation's own error ends it as canceled."""
        self.error, self.build = error.body(), build
        canceled = isinstance(error, BuildCanceled | FlashCanceled)
        self._move(TaskState.CANCELED if canceled else TaskState.FAILED)

    def cancel(self, error: AegisError | None = None) -> None:
        """End as canceled; error: why, where it was not by request."""
        self.error = error.body() if error else None
        self._move(TaskState.CANCELED)

    def info(self) -> TaskInfo:
        """What a peer is told; cut so that it fits a message."""
        info = TaskInfo(
            task_id=self.task_id,
            kind=self.kind,
            state=self.state,
            stream=self.stream,
            board_id=self.board_id,
            started_at=self.started_at,
            ended_at=self.ended_at,
            error=self.error,
            build=self.build,
            flash=self.flash,
        )
        while info.build and info.build.diagnostics and wire_bytes(info) > MESSAGE_ROOM_BYTES:
            fewer = info.build.diagnostics[: len(info.build.diagnostics) // 2]
            build = info.build.model_copy(update={"diagnostics": fewer})
            info = info.model_copy(update={"build": build})
        if info.error and wire_bytes(info) > MESSAGE_ROOM_BYTES:
            info = info.model_copy(update={"error": _shortened(info.error)})
        return info

    def summary(self) -> TaskInfo:
        """The same in few bytes, without the result: that is asked for by itself."""
        error = _shortened(self.error) if self.error else None
        return self.info().model_copy(update={"build": None, "error": error})

    def _move(self, to: TaskState) -> None:
        self.state = move(self.state, to)
        now = time.time()
        if to is TaskState.RUNNING:
            self.started_at = now
        if self.over:
            self.ended_at = now
            if self.spool is not None and self.kind == "build":
                _finish(self.spool)
        self._on_change(self)


def wire_bytes(model: Wire) -> int:
    """How long `model` is as JSON in ASCII, as it travels."""
    return len(json.dumps(model.model_dump(mode="json"), separators=(",", ":")))


def _shortened(error: ErrorBody) -> ErrorBody:
    cut = {"message": error.message[:_SHORT_TEXT_CHARS], "remedy": error.remedy[:_SHORT_TEXT_CHARS]}
    return error.model_copy(update={**cut, "facts": {}})


def _finish(spool: Spool) -> None:
    try:
        spool.finish()
    except OSError as exc:  # a full disk must not keep the task's end from being told
        log.warning("spool.not_finished", detail=str(exc))
