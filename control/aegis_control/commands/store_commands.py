"""`migrate` and `reset`: what an operator does with the store while no control runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from aegis_protocol.failures.http import BadRequest

from aegis_control.commands.asking import Json, State
from aegis_control.config import ControlConfig
from aegis_control.config_sources import load
from aegis_control.state_dir import StateDir, StateUnusable


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is missing; exits 1 when something is.")
    ] = False,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Bring the store's tables up to date. `serve` does the same when it starts."""
    from aegis_control.store.database import bring_up_to_date, look_at_schema

    config = load(state_dir=state_dir).config
    StateDir(config.state_dir).make()
    before = asyncio.run((look_at_schema if check else bring_up_to_date)(config.database))
    if as_json:
        body = {"before": before.current, "newest": before.newest, "missing": before.missing}
        typer.echo(json.dumps(body | {"done": not check}))
    elif not before.missing:
        typer.echo(f"The tables are up to date: revision {before.newest}.")
    else:
        done = "missing" if check else "done"
        typer.echo(
            f"from {before.current or 'nothing'} to {before.newest};"
            f" {done}: {', '.join(before.missing)}"
        )
    if check and before.missing:
        raise typer.Exit(1)


def reset(
    yes: Annotated[
        bool,
        typer.Option(
            "--yes-delete-everything",
            help="Delete all jobs, keys and agents, and control's own secrets, for ever.",
        ),
    ] = False,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Delete the store and control's keys. Every agent must be enrolled again after that."""
    config = load(state_dir=state_dir).config
    state = StateDir(config.state_dir)
    if not yes:
        raise BadRequest(
            f"this deletes the store {_kind(config)} and what control keeps in {state.path}",
            remedy="Say --yes-delete-everything if that is what you want.",
            field="--yes-delete-everything",
        )
    if not state.path.is_dir():
        raise StateUnusable(f"there is no {state.path}", path=str(state.path))
    deleted = _delete(config, state)
    if as_json:
        typer.echo(json.dumps({"deleted": deleted}))
        return
    for one in deleted:
        typer.echo(f"deleted {one}")
    if not deleted:
        typer.echo("There was nothing to delete.")


def _delete(config: ControlConfig, state: StateDir) -> list[str]:
    from aegis_control.store.deletion import delete_store

    with state.held():
        deleted = list(asyncio.run(delete_store(config.database)))
        for path in _secrets(state):
            path.unlink()
            deleted.append(str(path))
    return deleted


def _secrets(state: StateDir) -> list[Path]:
    ours = (state.issuer_key, state.pepper, state.operator_key, state.socket)
    return [path for path in ours if path.exists()]


def _kind(config: ControlConfig) -> str:
    return "in PostgreSQL" if config.database.startswith("postgresql") else "(SQLite)"
