"""Why a build failed, as one of the named errors."""

from __future__ import annotations

import signal

from aegis_protocol.errors import AegisError
from aegis_protocol.failures.build import BuildFailed, BuildTooLarge
from aegis_protocol.failures.toolchain import (
    EnvironmentUnknown,
    PackageMissing,
    ProjectConfigInvalid,
)

from aegis_agent.build.reading import OutputReading

_BY_COMPLAINT: tuple[tuple[str, type[AegisError]], ...] = (
    ("UnknownEnvNames", EnvironmentUnknown),
    ("NotPlatformIOProject", ProjectConfigInvalid),
    ("InvalidProjectConf", ProjectConfigInvalid),
    ("Error: Unknown board ID", ProjectConfigInvalid),
    ("UnknownPackage", PackageMissing),
    ("PackageException", PackageMissing),
    ("HTTPClientError", PackageMissing),
    ("InternetConnectionError", PackageMissing),
)


def verdict(status: int, reading: OutputReading) -> AegisError | None:
    """Return what went wrong with a build that ended with `status`; None: nothing."""
    if status == 0:
        return None
    large = reading.too_large
    if large is not None:
        allowed = f" of {large.allowed}" if large.allowed else " too many"
        return BuildTooLarge(
            f"{large.what} takes {large.used} bytes{allowed}",
            used_bytes=large.used,
            allowed_bytes=large.allowed,
        )
    errors = reading.diagnostics.errors
    if errors:
        first = errors[0]
        where = f"{first.file}:{first.line}: " if first.file else ""
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return BuildFailed(f"{where}{first.message}{more}", errors=len(errors), status=status)
    for text, error in _BY_COMPLAINT:
        if reading.complaint.startswith(text):
            return error(reading.complaint)
    if status > 128:
        return BuildFailed(
            f"the build was killed by {_signal(status - 128)}",
            remedy="It may have run out of memory or processor time: ask for more with the job.",
            status=status,
        )
    said = reading.complaint or reading.diagnostics.last_line or "it said nothing"
    return BuildFailed(f"the build ended with status {status}: {said[:500]}", status=status)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
