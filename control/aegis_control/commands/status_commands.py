"""`status`: how the control is doing, once or again and again."""

from __future__ import annotations

import json
import time
from typing import Annotated, Final

import typer
from aegis_protocol.http_api.status import ControlStatus
from rich.console import Console

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import ago

_EVERY_S: Final = 2.0
_MIB: Final = 1 << 20


def status(
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Print what Prometheus would read, too.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again every two seconds, until Ctrl-C.")
    ] = False,
    url: Url = None,
    key_file: KeyFile = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show how control is doing: process, address, store, replicas, agents, jobs, what was slow."""
    asking = Asking(url, key_file, state_dir)
    console = Console()
    while True:
        found = asking.get("/services/status", ControlStatus)
        counted = asking.text("/metrics") if metrics else ""
        if watch and console.is_terminal and not as_json:
            console.clear()
        if as_json:
            _print_json(found, counted, lines=watch)
        else:
            _print(found)
            if metrics:
                typer.echo(f"\n{counted}", nl=False)
        if not watch:
            return
        try:
            time.sleep(_EVERY_S)
        except KeyboardInterrupt:
            return


def _print_json(found: ControlStatus, counted: str, *, lines: bool) -> None:
    """One object; with --watch one on each line."""
    shown = found.model_dump(mode="json")
    if counted:
        shown["metrics"] = counted
    typer.echo(json.dumps(shown, indent=None if lines else 2))


def _print(found: ControlStatus) -> None:
    rows = [
        ("process", f"{found.pid}, up since {ago(found.started_at).removesuffix(' ago')}"),
        ("version", f"{found.version}, protocol {found.protocol}"),
        ("address", f"{found.base_url} (listens on {found.listen})"),
        ("state", found.state_dir),
        ("store", _store(found)),
        ("memory", f"{found.resident_bytes // _MIB} MiB"),
        ("agents", _counts(found.agents) or _none(found, "none is enrolled")),
        ("jobs", _counts(found.jobs) or _none(found, "none")),
        ("links, event streams", f"{found.links}, {found.event_streams}"),
        ("slow operations", _counts(found.slow) or f"none over {found.slow_ms} ms"),
    ]
    rows += [
        ("replica", f"{one.name} {one.version}, {_life(one.alive)}{', this one' * one.here}")
        for one in found.replicas
    ]
    print_table(("WHAT", "IS"), rows, whole=("WHAT",))
    if found.slow_recent:
        typer.echo()
        print_table(
            ("SLOW", "KIND", "TOOK", "WHEN"),
            [
                (one.what, one.kind, f"{one.took_ms} ms", ago(one.at))
                for one in reversed(found.slow_recent)
            ],
        )


def _store(found: ControlStatus) -> str:
    if not found.store_ok:
        return f"{found.store}: does not answer, or takes nothing"
    return f"{found.store}, tables of revision {found.schema_revision}"


def _none(found: ControlStatus, words: str) -> str:
    return words if found.store_ok else "not known without the store"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def _life(alive: bool) -> str:
    return "alive" if alive else "dead"
