"""
Finds ESP-IDF installations, from their files alone: nothing of them is run.

    ~/.espressif/tools/eim_idf.json  what Espressif's installation manager (EIM) has installed
    $IDF_PATH                        a checkout, with $IDF_TOOLS_PATH or ~/.espressif
    idf-env.json                     in the tools folder: checkouts, and the targets installed
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_JSON_BYTES: Final = 4 << 20
_TARGET: Final = re.compile(r"^[a-z][a-z0-9]{1,19}$")
_VERSION_PART: Final = re.compile(r"set\s*\(\s*IDF_VERSION_(MAJOR|MINOR|PATCH)\s+(\d+)\s*\)")


@dataclass(frozen=True)
class IdfInstallation:
    """
    path     the checkout: IDF_PATH
    tools    compilers and Python environments: IDF_TOOLS_PATH
    targets  the chips that both have
    """

    path: Path
    tools: Path
    version: str
    targets: tuple[str, ...]


def find_installations(environ: Mapping[str, str], home: Path) -> list[IdfInstallation]:
    """
    Return every usable installation, the newest version first.

    environ  for IDF_PATH and IDF_TOOLS_PATH
    home     the user's, for ~/.espressif
    """
    tools = Path(environ.get("IDF_TOOLS_PATH") or home / ".espressif")
    candidates = list(_from_eim(tools / "tools" / "eim_idf.json", tools))
    if environ.get("IDF_PATH"):
        candidates.append((Path(environ["IDF_PATH"]), tools))
    candidates += [(path, tools) for path in _from_idf_env(tools)]
    found: dict[Path, IdfInstallation] = {}
    for path, its_tools in candidates:
        installation = _inspect(path, its_tools)
        if installation is not None:
            found.setdefault(path.resolve(), installation)
    return sorted(found.values(), key=lambda one: _sortable(one.version), reverse=True)


def _inspect(path: Path, tools: Path) -> IdfInstallation | None:
    if not (path / "tools" / "idf.py").is_file() or not (tools / "python_env").is_dir():
        return None
    version = _version(path)
    supported = _supported(path / "tools" / "idf_py_actions" / "constants.py")
    installed = _installed_targets(tools, path)
    targets = supported if installed is None else tuple(t for t in supported if t in installed)
    if version is None or not targets:
        return None
    return IdfInstallation(path.resolve(), tools.resolve(), version, targets)


def _version(path: Path) -> str | None:
    try:
        text = (path / "version.txt").read_text(encoding="utf-8").strip()
        if text:
            return text.removeprefix("v")[:80]
    except (OSError, UnicodeDecodeError):
        pass
    try:
        cmake = (path / "tools" / "cmake" / "version.cmake").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    parts = dict(_VERSION_PART.findall(cmake))
    if set(parts) != {"MAJOR", "MINOR", "PATCH"}:
        return None
    return f"{parts['MAJOR']}.{parts['MINOR']}.{parts['PATCH']}"


def _supported(constants: Path) -> tuple[str, ...]:
    """The literals SUPPORTED_TARGETS and PREVIEW_TARGETS, read without running the file."""
    try:
        tree = ast.parse(constants.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    targets: list[str] = []
    for node in tree.body:
        names = [target for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if not any(name.id in ("SUPPORTED_TARGETS", "PREVIEW_TARGETS") for name in names):
            continue
        try:
            value = ast.literal_eval(getattr(node, "value", None))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            continue
        targets += [one for one in value if isinstance(one, str) and _TARGET.match(one)]
    return tuple(targets)


def _installed_targets(tools: Path, path: Path) -> set[str] | None:
    """The targets that `install.sh` was asked for; None when that is not known, or all."""
    for entry in _idf_env(tools):
        targets = entry.get("targets")
        if entry.get("path") == str(path) and isinstance(targets, list) and targets:
            return None if "all" in targets else {str(one) for one in targets}
    return None


def _from_eim(path: Path, tools: Path) -> Iterator[tuple[Path, Path]]:
    installed = _json(path).get("idfInstalled")
    for entry in installed if isinstance(installed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            its_tools = entry.get("idfToolsPath")
            yield Path(entry["path"]), Path(its_tools) if isinstance(its_tools, str) else tools


def _from_idf_env(tools: Path) -> Iterator[Path]:
    for entry in _idf_env(tools):
        if isinstance(entry.get("path"), str):
            yield Path(entry["path"])


def _idf_env(tools: Path) -> list[dict[str, Any]]:
    installed = _json(tools / "idf-env.json").get("idfInstalled")
    entries = installed.values() if isinstance(installed, dict) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _sortable(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
