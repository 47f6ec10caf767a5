"""What this client started: so that `flash` and `download` without a name mean the last build."""

from __future__ import annotations

from typing import Final

from aegis_protocol.manifest import Manifest
from aegis_protocol.model import Id, UnixSeconds
from aegis_protocol.rpc import TaskInfo, TaskKind
from aegis_protocol.states import TaskState

from aegis_client.store import Kept, Store, each

MAX_RECORDS: Final = 500


class TaskRecord(Kept):
    """A task. project_dir: the absolute path that was built; elf_sha256 once it succeeded."""

    task_id: Id
    job_id: Id
    kind: TaskKind
    url: str
    agent_id: Id
    agent_name: str
    target: str | None = None
    environment: str = ""
    project_dir: str | None = None
    started_at: UnixSeconds
    state: str = "running"
    elf_sha256: str | None = None
    output: str | None = None
    """The folder that its artifacts were fetched to."""


class TaskRecords:
    """The records for one control, newest last (task ids sort by time)."""

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self.url = url

    def keep(self, record: TaskRecord) -> None:
        """Write `record`; the oldest go when there are more than MAX_RECORDS."""
        self._store.write(f"tasks/{record.task_id}.json", record)
        names = self._store.names("tasks")
        for name in names[: max(0, len(names) - MAX_RECORDS)]:
            self._store.remove(name)

    def ended(self, task: TaskInfo) -> None:
        """Note how a task that this client started has ended."""
        known = self.find(task.task_id)
        if known is not None:
            manifest = task.build.manifest if task.build else None
            elf_sha256 = manifest.elf_sha256 if manifest else None
            self.keep(known.model_copy(update={"state": str(task.state), "elf_sha256": elf_sha256}))

    def fetched(self, task_id: str, output: str, manifest: Manifest) -> None:
        """Note where the artifacts of a build were put, which by its manifest has succeeded."""
        known = self.find(task_id)
        if known is not None:
            update = {
                "output": output,
                "state": str(TaskState.SUCCEEDED),
                "elf_sha256": manifest.elf_sha256,
            }
            self.keep(known.model_copy(update=update))

    def all(self) -> list[TaskRecord]:
        found = (record for _, record in each(self._store, "tasks", TaskRecord))
        mine = [record for record in found if record.url == self.url]
        return sorted(mine, key=lambda record: record.started_at)

    def find(self, name: str) -> TaskRecord | None:
        """The record of task `name`, or the last build of job `name`."""
        records = self.all()
        for record in records:
            if record.task_id == name:
                return record
        of_job = [r for r in records if r.job_id == name and r.kind == "build"]
        return of_job[-1] if of_job else None

    def last_build(self, project_dir: str | None, *, state: str | None = None) -> TaskRecord | None:
        """The newest build of the project, or of anything where `project_dir` is None."""
        for record in reversed(self.all()):
            if record.kind != "build" or (state is not None and record.state != state):
                continue
            if project_dir is None or record.project_dir == project_dir:
                return record
        return None
