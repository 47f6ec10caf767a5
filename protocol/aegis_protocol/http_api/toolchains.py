"""Toolchains: what an agent has, and what a job wants."""

from __future__ import annotations

from pydantic import Field

from aegis_protocol.model import Id, TargetName, Wire


class ToolchainWish(Wire):
    """kind: platformio or esp-idf; version: a PEP 440 specifier such as `>=6.1`."""

    kind: Id
    version: str = Field(default="", max_length=80)


class Toolchain(Wire):
    """A toolchain that an agent has, with the targets that it can build for."""

    kind: Id
    version: str = Field(max_length=80)
    targets: tuple[TargetName, ...] = Field(default=(), max_length=64)
