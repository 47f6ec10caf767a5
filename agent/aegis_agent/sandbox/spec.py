"""What a sandboxed process sees and may use, as data; and the words that tell bubblewrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

USER: Final = 1000
"""Who a build is inside, whatever its slot's uid is outside."""

STAGING: Final = "/tmp"  # noqa: S108  covered by a private mount before it is used
"""Where the launcher shows an unprivileged bubblewrap what lies in folders closed to it."""

TMP: Final = "/tmp"  # noqa: S108  the sandbox's own
HOME: Final = f"{TMP}/home"
TMP_BYTES: Final = 512 << 20
_SHM: Final = "/dev/shm"  # noqa: S108  the sandbox's own
_SHM_BYTES: Final = 64 << 20

PASSWD: Final = f"root:x:0:0:root:/:/usr/sbin/nologin\nbuild:x:{USER}:{USER}:build:{HOME}:/bin/sh\n"
GROUP: Final = f"root:x:0:\nbuild:x:{USER}:\n"

_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC: Final = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime")
_ETC_FOR_NETWORK: Final = ("resolv.conf", "hosts", "nsswitch.conf", "ssl", "ca-certificates", "pki")


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine, shown at `target`."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Limits:
    """
    Bounds of one process, and of all of them together where it says so.

    memory_bytes  address space of each process
    processes     processes and threads of the whole sandbox
    file_bytes    size of a file
    cpu_s         processor time of each process
    """

    memory_bytes: int = 4 << 30
    processes: int = 512
    file_bytes: int = 1 << 30
    cpu_s: int = 7200
    open_files: int = 4096


@dataclass(frozen=True)
class SandboxSpec:
    """
    argv      looked up in the PATH of `env`
    env       all of it: nothing is inherited
    terminal  whether it leads a session with its standard input as controlling terminal
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    slot: int
    mounts: Sequence[Mount] = ()
    cwd: str = "/"
    network: bool = False
    terminal: bool = False
    limits: Limits = field(default_factory=Limits)


def bwrap_options(
    spec: SandboxSpec, *, staged: bool, status_fd: int, passwd_fd: int, group_fd: int
) -> list[str]:
    """
    Return bubblewrap's options.

    staged  whether mount n lies at STAGING/n, instead of at its own place
    """
    words = [
        "--unshare-all", "--unshare-user", "--disable-userns",
        "--die-with-parent", "--new-session", "--clearenv",
        "--uid", str(USER), "--gid", str(USER), "--hostname", "build",
        "--json-status-fd", str(status_fd),
        *_system(network=spec.network),
        "--ro-bind-data", str(passwd_fd), "/etc/passwd",
        "--ro-bind-data", str(group_fd), "/etc/group",
        "--proc", "/proc",
        "--dev", "/dev",
        "--perms", "1777", "--size", str(_SHM_BYTES), "--tmpfs", _SHM,
        "--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", TMP,
        "--dir", HOME,
    ]  # fmt: skip
    if spec.network:
        words.append("--share-net")
    for number, mount in enumerate(spec.mounts):
        source = f"{STAGING}/{number}" if staged else str(mount.source)
        words += ["--bind" if mount.writable else "--ro-bind", source, mount.target]
    for name, value in (
        {"HOME": HOME, "TMPDIR": TMP, "USER": "build", "LOGNAME": "build"} | dict(spec.env)
    ).items():
        words += ["--setenv", name, value]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", spec.cwd]


def command(spec: SandboxSpec) -> list[str]:
    """What bubblewrap is to run."""
    # SIGWINCH and Ctrl-C reach the session whose controlling terminal it is.
    return [*(("setsid", "--ctty") if spec.terminal else ()), *spec.argv]


def _system(*, network: bool) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _MERGED:
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in (*_ETC, *(_ETC_FOR_NETWORK if network else ())):
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return words
