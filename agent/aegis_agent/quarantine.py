"""
An agent that fails its builds takes no more: after three in a row that ended by its own fault.

A machine whose sandbox broke, or whose agent has a defect, would else fail every job that the
scheduler gives it, and being free all the time it would get many. What a project does wrong counts
for the machine: it shows that builds run. Only an operator lifts a quarantine; it is kept on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.build import BuildCanceled, SandboxUnavailable
from pydantic import BaseModel, ConfigDict, ValidationError

from aegis_agent.files import write_atomic
from aegis_agent.intake import Intake, Why

log = structlog.get_logger()

_IN_A_ROW: Final = 3
_OWN_FAULTS: Final = frozenset({AegisError.code, SandboxUnavailable.code})


class _Kept(BaseModel):
    """resets: how many the agent had heard of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: str | None = None
    resets: int = 0


class Quarantine:
    """
    path    where it is kept across restarts
    intake  closed while it lasts
    """

    def __init__(self, path: Path, intake: Intake) -> None:
        self._path = path
        self._intake = intake
        self._failed = 0
        self._kept = _read(path)
        if self._kept.reason is not None:
            intake.close(Why.QUARANTINE, self._kept.reason)

    @property
    def reason(self) -> str | None:
        """Why the agent quarantined itself; None: it did not."""
        return self._kept.reason

    @property
    def resets(self) -> int:
        return self._kept.resets

    def noted(self, error: BaseException | None) -> None:
        """A build has ended, or could not begin; error: why it did not succeed."""
        if isinstance(error, BuildCanceled):
            return
        if error is None or not _own_fault(error):
            self._failed = 0
            return
        self._failed += 1
        if self._failed < _IN_A_ROW or self._kept.reason is not None:
            return
        what = error.message if isinstance(error, AegisError) else type(error).__name__
        reason = f"{self._failed} builds in a row failed by this machine's fault: {what}"[:200]
        log.error("agent.quarantined", reason=reason)
        self._keep(_Kept(reason=reason, resets=self._kept.resets))
        self._intake.close(Why.QUARANTINE, reason)

    def reset(self, resets: int) -> None:
        """An operator has reset the agent `resets` times in all: lift what is older."""
        if resets <= self._kept.resets:
            return
        self._failed = 0
        if self._kept.reason is not None:
            log.info("agent.quarantine_lifted", reason=self._kept.reason)
        self._keep(_Kept(resets=resets))
        self._intake.open(Why.QUARANTINE)

    def _keep(self, kept: _Kept) -> None:
        self._kept = kept
        try:
            write_atomic(self._path, kept.model_dump_json().encode(), mode=0o600)
        except OSError as exc:  # it holds for this process at least, and control keeps it too
            log.warning("quarantine.not_kept", detail=str(exc))


def _own_fault(error: BaseException) -> bool:
    return not isinstance(error, AegisError) or error.code in _OWN_FAULTS


def _read(path: Path) -> _Kept:
    try:
        return _Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValidationError) as exc:
        log.warning("quarantine.unreadable", detail=str(exc))
        return _Kept()
