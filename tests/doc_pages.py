"""A page of docs/ as its sections: each heading with its prose and its fenced examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from house import ROOT

_HEADING: Final = re.compile(r"^(#{2,4}) (.+)$")


@dataclass(frozen=True)
class Example:
    """A fenced block: its language and what stands in it."""

    language: str
    text: str


@dataclass
class Section:
    """under: the headings above this one, the outermost first."""

    title: str
    under: tuple[str, ...]
    prose: str = ""
    examples: list[Example] = field(default_factory=list)

    def written_in(self, language: str) -> list[str]:
        return [example.text for example in self.examples if example.language == language]

    def table(self) -> list[tuple[str, ...]]:
        """The cells of every table in the section, without its head."""
        rows = [line for line in self.prose.splitlines() if line.startswith("|")]
        found: list[tuple[str, ...]] = []
        for number, row in enumerate(rows):
            cells = tuple(cell.strip().replace("\\|", "|") for cell in _cells(row))
            ruled = number + 1 < len(rows) and set(rows[number + 1]) <= set("|- ")
            if not ruled and not set(row) <= set("|- "):
                found.append(cells)
        return found


def sections(name: str) -> list[Section]:
    """Read docs/NAME. A fence that is not closed fails the caller."""
    lines = iter((ROOT / "docs" / name).read_text(encoding="utf-8").splitlines())
    found: list[Section] = []
    above: dict[int, str] = {}
    for line in lines:
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            under = tuple(title for depth, title in sorted(above.items()) if depth < level)
            above = {d: t for d, t in above.items() if d < level} | {level: heading[2]}
            found.append(Section(heading[2], under))
        elif line.startswith("```"):
            example = Example(line[3:], _fenced(lines))
            if found:
                found[-1].examples.append(example)
        elif found:
            found[-1].prose += line + "\n"
    return found


def hex_bytes(text: str) -> bytes:
    """The bytes of a `hex` example: what stands before `#` on each line."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


def _fenced(lines: Iterator[str]) -> str:
    inside: list[str] = []
    for line in lines:
        if line == "```":
            return "\n".join(inside)
        inside.append(line)
    raise AssertionError("a fence is never closed")


def _cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)\|", row.strip())[1:-1]
