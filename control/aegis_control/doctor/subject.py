"""What is examined: the settings, the machine, and what the control says of itself if it runs."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.agents import Agent
from aegis_protocol.http_api.jobs import Job
from aegis_protocol.http_api.keys import KeyRow
from aegis_protocol.http_api.status import ControlStatus

from aegis_control.config import ControlConfig
from aegis_control.config_sources import Loaded
from aegis_control.state_dir import StateDir

_STA_UNSYNC: Final = 0x0040
_TIMEX_BYTES: Final = 208
_TIMEX_STATUS: Final = 10
"""`struct timex` (adjtimex(2)) has its `status` in the eleventh 32-bit word on 64-bit machines."""


@dataclass(frozen=True)
class Machine:
    """What the machine says; tests say it themselves."""

    now_s: Callable[[], float] = time.time
    clock_synchronized: Callable[[], bool | None] = field(default=lambda: _clock_synchronized())
    free_bytes: Callable[[Path], tuple[int, int]] = field(default=lambda path: _space(path))
    """Free and all bytes of the file system with that path."""
    file_limit: Callable[[], int] = field(
        default=lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )


@dataclass(frozen=True)
class Answers:
    """What the running control said."""

    status: ControlStatus
    agents: tuple[Agent, ...]
    jobs: tuple[Job, ...]
    keys: tuple[KeyRow, ...] = ()


@dataclass(frozen=True)
class Subject:
    """
    loaded    None: the settings are wrong, `refused` says how, or it is a control elsewhere
    answers   None: no control answered, and `unreached` says why
    url       the control is elsewhere, and nothing of this machine is looked at
    """

    loaded: Loaded | None
    refused: AegisError | None
    answers: Answers | None
    unreached: AegisError | None
    url: str | None = None
    machine: Machine = field(default_factory=Machine)

    @property
    def config(self) -> ControlConfig:
        assert self.loaded is not None, "checks that need the settings are skipped without them"
        return self.loaded.config

    @property
    def state(self) -> StateDir:
        return StateDir(self.config.state_dir)

    @property
    def public_url(self) -> str | None:
        """How others reach control, as far as that is known."""
        if self.url is not None:
            return self.url
        if self.loaded is not None and self.config.public_base_url is not None:
            return self.config.public_base_url
        return None if self.answers is None else self.answers.status.base_url


@contextmanager
def as_owner_of(path: Path) -> Iterator[None]:
    """
    While the block lasts root is the user who owns `path`, so that it sees what control would see,
    and leaves no file of root's in control's folder.
    """
    try:
        owner = path.stat()
    except OSError:
        yield
        return
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def _clock_synchronized() -> bool | None:
    """Whether NTP keeps the kernel's clock; None where that can't be told."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        timex = (ctypes.c_int32 * (_TIMEX_BYTES // 4))()
        if libc.adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not timex[_TIMEX_STATUS] & _STA_UNSYNC


def _space(path: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(path)
    return usage.free, usage.total
