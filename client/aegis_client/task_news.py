"""What the agent tells about a job's tasks, over all its connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import structlog
from aegis_protocol.errors import AegisError, from_body
from aegis_protocol.rpc import (
    ChannelRejected,
    SessionClosing,
    TaskChanged,
    TaskInfo,
    TaskProgress,
)
from aegis_protocol.states import TaskState, ended
from pydantic import ValidationError

from aegis_client.changes import Changes
from aegis_client.reporter import Reporter

_log = structlog.get_logger("aegis_client.task_news")


class TaskNews:
    """Takes the notifications of one job."""

    def __init__(self, reporter: Reporter) -> None:
        self.changes = Changes()
        self.tasks: dict[str, TaskInfo] = {}
        self.closing: AegisError | None = None
        """Why the agent said that it is about to close."""
        self._reporter = reporter

    async def take(self, method: str, params: dict[str, Any]) -> None:
        """One that makes no sense is logged and dropped."""
        try:
            match method:
                case "task.changed":
                    changed = TaskChanged.model_validate(params).task
                    self.tasks[changed.task_id] = changed
                case "task.progress":
                    seen = TaskProgress.model_validate(params)
                    task = self.tasks.get(seen.task_id)
                    kind = "flash " if task is not None and task.kind == "flash" else ""
                    self._reporter.progress(kind + seen.phase, seen.done, seen.total, seen.detail)
                case "channel.rejected":
                    error = ChannelRejected.model_validate(params).error
                    self._reporter.note(f"{error.message} ({error.code})")
                case "session.closing":
                    said = SessionClosing.model_validate(params).error
                    self.closing = from_body(said) if said else None
                case _:
                    _log.info("notification.ignored", method=method[:40])
        except ValidationError:
            _log.warning("notification.invalid", method=method[:40])
        self.changes.wake()

    def greeted(self, told: Iterable[TaskInfo]) -> tuple[TaskInfo, ...]:
        """
        Take the agent's list of tasks as a connection begins; return those that were known to run
        and that it has no more.

        What was heard of since is not older than the list, and stays.
        """
        listed = {task.task_id: task for task in told}
        for task in listed.values():
            known = self.tasks.get(task.task_id)
            if known is None or _age(known) < _age(task):
                self.tasks[task.task_id] = task
        self.changes.wake()
        return tuple(
            task
            for task in self.tasks.values()
            if not ended(task.state) and task.task_id not in listed
        )


def _age(task: TaskInfo) -> int:
    return len(_ORDER) if ended(task.state) else _ORDER.index(task.state)


_ORDER: Final = (TaskState.PENDING, TaskState.RUNNING)
