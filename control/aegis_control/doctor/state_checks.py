"""What lies in the state directory, and what the machine gives: disk, clock, file descriptors."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from aegis_protocol.errors import AegisError

from aegis_control.doctor.check import Check, error, failed, ok, skipped, warning
from aegis_control.doctor.subject import Subject
from aegis_control.issuer import Issuer

_MIB: Final = 1 << 20
LEAST_FREE_BYTES: Final = 50 * _MIB
GOOD_FREE_BYTES: Final = 1024 * _MIB
PEPPER_BYTES: Final = 32
SPARE_FILES: Final = 200
GOOD_FILES: Final = 4096

_START: Final = "Start `aegis-control serve` once: it makes what it needs."


def state_dir(subject: Subject) -> Check:
    path = subject.state.path
    try:
        found = path.stat()
    except FileNotFoundError:
        return warning("state_dir", f"there is no {path} yet", _START)
    except OSError as exc:
        return error(
            "state_dir",
            f"{path}: {exc.strerror}",
            "Run this as root or as control's user, or set AEGIS_STATE_DIR.",
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return error(
            "state_dir",
            f"{path} is open to others (mode {mode:o})",
            f"chmod 700 {path}, and think of its keys as known.",
        )
    strangers = [entry.name for entry in path.iterdir() if entry.stat().st_uid != found.st_uid]
    if strangers:
        return error(
            "state_dir",
            f"files of another user in {path}: {', '.join(sorted(strangers)[:5])}",
            f"chown -R --reference={path} {path}",
        )
    return ok("state_dir", f"{path}, for its owner alone")


def issuer_key(subject: Subject) -> Check:
    path = subject.state.issuer_key
    if not _exists(path):
        return skipped("issuer_key", "control has not made one here yet")
    try:
        kid = Issuer.open(path).kid
    except AegisError as exc:
        return failed("issuer_key", exc)
    shared = subject.config.database.startswith("postgresql") and subject.config.seal_keys
    detail = f"key {kid}" + ("; replicas share the database's: `issuer list`" if shared else "")
    return _closed("issuer_key", path) or ok("issuer_key", detail)


def pepper(subject: Subject) -> Check:
    path = subject.state.pepper
    if not _exists(path):
        return skipped("pepper", "control has not made one here yet")
    try:
        size = len(path.read_bytes())
    except OSError as exc:
        return error("pepper", f"{path}: {exc.strerror}", "Restore it from a backup.")
    if size != PEPPER_BYTES:
        return error(
            "pepper",
            f"{path} has {size} bytes and not {PEPPER_BYTES}: no API key will be known",
            "Restore it from a backup, or make every key anew.",
        )
    return _closed("pepper", path) or ok("pepper", f"{size} bytes")


def disk(subject: Subject) -> Check:
    path = subject.state.path
    while not _exists(path):
        path = path.parent
    free, size = subject.machine.free_bytes(path)
    said = f"{free // _MIB} MiB of {size // _MIB} MiB are free at {path}"
    remedy = "Free some space: when it is full, control can take no request."
    if free < LEAST_FREE_BYTES:
        return error("disk", said, remedy)
    if free < GOOD_FREE_BYTES or free < size * 0.05:
        return warning("disk", said, remedy)
    return ok("disk", said)


def clock(subject: Subject) -> Check:
    match subject.machine.clock_synchronized():
        case True:
            return ok("clock", "kept by NTP")
        case False:
            return warning(
                "clock",
                "not kept by NTP: grants live for 30 s, and a clock that is off refuses them",
                "Start a time service: timedatectl set-ntp true",
            )
        case None:
            return warning(
                "clock", "this machine does not tell whether NTP keeps it", "Look at timedatectl."
            )


def file_limit(subject: Subject) -> Check:
    """Every agent, event stream and request takes a file descriptor."""
    answers = subject.answers
    limit = subject.machine.file_limit() if answers is None else answers.status.file_limit
    needed = SPARE_FILES
    if answers is not None:
        needed += sum(answers.status.agents.values()) + answers.status.event_streams
    remedy = "Raise LimitNOFILE= in the unit (65536 in ours), or `ulimit -n` where it is started."
    if limit < needed:
        return error("file_limit", f"{limit} files, and {needed} may be needed", remedy)
    if limit < GOOD_FILES:
        return warning("file_limit", f"{limit} files: for few agents", remedy)
    return ok("file_limit", f"{limit} files")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _closed(name: str, path: Path) -> Check | None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o077:
        return None
    return error(
        name, f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}, and replace it."
    )
