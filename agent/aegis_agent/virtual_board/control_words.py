"""
What a program and a board say to each other on the board's control socket: one JSON object
a line each way, one answer to each request.

    program -> board   Request   status, watch, flash.read, fault.set, faults.clear,
                                 unplug, replug, reset
    board -> program   Answer    the board's status after it, bytes where asked, or an error

`watch` is answered by a status now and after each change, until the socket is closed.
The socket stands beside the board's port: its path and `.control`.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal, TypeAlias

from aegis_protocol.errors import ErrorBody
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, TypeAdapter

MAX_READ_BYTES: Final = 1024 * 1024
MAX_LINE_BYTES: Final = 2 * MAX_READ_BYTES
CONTROL_SUFFIX: Final = ".control"


class FaultName(enum.StrEnum):
    """
    no-stub-greeting   the stub starts and never says OHAI
    bad-md5            the digest that the board computes of its flash is wrong
    write-error:N      after N more bytes no write to the flash succeeds
    unplug-after:N     the board is pulled out when N more bytes came from the host; once
    replug-after:S     S seconds after it was pulled out, the board is back
    vanish-on-reset:S  the port goes away with each reset and comes back after S seconds
    """

    NO_STUB_GREETING = "no-stub-greeting"
    BAD_MD5 = "bad-md5"
    WRITE_ERROR = "write-error"
    UNPLUG_AFTER = "unplug-after"
    REPLUG_AFTER = "replug-after"
    VANISH_ON_RESET = "vanish-on-reset"


class BoardState(enum.StrEnum):
    """off: no power; reset: EN is low; loader: ROM or stub listens; running: from the flash."""

    OFF = "off"
    RESET = "reset"
    LOADER = "loader"
    RUNNING = "running"


class Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AskStatus(Word):
    type: Literal["status"] = "status"


class Watch(Word):
    type: Literal["watch"] = "watch"


class ReadFlash(Word):
    type: Literal["flash.read"] = "flash.read"
    offset: int = Field(ge=0)
    size: int = Field(ge=0, le=MAX_READ_BYTES)


class SetFault(Word):
    type: Literal["fault.set"] = "fault.set"
    name: FaultName
    amount: float | None = Field(default=None, ge=0, lt=2**31)


class ClearFaults(Word):
    type: Literal["faults.clear"] = "faults.clear"


class Unplug(Word):
    type: Literal["unplug"] = "unplug"


class Replug(Word):
    type: Literal["replug"] = "replug"


class Reset(Word):
    type: Literal["reset"] = "reset"


Request: TypeAlias = Annotated[
    AskStatus | Watch | ReadFlash | SetFault | ClearFaults | Unplug | Replug | Reset,
    Field(discriminator="type"),
]
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Request)


class Holder(Word):
    """Who has the port: by its socket (then the program's id is known) or by its pty."""

    by: Literal["socket", "pty"]
    pid: int | None = None
    program: str = ""


class BoardStatus(Word):
    """
    A board at one moment.

    stub          the loader that listens is the stub
    resets        rising edges of EN, power-ups and reboots
    boots         of these, those into what is flashed
    generation    times the port has come up; one more means that it was away
    received      bytes from the host; sent: bytes that a host took; dropped: that nobody took
    """

    chip: str
    mac: str
    state: BoardState
    stub: bool = False
    plugged: bool = True
    holder: Holder | None = None
    dtr: bool = False
    rts: bool = False
    host_baud: int | None = None
    resets: int = 0
    boots: int = 0
    generation: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    dropped_bytes: int = 0
    faults: dict[str, float] = Field(default_factory=dict)


class Answer(Word):
    status: BoardStatus | None = None
    data: Base64Bytes | None = None
    error: ErrorBody | None = None


class Ready(Word):
    """The one line that a board's process prints on stdout, with `--json`, when it can be used."""

    url: str
    socket: str
    control: str
    pty: str | None = None
    chip: str
    mac: str
    revision: str
    flash_size_bytes: int
    pid: int
