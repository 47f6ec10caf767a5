"""Every class of error in the five packages, found by reading them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

from aegis_protocol.errors import AegisError
from house import ROOT

PACKAGES: Final = {
    "aegis_protocol": ROOT / "protocol",
    "aegis_links": ROOT / "links",
    "aegis_control": ROOT / "control",
    "aegis_agent": ROOT / "agent",
    "aegis_client": ROOT / "client",
}


@cache
def error_classes() -> dict[tuple[str, str], type[AegisError]]:
    """
    By package and code; two packages may have a code of one name for themselves.

    Only modules with such a class are imported: some modules of the agent run in PlatformIO's own
    environment and can't be imported here.
    """
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            if _names_a_code(path):
                import_module(".".join(path.relative_to(folder).with_suffix("").parts))
    found: dict[tuple[str, str], type[AegisError]] = {}
    every: list[type[AegisError]] = [AegisError, *_below(AegisError)]
    for cls in every:
        package = cls.__module__.partition(".")[0]
        if package in PACKAGES and "code" in cls.__dict__:
            assert found.setdefault((package, cls.code), cls) is cls, f"{cls.code} is there twice"
    return found


def _below(cls: type[AegisError]) -> Iterator[type[AegisError]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def _names_a_code(path: Path) -> bool:
    classes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.ClassDef)]
    return any(
        isinstance(target, ast.Name) and target.id == "code"
        for found in classes
        for line in found.body
        if isinstance(line, ast.Assign)
        for target in line.targets
    )
