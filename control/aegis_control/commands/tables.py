"""Tables for people, wide enough for a pipe to read each row on one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE: Final = 180


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, whole: Sequence[str] = ()
) -> None:
    """
    Print rows below their columns' names; those of `whole` are never broken. What stands in them
    is shown as it is, and can't steer the terminal.
    """
    console = Console()
    if console.width < _WIDE and not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def printable(text: str) -> str:
    """Text from elsewhere (a name, a reason, a note) without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
