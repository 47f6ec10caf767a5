"""
The requests on the `espctl` channel: JSON-RPC 2.0, each with its parameters and result.

An error has code -32000 and, as `data`, the error object of the HTTP API. What does not fit a
message travels as a transfer (`TransferRef`) on `source` (to the agent) or `firmware` (from it).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from pydantic import Field

from aegis_protocol.board import Board
from aegis_protocol.errors import ErrorBody
from aegis_protocol.http_api.grants import ChannelText
from aegis_protocol.manifest import Artifact, Diagnostic, Manifest, SizeReport
from aegis_protocol.model import Id, Sha256Hex, SizeBytes, TargetName, UnixSeconds, Wire
from aegis_protocol.states import TaskState

Compression: TypeAlias = Literal["none", "deflate"]
TaskKind: TypeAlias = Literal["build", "flash", "monitor"]

MAX_MEASURE_BYTES: Final = 49_152
"""What one `link.measure` carries each way: it fits a message with room to spare."""


class TransferRef(Wire):
    """A transfer as it was announced: its number on the channel, and what must arrive."""

    transfer: int = Field(ge=1, lt=1 << 32)
    size_bytes: SizeBytes
    sha256: Sha256Hex


class Empty(Wire):
    """No fields."""


class TaskInfo(Wire):
    """A task as the session reports it. stream: its pty or console, where it has one."""

    task_id: Id
    kind: TaskKind
    state: TaskState
    stream: int | None = None
    board_id: Id | None = None
    started_at: UnixSeconds | None = None
    ended_at: UnixSeconds | None = None
    error: ErrorBody | None = None
    build: BuildResult | None = None
    flash: FlashResult | None = None


class BuildResult(Wire):
    """What a build gave. diagnostics: the first 50; all of them are in diagnostics.json."""

    manifest: Manifest | None = None
    artifacts: tuple[Artifact, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    size: SizeReport | None = None
    duration_s: float = 0.0
    warm: bool = False


class FlashedRegion(Wire):
    """sha256: of what was written; the chip's own MD5 of its flash has confirmed it."""

    name: str
    offset: int
    size_bytes: SizeBytes
    sha256: Sha256Hex


class FlashResult(Wire):
    board_id: Id
    chip: str
    mac: str | None = None
    regions: tuple[FlashedRegion, ...] = ()
    elf_sha256: Sha256Hex | None = None
    duration_s: float = 0.0


class SessionHelloParams(Wire):
    protocol: int
    client: str = Field(max_length=80)
    compressions: tuple[str, ...] = ("none",)


class SessionLimits(Wire):
    send_queue_bytes: int
    max_message_bytes: int
    max_file_bytes: int
    max_source_bytes: int


class SessionHelloResult(Wire):
    protocol: int
    agent_id: Id
    agent_name: str
    version: str
    job_id: Id
    ends_at: UnixSeconds
    channels: tuple[ChannelText, ...]
    actions: tuple[str, ...]
    compressions: tuple[Compression, ...]
    limits: SessionLimits
    tasks: tuple[TaskInfo, ...] = ()


class SourcePlanParams(Wire):
    """The plan itself (`SourcePlan` as JSON) arrives as this transfer on `source`."""

    plan: TransferRef


class SourcePlanResult(Wire):
    """missing: base64url bitmap over `unique_blobs(plan.files)`; bytes of all of them together."""

    plan_id: Id
    missing: str
    missing_bytes: SizeBytes
    missing_count: int


class SourcePushParams(Wire):
    """
    The missing blobs, one after the other in the plan's order, as one transfer.

    sha256 and size_bytes of `pack` are of what travels; unpacked it is `missing_bytes` long.
    """

    plan_id: Id
    pack: TransferRef
    compression: Compression = "none"


class SourcePushResult(Wire):
    plan_id: Id
    source_sha256: Sha256Hex


class Terminal(Wire):
    """columns and rows of the viewer; color: whether it shows ANSI colours."""

    cols: int = Field(default=80, ge=1, le=1000)
    rows: int = Field(default=24, ge=1, le=1000)
    color: bool = True


class BuildStartParams(Wire):
    """environment: of platformio.ini, where several are for the target."""

    plan_id: Id
    target: TargetName
    environment: str | None = Field(default=None, max_length=80)
    toolchain: Id | None = None
    clean: bool = False
    verbose: bool = False
    terminal: Terminal = Field(default_factory=Terminal)


class BuildStartResult(Wire):
    task_id: Id
    stream: int
    toolchain: Id
    environment: str


class TaskParams(Wire):
    task_id: Id


class ArtifactsResult(Wire):
    task_id: Id
    artifacts: tuple[Artifact, ...]


class ArtifactFetchParams(Wire):
    """offset: what the client has already, in bytes. transfer: the number that it listens on."""

    task_id: Id
    name: str = Field(max_length=255)
    transfer: int = Field(ge=1, lt=1 << 32)
    offset: int = Field(default=0, ge=0)


class ArtifactFetchResult(Wire):
    transfer: TransferRef


class BoardsResult(Wire):
    """The boards of this job alone."""

    boards: tuple[Board, ...]


class FlashStartParams(Wire):
    """
    What to flash: a build of this identity (`task_id`), or a flash_bundle.tar.gz sent on `source`.

    baud: of the serial port while flashing. erase_all: the whole flash first.
    """

    board_id: Id
    task_id: Id | None = None
    bundle: TransferRef | None = None
    baud: int = Field(default=460_800, ge=9600, le=4_000_000)
    erase_all: bool = False


class FlashStartResult(Wire):
    task_id: Id


class MonitorOpenParams(Wire):
    """reset: reset the board once the console is open, so that nothing of its boot is missed."""

    board_id: Id
    baud: int = Field(default=115_200, ge=300, le=4_000_000)
    reset: bool = False
    write: bool = True
    """Ask to be the one who types."""


class MonitorOpenResult(Wire):
    """offset: where the console's stream stands now; what came before can be asked for."""

    task_id: Id
    stream: int
    offset: int
    writer: bool


class BoardResetParams(Wire):
    board_id: Id


class LogsTailParams(Wire):
    task_id: Id
    max_bytes: int = Field(default=16_384, ge=1, le=32_768)
    offset: int | None = Field(default=None, ge=0)
    """None: the end."""


class LogsTailResult(Wire):
    """text: UTF-8, ANSI escapes removed; offsets count bytes of the raw stream."""

    text: str
    offset: int
    next_offset: int
    total_bytes: int


class JobExtendParams(Wire):
    timeout_secs: int = Field(ge=1, le=86_400)


class JobExtendResult(Wire):
    ends_at: UnixSeconds


class LinkMeasureParams(Wire):
    """data: thrown away; it is there to travel. reply_bytes: how long the answer's `data` is."""

    data: str = Field(default="", max_length=MAX_MEASURE_BYTES)
    reply_bytes: int = Field(default=0, ge=0, le=MAX_MEASURE_BYTES)


class LinkMeasureResult(Wire):
    data: str = Field(default="", max_length=MAX_MEASURE_BYTES)


class TaskChanged(Wire):
    """Notification `task.changed`: the task as it is now."""

    task: TaskInfo


class TaskProgress(Wire):
    """Notification `task.progress`: at most ten a second. total 0: not known."""

    task_id: Id
    phase: str = Field(max_length=40)
    done: int = Field(ge=0)
    total: int = Field(default=0, ge=0)
    detail: str = Field(default="", max_length=200)


class ChannelRejected(Wire):
    """Notification `channel.rejected`: `Channel NAME was rejected`, code channel.not_granted."""

    error: ErrorBody


class SessionClosing(Wire):
    """Notification `session.closing`: why the agent is about to close the connection."""

    error: ErrorBody | None = None


TaskInfo.model_rebuild()

METHODS: Final[Mapping[str, tuple[type[Wire], type[Wire]]]] = MappingProxyType(
    {
        "session.hello": (SessionHelloParams, SessionHelloResult),
        "source.plan": (SourcePlanParams, SourcePlanResult),
        "source.push": (SourcePushParams, SourcePushResult),
        "build.start": (BuildStartParams, BuildStartResult),
        "build.status": (TaskParams, TaskInfo),
        "build.cancel": (TaskParams, TaskInfo),
        "artifacts.list": (TaskParams, ArtifactsResult),
        "artifact.fetch": (ArtifactFetchParams, ArtifactFetchResult),
        "boards.list": (Empty, BoardsResult),
        "board.reset": (BoardResetParams, Empty),
        "flash.start": (FlashStartParams, FlashStartResult),
        "flash.cancel": (TaskParams, TaskInfo),
        "monitor.open": (MonitorOpenParams, MonitorOpenResult),
        "monitor.close": (TaskParams, TaskInfo),
        "logs.tail": (LogsTailParams, LogsTailResult),
        "link.measure": (LinkMeasureParams, LinkMeasureResult),
        "job.extend": (JobExtendParams, JobExtendResult),
        "job.end": (Empty, Empty),
    }
)
"""Each method's parameters and result."""

NOTIFICATIONS: Final[Mapping[str, type[Wire]]] = MappingProxyType(
    {
        "task.changed": TaskChanged,
        "task.progress": TaskProgress,
        "channel.rejected": ChannelRejected,
        "session.closing": SessionClosing,
        "ping": Empty,
    }
)
"""What either side may say without being asked."""
