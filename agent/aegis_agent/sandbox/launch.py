"""
Starts bubblewrap as the build's user, and guards it. Run as a program, by its path, with the
standard library alone: `python -I -S launch.py FD`, where FD holds the order as JSON.

    life_fd   a pipe whose other end the agent holds: at its end everything here is killed
    uid, gid  whom to become; null: stay who we are
    mounts    [[source, name in the staging folder], …], only with a uid
    limits    rlimits by name; `processes` counts from what the user runs already
    bwrap     path
    args_fd   descriptor with bubblewrap's options, each ended by NUL
    command   what bubblewrap runs

It ends, with bubblewrap's status, when no process of the sandbox is left. bubblewrap's own
--die-with-parent is not enough: pid 1 of the sandbox asks for it a moment after the build has
begun (do_init in bubblewrap.c), and an agent killed in that moment would leave a build behind.

As root the mounts are taken first, in a mount namespace of our own: bubblewrap then runs as a user
who could not walk to them (a state directory under /root), and still shows nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Any

STAGING = "/tmp"  # noqa: S108  covered by a tmpfs of our own below
_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        order: dict[str, Any] = json.load(file)
    os.chdir("/")
    os.umask(0o022)
    os.set_inheritable(order["life_fd"], False)
    # What bubblewrap leaves behind when it is killed becomes our child, and so can't be missed.
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    guard = os.getpid()
    executed, executing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become_bwrap(order, guard)
        except OSError as exc:
            os.write(2, f"bwrap: launch: {exc}\n".encode())
        finally:
            os._exit(1)
    os.close(executing)
    life = order["life_fd"]
    _forget_descriptors(keep=(executed, life))
    # Until it is bubblewrap the child may be root, and only root can kill it then.
    if executed in _first_of(executed, life):
        _drop_rights(order)
    child_fd = os.pidfd_open(child)
    _first_of(child_fd, life)
    sys.exit(_ended(child))


def _become_bwrap(order: dict[str, Any], guard: int) -> None:
    if order["uid"] is not None:
        _stage(order["mounts"])
    # What the kernel may kill first when memory runs out is a build, never the agent.
    Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(order["limits"], shared_user=order["uid"] is None)
    _drop_rights(order)
    # After the change of user, which would clear it (prctl(2)).
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    if os.getppid() != guard:
        return
    words = ["bwrap", "--args", str(order["args_fd"]), "--", *order["command"]]
    os.execv(order["bwrap"], words)  # noqa: S606


def _drop_rights(order: dict[str, Any]) -> None:
    if order["uid"] is not None:
        os.setgroups([])
        os.setresgid(order["gid"], order["gid"], order["gid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _forget_descriptors(*, keep: tuple[int, int]) -> None:
    """Let go of the terminal and all else that is the build's, or its end would never be seen."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    start = 3
    for fd in (*sorted(keep), 65_536):
        os.closerange(start, fd)
        start = fd + 1


def _first_of(*fds: int) -> list[int]:
    """Wait until one of `fds` has something or is at its end; return those that are."""
    waiting = select.poll()
    for fd in fds:
        waiting.register(fd, select.POLLIN)
    return [fd for fd, _ in waiting.poll()]


def _ended(child: int) -> int:
    """End `child` and all that it leaves behind; return its status."""
    ended, raw = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        raw = os.waitpid(child, 0)[1]
    while True:
        for orphan in _children():
            os.kill(orphan, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    status = os.waitstatus_to_exitcode(raw)
    return status if status >= 0 else 128 - status


def _children() -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_bytes()
        except OSError:
            continue
        # pid (name) state ppid …, where the name may hold anything
        if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def _stage(mounts: list[list[str]]) -> None:
    _checked(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    # Opened before the staging folder covers what lies in it.
    sources = [(os.open(source, os.O_PATH | os.O_NOFOLLOW), name) for source, name in mounts]
    _mount("tmpfs", STAGING, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=256k")
    for fd, name in sources:
        place = Path(STAGING, name)
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112  pathlib would resolve it
            place.mkdir()
        else:
            place.touch()
        _mount(f"/proc/self/fd/{fd}", str(place), None, _MS_BIND | _MS_REC, None)
        os.close(fd)


def _limit(limits: dict[str, int], *, shared_user: bool) -> None:
    processes = limits["processes"] + (_threads_of(os.getuid()) if shared_user else 0)
    for what, wanted in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (bound, bound))


def _threads_of(uid: int) -> int:
    """How many threads `uid` runs now: RLIMIT_NPROC counts them, whatever they belong to."""
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(list(os.scandir(f"/proc/{entry.name}/task")))
        except OSError:
            continue
    return count


def _mount(source: str | None, at: str, kind: str | None, flags: int, data: str | None) -> None:
    def raw(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    status = _libc.mount(raw(source), raw(at), raw(kind), ctypes.c_ulong(flags), raw(data))
    _checked(status, f"mounting at {at}")


def _checked(status: int, what: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        main()
    except OSError as exc:
        sys.exit(f"bwrap: launch: {exc}")
