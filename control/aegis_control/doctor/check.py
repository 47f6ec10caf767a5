"""What a check found, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from aegis_protocol.errors import AegisError

Status: TypeAlias = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Check:
    """A check that can't be made because of another is skipped; only warnings and errors have a
    remedy."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", why)


def warning(name: str, detail: str, remedy: str) -> Check:
    return Check(name, "warning", detail, remedy)


def error(name: str, detail: str, remedy: str) -> Check:
    return Check(name, "error", detail, remedy)


def failed(name: str, exc: AegisError) -> Check:
    """A check that a named failure ended."""
    return Check(name, "error", f"{exc.message} ({exc.code})", exc.remedy)


@dataclass(frozen=True)
class Diagnosis:
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Iterable[Check]) -> Diagnosis:
        return cls(tuple(checks))

    @property
    def status(self) -> Status:
        seen = {check.status for check in self.checks}
        return "error" if "error" in seen else "warning" if "warning" in seen else "ok"

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "checks": [vars(check) for check in self.checks],
            "errors": [
                f"{check.name}: {check.detail}" for check in self.checks if check.status == "error"
            ],
        }
