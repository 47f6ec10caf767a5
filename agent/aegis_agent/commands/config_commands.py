"""`config`: what is in force and where it came from, and what is wrong."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from aegis_agent.commands.asking import AsJson, print_json
from aegis_agent.http import trust
from aegis_agent.settings import Loaded, env_names, load_all

app = typer.Typer(help="The settings in force.", no_args_is_help=True)


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Print every setting, its value (secrets redacted) and where the value came from."""
    loaded = load_all()
    rows = _rows(loaded)
    boards = [board.model_dump(mode="json") for board in loaded.config.boards]
    if as_json:
        print_json({"settings": rows, "boards": boards})
        return
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], "" if row["value"] is None else str(row["value"]), row["from"])
    Console(soft_wrap=True).print(table)
    for board in loaded.config.boards:
        typer.echo(f"board {board.id}: {board.chip or 'any chip'} at {board.port}")


@app.command("validate")
def validate(as_json: AsJson = False) -> None:
    """Say what is wrong with the settings, and how to mend it; exits 0 when nothing is."""
    loaded = load_all()
    trust(loaded.config.ca_file)
    if as_json:
        found = {"unknown": list(loaded.unknown), "unreadable": list(loaded.unreadable)}
        print_json({"status": "ok", **found})
        return
    for path in loaded.unreadable:
        typer.echo(f"not readable for this user: {path}", err=True)
    for line in loaded.unknown:
        typer.echo(f"not a setting of the agent: {line}", err=True)
    typer.echo("The settings are valid.")


def _rows(loaded: Loaded) -> list[dict[str, Any]]:
    values = loaded.config.model_dump(mode="json")
    rows = []
    for field, name in env_names().items():
        is_secret = isinstance(getattr(loaded.config, field), SecretStr)
        shown = "[set]" if is_secret else values[field]
        rows.append({"name": name, "value": shown, "from": loaded.origins[name]})
    return rows
