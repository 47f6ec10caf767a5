"""Where the Python behind a virtual environment lies, so that a sandbox can show it."""

from __future__ import annotations

from pathlib import Path


def base_prefix(venv: Path) -> Path | None:
    """
    Return the folder that holds `venv`'s base interpreter and its library, or None when it is a
    part of /usr, which every sandbox shows. Read from pyvenv.cfg (PEP 405), nothing is run.
    """
    python = (venv / "bin" / "python").resolve()
    prefix = python.parent.parent
    if prefix == Path("/usr") or prefix.is_relative_to("/usr"):
        return None
    return prefix
