"""
What a command prints: with `--json` one object on stdout, else tables and lines for people.

Notes and progress go to stderr, errors too; with `--json` as `{"error": …}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aegis_protocol.errors import AegisError
    from rich.console import Console

_PIPE_COLS: Final = 1000


@dataclass(frozen=True)
class Output:
    """How to print. quiet: results and errors only."""

    json: bool = False
    quiet: bool = False

    @cached_property
    def stdout(self) -> Console:
        from rich.console import Console

        # Into a pipe a line is as long as it needs to be: nothing is cut off or wrapped there.
        return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLS)

    @cached_property
    def stderr(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def talks(self) -> bool:
        """Whether notes and progress are wanted."""
        return not (self.json or self.quiet)

    def result(self, data: Mapping[str, Any]) -> None:
        """The one object of a command with `--json`; nothing otherwise."""
        if self.json:
            sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """A line of the result, for people."""
        if not self.json:
            self.stdout.print(_clean(text), markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line beside the result, for people."""
        if self.talks:
            self.stderr.print(_clean(text), markup=False, style="dim")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self.json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        named = any(columns)
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=named)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_plain(cell) for cell in row))
        if sys.stdout.isatty():
            self.stdout.print(table)
            return
        with self.stdout.capture() as captured:
            self.stdout.print(table)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def error(self, error: AegisError) -> None:
        if self.json:
            body = {"error": error.body().model_dump(mode="json")}
            sys.stderr.write(json.dumps(body, ensure_ascii=False) + "\n")
            return
        self.stderr.print(
            f"error: {_clean(error.message)} ({error.code})", markup=False, style="red"
        )
        if error.remedy:
            self.stderr.print(f"       {_clean(error.remedy)}", markup=False)


def _plain(cell: str) -> str:
    from rich.markup import escape

    return escape(_clean(cell))


def _clean(text: str) -> str:
    """Text from elsewhere without the control characters that a terminal would obey."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
