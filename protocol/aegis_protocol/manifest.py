"""
What a build leaves behind: `manifest.json` (deterministic), `build.json` (times and machine),
and the diagnostics that were read from the compiler's output.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from aegis_protocol.model import Id, Sha256Hex, SizeBytes, TargetName, UnixSeconds, Wire


class FlashImage(Wire):
    """One region. offset: bytes from the start of the flash, a multiple of 4096 (but 0x1000 up)."""

    name: str = Field(max_length=80)
    """bootloader, partitions, app, or a file's own name."""
    path: str = Field(max_length=255)
    """The artifact's name."""
    offset: int = Field(ge=0, lt=1 << 32)
    size_bytes: SizeBytes
    sha256: Sha256Hex


class FlashSettings(Wire):
    """As esptool spells them; `keep` leaves an image's header as it was built."""

    mode: str = Field(default="keep", max_length=16)
    freq: str = Field(default="keep", max_length=16)
    size: str = Field(default="keep", max_length=16)


class ToolchainUsed(Wire):
    kind: Id
    version: str = Field(max_length=80)
    platform: str = Field(default="", max_length=200)
    compiler: str = Field(default="", max_length=200)


class Manifest(Wire):
    """The same source and toolchain give the same bytes of this: no time, host or job in it."""

    schema_version: Literal[1] = 1
    project: str = Field(max_length=200)
    version: str = Field(default="", max_length=80)
    environment: str = Field(default="", max_length=80)
    target: TargetName
    images: tuple[FlashImage, ...] = Field(max_length=32)
    flash: FlashSettings = Field(default_factory=FlashSettings)
    toolchain: ToolchainUsed
    source_sha256: Sha256Hex
    elf: str | None = Field(default=None, max_length=255)
    """The ELF's artifact name."""
    elf_sha256: Sha256Hex | None = None

    def to_bytes(self) -> bytes:
        """Its canonical bytes: what is written, signed and hashed."""
        return canonical(self.model_dump(mode="json"))


class Diagnostic(Wire):
    """One message of the compiler or linker. column is 0 where there is none; both start at 1."""

    severity: Literal["error", "warning", "note"]
    file: str = Field(default="", max_length=1024)
    line: int = 0
    column: int = 0
    message: str = Field(max_length=2000)
    flag: str = Field(default="", max_length=120)
    """Such as -Wunused-variable."""
    hint: str = Field(default="", max_length=500)


class SizeReport(Wire):
    """Bytes used and available; 0 available where the toolchain says none."""

    ram_used: int = 0
    ram_total: int = 0
    flash_used: int = 0
    flash_total: int = 0


class Artifact(Wire):
    name: str = Field(max_length=255)
    kind: Literal[
        "image", "elf", "map", "manifest", "signature", "bundle", "build", "diagnostics", "log",
        "other",
    ]  # fmt: skip
    size_bytes: SizeBytes
    sha256: Sha256Hex


class BuildInfo(Wire):
    """build.json: what differs from one build of the same source to the next."""

    schema_version: Literal[1] = 1
    task_id: Id
    job_id: Id
    agent_id: Id
    started_at: UnixSeconds
    ended_at: UnixSeconds
    agent_version: str
    warm: bool
    size: SizeReport | None = None


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, two spaces of indent and a newline at the end, UTF-8."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
