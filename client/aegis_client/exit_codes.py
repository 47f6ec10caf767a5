"""
What `espctl` ends with. Stable: scripts depend on it; docs/espctl.md has the same table.

An error's exit code is that of the longest row that its code begins with.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class ExitCode(IntEnum):
    OK = 0
    INTERNAL = 1
    USAGE = 2
    BUILD_FAILED = 3
    NOT_PERMITTED = 4
    UNREACHABLE = 5
    BOARD = 6
    MONITOR = 7
    TIMED_OUT = 8
    CANCELED = 9
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: Final[Mapping[ExitCode, str]] = MappingProxyType(
    {
        ExitCode.OK: "it worked",
        ExitCode.INTERNAL: "a defect in Aegis, or an error that this version does not know",
        ExitCode.USAGE: "a wrong argument, setting, project file or name",
        ExitCode.BUILD_FAILED: "the build failed: compiler, linker, size, missing toolchain",
        ExitCode.NOT_PERMITTED: "no key, no permission, or an agent that is not the trusted one",
        ExitCode.UNREACHABLE: "control or the agent can't be reached, or was lost on the way",
        ExitCode.BOARD: "the board: absent, busy, another chip, flash or verify failed",
        ExitCode.MONITOR: "the console did not show what was expected, or showed a failure",
        ExitCode.TIMED_OUT: "time was over: waiting for an agent, building, or the whole job",
        ExitCode.CANCELED: "somebody else canceled it",
        ExitCode.INTERRUPTED: "Ctrl-C",
        ExitCode.TERMINATED: "SIGTERM or SIGHUP",
    }
)

ROWS: Final[Mapping[str, ExitCode]] = MappingProxyType(
    {
        "action.": ExitCode.NOT_PERMITTED,
        "agent.": ExitCode.UNREACHABLE,
        "agent.key_changed": ExitCode.NOT_PERMITTED,
        "agent.not_allowed": ExitCode.NOT_PERMITTED,
        "agent.not_found": ExitCode.USAGE,
        "agent.not_trusted": ExitCode.NOT_PERMITTED,
        "agent.signature_wrong": ExitCode.NOT_PERMITTED,
        "artifact.": ExitCode.BUILD_FAILED,
        "artifact.not_found": ExitCode.USAGE,
        "auth.": ExitCode.NOT_PERMITTED,
        "board.": ExitCode.BOARD,
        "board.not_allowed": ExitCode.NOT_PERMITTED,
        "board.not_granted": ExitCode.NOT_PERMITTED,
        "build.": ExitCode.BUILD_FAILED,
        "build.canceled": ExitCode.CANCELED,
        "build.silent": ExitCode.TIMED_OUT,
        "build.timed_out": ExitCode.TIMED_OUT,
        "bundle.": ExitCode.USAGE,
        "channel.": ExitCode.UNREACHABLE,
        "channel.not_allowed": ExitCode.NOT_PERMITTED,
        "channel.not_granted": ExitCode.NOT_PERMITTED,
        "command.interrupted": ExitCode.INTERRUPTED,
        "config.": ExitCode.USAGE,
        "console.": ExitCode.BOARD,
        "control.": ExitCode.UNREACHABLE,
        "enroll.": ExitCode.NOT_PERMITTED,
        "flash.": ExitCode.BOARD,
        "flash.canceled": ExitCode.CANCELED,
        "frame.": ExitCode.UNREACHABLE,
        "grant.": ExitCode.NOT_PERMITTED,
        "issuer.": ExitCode.USAGE,
        "job.canceled": ExitCode.CANCELED,
        "job.not_found": ExitCode.USAGE,
        "job.over": ExitCode.USAGE,
        "job.wait_expired": ExitCode.TIMED_OUT,
        "key.": ExitCode.USAGE,
        "lease.": ExitCode.BOARD,
        "link.": ExitCode.UNREACHABLE,
        "message.": ExitCode.UNREACHABLE,
        "method.": ExitCode.UNREACHABLE,
        "monitor.": ExitCode.MONITOR,
        "origin.": ExitCode.NOT_PERMITTED,
        "output.": ExitCode.USAGE,
        "path.": ExitCode.UNREACHABLE,
        "policy.": ExitCode.NOT_PERMITTED,
        "priority.": ExitCode.NOT_PERMITTED,
        "project.": ExitCode.BUILD_FAILED,
        "protocol.": ExitCode.UNREACHABLE,
        "request.": ExitCode.USAGE,
        "request.rate_limited": ExitCode.UNREACHABLE,
        "request.too_slow": ExitCode.UNREACHABLE,
        "role.": ExitCode.NOT_PERMITTED,
        "rpc.": ExitCode.UNREACHABLE,
        "sandbox.": ExitCode.BUILD_FAILED,
        "sdp.": ExitCode.UNREACHABLE,
        "sdp.fingerprint_ambiguous": ExitCode.NOT_PERMITTED,
        "sdp.fingerprint_mismatch": ExitCode.NOT_PERMITTED,
        "session.": ExitCode.UNREACHABLE,
        "session.over": ExitCode.TIMED_OUT,
        "session.revoked": ExitCode.NOT_PERMITTED,
        "source.": ExitCode.USAGE,
        "store.": ExitCode.USAGE,
        "target.": ExitCode.USAGE,
        "target.not_allowed": ExitCode.NOT_PERMITTED,
        "task.": ExitCode.USAGE,
        "toolchain.": ExitCode.BUILD_FAILED,
        "transfer.": ExitCode.UNREACHABLE,
        "transfer.not_written": ExitCode.USAGE,
        "usage.": ExitCode.USAGE,
        "virtual_board.": ExitCode.BOARD,
        "workspace.": ExitCode.UNREACHABLE,
    }
)


def exit_code(code: str) -> ExitCode:
    """Return what to exit with for an error of this code."""
    fits = [row for row in ROWS if code == row or (row.endswith(".") and code.startswith(row))]
    return ROWS[max(fits, key=len)] if fits else ExitCode.INTERNAL
