"""`config`: what is in force and where it came from, and what is wrong."""

from __future__ import annotations

import json
from typing import Any

import typer
from pydantic import SecretStr

from aegis_control.commands.asking import Json
from aegis_control.commands.tables import print_table
from aegis_control.config_sources import Loaded, default_policy_file, env_names, load

app = typer.Typer(help="Settings.", no_args_is_help=True)


@app.command("show", epilog="Example: aegis-control config show --json")
def show(as_json: Json = False) -> None:
    """Print every setting, its value (secrets redacted) and where the value came from."""
    loaded = load()
    rows = _rows(loaded)
    if as_json:
        typer.echo(json.dumps({"settings": rows}, indent=2))
        return
    print_table(
        ("SETTING", "VALUE", "FROM"),
        [
            (row["name"], "" if row["value"] is None else str(row["value"]), row["from"])
            for row in rows
        ],
        whole=("SETTING",),
    )


@app.command("validate", epilog="Example: aegis-control config validate")
def validate(as_json: Json = False) -> None:
    """Say what is wrong with the settings and the files they name; exits 0 when nothing is."""
    loaded = load()
    _look_at_files(loaded)
    if as_json:
        found = {"unknown": list(loaded.unknown), "unreadable": list(loaded.unreadable)}
        typer.echo(json.dumps({"status": "ok", **found}))
        return
    for path in loaded.unreadable:
        typer.echo(f"not readable for this user: {path}", err=True)
    for line in loaded.unknown:
        typer.echo(f"not a setting of control: {line}", err=True)
    typer.echo("The settings are good.")


def _look_at_files(loaded: Loaded) -> None:
    """Raise as `serve` does when a file that the settings name is not there or is wrong."""
    # imported here: it takes long to load, and `show` needs none of it
    from aegis_control.policy.in_force import standing_of
    from aegis_control.serve import tls_of

    config = loaded.config
    standing_of(config.policy_file, required=config.policy_file != default_policy_file())
    tls_of(config)


def _rows(loaded: Loaded) -> list[dict[str, Any]]:
    rows = []
    for field, name in env_names().items():
        value = getattr(loaded.config, field)
        rows.append({"name": name, "value": _shown(value), "from": loaded.origins[name]})
    return rows


def _shown(value: Any) -> Any:
    match value:
        case SecretStr():
            return "[set]"
        case None:
            return None
        case tuple():
            return ", ".join(str(item) for item in value)
        case bool() | int() | float():
            return value
        case _:
            return str(value)
