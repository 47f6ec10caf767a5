"""`list-boards`: every board of every agent, and who has it."""

from __future__ import annotations

import typer
from aegis_protocol.http_api.boards import BoardList, BoardRow

from aegis_control.commands.asking import Asking, Json, KeyFile, State, Url
from aegis_control.commands.tables import print_table
from aegis_control.commands.times import minute


def list_boards(
    url: Url = None, key_file: KeyFile = None, state_dir: State = None, as_json: Json = False
) -> None:
    """Show the boards: chip, agent, state, labels."""
    found = Asking(url, key_file, state_dir).get("/boards", BoardList)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    if not found.boards:
        typer.echo("No agent has a board. docs/agent.md says how agents come by them.")
        return
    print_table(
        ("ID", "CHIP", "AGENT", "STATE", "LABELS"),
        [
            (
                row.board.id,
                row.board.chip or "unknown",
                f"{row.agent_name} ({row.agent_state})",
                _state(row),
                " ".join(f"{name}={value}" for name, value in row.board.labels.items()),
            )
            for row in found.boards
        ],
        whole=("ID",),
    )


def _state(row: BoardRow) -> str:
    state = f"{row.board.state} by {row.holder}" if row.holder else str(row.board.state)
    if row.leased_until is None:
        return state
    return f"{state}, leased by {row.leased_by} until {minute(row.leased_until)}"
