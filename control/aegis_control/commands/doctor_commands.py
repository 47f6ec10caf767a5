"""`doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

import typer
from aegis_protocol.errors import AegisError
from aegis_protocol.http_api.agents import AgentList
from aegis_protocol.http_api.jobs import JobList
from aegis_protocol.http_api.keys import KeyList
from aegis_protocol.http_api.status import ControlStatus

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.config_sources import Loaded, load
from aegis_control.doctor.check import Diagnosis
from aegis_control.doctor.subject import Answers, Machine, Subject, as_owner_of

_FOUND_ERRORS: Final = 1


def doctor(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """
    Check control and its surroundings: settings, secrets, store, disk, clock, TLS, TURN, agents.

    Works with control running or not. With --url only what can be seen of a control elsewhere.
    Exits 1 when a check is an error; warnings alone exit 0.
    """
    found = diagnose(url, key_file, state_dir, Machine())
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        print_table(
            ("CHECK", "STATUS", "DETAIL"),
            [
                (c.name, c.status, c.detail + (f"\n-> {c.remedy}" if c.remedy else ""))
                for c in found.checks
            ],
            whole=("STATUS",),
        )
        typer.echo(f"\n{found.status}: {_counted(found)}")
    if found.status == "error":
        raise typer.Exit(_FOUND_ERRORS)


def diagnose(
    url: str | None, key_file: Path | None, state_dir: Path | None, machine: Machine
) -> Diagnosis:
    """Ask the control, then look at everything with the eyes of its user."""
    # imported here: it takes long to load, and other commands need none of it
    from aegis_control.doctor.examination import examine

    loaded, refused = _settings(state_dir) if url is None else (None, None)
    answers: Answers | None = None
    unreached: AegisError | None = refused
    if refused is None:
        try:
            answers = _answers(Asking(url, key_file, state_dir))
        except AegisError as exc:
            unreached = exc
    subject = Subject(loaded, refused, answers, unreached, url, machine)
    if loaded is None:
        return asyncio.run(examine(subject))
    with as_owner_of(loaded.config.state_dir):
        return asyncio.run(examine(subject))


def _settings(state_dir: Path | None) -> tuple[Loaded | None, AegisError | None]:
    try:
        return load(state_dir=state_dir), None
    except AegisError as exc:
        return None, exc


def _answers(asking: Asking) -> Answers:
    status = asking.get("/services/status", ControlStatus)
    if not status.store_ok:
        return Answers(status, (), ())
    return Answers(
        status,
        asking.get("/agents", AgentList).agents,
        asking.get("/jobs?limit=1000", JobList).jobs,
        asking.get("/services/keys", KeyList).keys,
    )


def _counted(found: Diagnosis) -> str:
    counts = {
        status: sum(check.status == status for check in found.checks)
        for status in ("ok", "warning", "error", "skipped")
    }
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)
