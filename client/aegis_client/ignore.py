"""Which files of a project stay at home: .gitignore and .aegisignore, as git reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from aegis_client.failures import SourceUnreadable

FILES: Final = (".gitignore", ".aegisignore")
ALWAYS: Final = frozenset({".git", ".pio", ".aegis"})
"""Never sent, wherever they are: history, build output, our own notes."""


class IgnoreRules:
    """
    The rules that hold in one folder: its own, then those of the folders above it.

    The deepest file that says something about a path decides; in one folder .aegisignore comes
    after .gitignore and may take a file back in with `!`. What lies in an ignored folder is
    ignored, whatever is said about it.
    """

    def __init__(self, specs: Sequence[tuple[str, GitIgnoreSpec]] = ()) -> None:
        self._specs = tuple(specs)

    def within(self, folder: Path, prefix: str) -> IgnoreRules:
        """
        The rules inside `folder`, whose path in the project is `prefix` (`""` or ending in `/`).

        Raises SourceUnreadable.
        """
        lines: list[str] = []
        for name in FILES:
            try:
                text = (folder / name).read_bytes().decode("utf-8", "surrogateescape")
            except (FileNotFoundError, IsADirectoryError):
                continue
            except OSError as exc:
                raise SourceUnreadable(f"{prefix}{name}: {exc.strerror}") from exc
            lines += text.splitlines()
        if not lines:
            return self
        return IgnoreRules((*self._specs, (prefix, GitIgnoreSpec.from_lines(lines))))

    def ignored(self, path: str, *, folder: bool) -> bool:
        """Tell whether `path` (in the project, with `/`) stays at home."""
        if path.rpartition("/")[2] in ALWAYS:
            return True
        for prefix, spec in reversed(self._specs):
            relative = path[len(prefix) :] + ("/" if folder else "")
            decided = spec.check_file(relative).include
            if decided is not None:
                return decided
        return False
