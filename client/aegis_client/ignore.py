"""Which files of a project stay at home: .gitignore and .aegisignore, as git reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from aegis_client.failures import SourceUnreadable

FILES: Final = (".gitignore", ".aegisignore")
ALWAYS: Final = frozenset({".git", ".pio", ".aegis"})
"""Never sent, wherever they are: history, build output, our own notes."""


@dataclass(frozen=True)
class _Spec:
    """
    The rules of one folder.

    prefix  its path in the project, `""` or ending in `/`
    way     from a folder above the project to the project, likewise
    """

    prefix: str
    way: str
    spec: GitIgnoreSpec


class IgnoreRules:
    """
    The rules that hold in one folder: its own, then those of the folders above it.

    The deepest file that says something about a path decides; in one folder .aegisignore comes
    after .gitignore and may take a file back in with `!`. What lies in an ignored folder is
    ignored, whatever is said about it.
    """

    def __init__(self, specs: Sequence[_Spec] = ()) -> None:
        self._specs = tuple(specs)

    @classmethod
    def around(cls, root: Path) -> IgnoreRules:
        """
        The rules of the .gitignore files above `root`, up to the top of the repository that it
        lies in: none where it lies in none, and none where they ignore `root` itself, since
        whoever sends it means it.

        Raises SourceUnreadable.
        """
        folders = [root, *root.parents]
        top = next((n for n, folder in enumerate(folders) if _is_repository(folder)), 0)
        specs: list[_Spec] = []
        for folder in reversed(folders[1 : top + 1]):
            lines = _lines(folder, FILES[:1], f"{folder}/")
            if not lines:
                continue
            spec = GitIgnoreSpec.from_lines(lines)
            way = root.relative_to(folder).parts
            steps = ["/".join(way[: n + 1]) + "/" for n in range(len(way))]
            if any(spec.check_file(step).include for step in steps):
                return cls()
            specs.append(_Spec("", steps[-1], spec))
        return cls(specs)

    def within(self, folder: Path, prefix: str) -> IgnoreRules:
        """
        The rules inside `folder`, whose path in the project is `prefix` (`""` or ending in `/`).

        Raises SourceUnreadable.
        """
        lines = _lines(folder, FILES, prefix)
        if not lines:
            return self
        return IgnoreRules((*self._specs, _Spec(prefix, "", GitIgnoreSpec.from_lines(lines))))

    def ignored(self, path: str, *, folder: bool) -> bool:
        """Tell whether `path` (in the project, with `/`) stays at home."""
        if path.rpartition("/")[2] in ALWAYS:
            return True
        for rules in reversed(self._specs):
            relative = rules.way + path[len(rules.prefix) :] + ("/" if folder else "")
            decided = rules.spec.check_file(relative).include
            if decided is not None:
                return decided
        return False


def _is_repository(folder: Path) -> bool:
    try:
        return (folder / ".git").exists()
    except OSError:
        return False  # what can't be looked into is not the user's repository


def _lines(folder: Path, names: Sequence[str], shown: str) -> list[str]:
    lines: list[str] = []
    for name in names:
        try:
            text = (folder / name).read_bytes().decode("utf-8", "surrogateescape")
        except (FileNotFoundError, IsADirectoryError):
            continue
        except OSError as exc:
            raise SourceUnreadable(f"{shown}{name}: {exc.strerror}") from exc
        lines += text.splitlines()
    return lines
