"""How a command ends: an error as one line (or one object), and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import typer
from aegis_protocol.errors import AegisError, ErrorReply

from aegis_control.commands.tables import printable

EXIT_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "config.": 3,
        "policy.invalid": 3,
        "control.state_": 4,
        "store.": 4,
        "control.listen_failed": 5,
        "control.unreachable": 6,
        "control.unavailable": 6,
        "control.answer_invalid": 6,
        "auth.": 7,
        "role.": 7,
        "request.": 9,
    }
)
"""
By the beginning of the error's code; 8 is whatever `…not_found` there is not. 0 is success, 1 any
other error, 2 a wrong command line.
"""


def exit_code(code: str) -> int:
    """Return the exit code of an error's code."""
    if code.endswith("not_found"):
        return 8
    return next((number for start, number in EXIT_CODES.items() if code.startswith(start)), 1)


def fail(error: AegisError, *, as_json: bool) -> int:
    """Print `error` to stderr and return the exit code."""
    body = error.body()
    if as_json:
        typer.echo(ErrorReply(error=body).model_dump_json(), err=True)
    else:
        text = f"aegis-control: {body.message} [{body.code}]\n  {body.remedy}"
        typer.echo(printable(text), err=True)
    return exit_code(body.code)


def done(facts: Mapping[str, str], words: str, *, as_json: bool) -> None:
    """Say what a command did that has nothing to show."""
    typer.echo(json.dumps(dict(facts)) if as_json else printable(words))
