"""From what a build left behind to its artifacts: images, ELF, map, manifest, signature, bundle."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from aegis_protocol.failures.build import ArtifactMissing, ArtifactUnsafe, BuildFailed
from aegis_protocol.manifest import Artifact, FlashImage, Manifest, ToolchainUsed
from aegis_protocol.signing import manifest_statement
from pydantic import ValidationError

from aegis_agent.build.bundle import write_bundle
from aegis_agent.build.opened import copy_out, read_out
from aegis_agent.results import ResultDraft
from aegis_agent.toolchains import BuildPlan, Described, ToolchainKind

BUNDLE: Final = "flash_bundle.tar.gz"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"

_IMAGE_BYTES: Final = 64 << 20
_ELF_BYTES: Final = 512 << 20
_DESCRIPTION_BYTES: Final = 4 << 20
_SECTOR: Final = 4096
_RESERVED: Final = frozenset(
    {BUNDLE, MANIFEST, SIGNATURE, "build.json", "build.log", "diagnostics.json"}
)
# esp_app_desc_t (esp_app_format), after the image's header of 24 bytes and one segment's of 8.
_DESCRIPTION: Final = struct.Struct("<II8x32s32s")
_DESCRIPTION_AT: Final = 32
_DESCRIPTION_MAGIC: Final = 0xABCD5432
_COMPILER: Final = re.compile(rb"GCC: \(([^)\0\n]{0,80})\) (\d[0-9.]{0,20})")
_COMPILER_WINDOW: Final = 1 << 20


@dataclass(frozen=True)
class Collection:
    """
    writable  folders in the sandbox that the build wrote in, each with this machine's
    sign      the agent's signature over a statement
    """

    plan: BuildPlan
    target: str
    source_sha256: str
    writable: Mapping[str, Path]
    sign: Callable[[bytes], bytes]

    def collect(self, kind: ToolchainKind, draft: ResultDraft) -> Manifest:
        """
        Put everything into `draft`. Blocks.

        Raises ArtifactMissing, ArtifactUnsafe, BuildFailed (what can't be flashed).
        """
        try:
            described = kind.described(self.plan, self._read)
        except ValueError as exc:
            raise BuildFailed(f"the toolchain did not say what it built: {_brief(exc)}") from exc
        images = self._images(described, draft)
        elf = self._optional(described.elf, "elf", draft)
        self._optional(described.map, "map", draft)
        name, version = "", ""
        for image in images:
            if image.name == "app":
                name, version = _description(draft.path(image.path))
        manifest = Manifest(
            project=(described.project or name or "firmware")[:200],
            version=(described.version or version)[:80],
            environment=self.plan.environment,
            target=self.target,
            images=tuple(images),
            toolchain=ToolchainUsed(
                kind=self.plan.kind,
                version=self.plan.version,
                platform=self.plan.platform[:200],
                compiler=_compiler(draft.path(elf.name)) if elf else "",
            ),
            source_sha256=self.source_sha256,
            elf=elf.name if elf else None,
            elf_sha256=elf.sha256 if elf else None,
        )
        raw = manifest.to_bytes()
        draft.write(MANIFEST, "manifest", raw)
        draft.write(SIGNATURE, "signature", self.sign(manifest_statement(raw)))
        members = [MANIFEST, SIGNATURE, *(image.path for image in images)]
        write_bundle(draft.path(BUNDLE), [draft.path(member) for member in members])
        draft.add(BUNDLE, "bundle")
        return manifest

    def _images(self, described: Described, draft: ResultDraft) -> list[FlashImage]:
        images: list[FlashImage] = []
        for wanted in sorted(described.images, key=lambda image: image.offset):
            if wanted.offset < 0 or wanted.offset % _SECTOR:
                raise BuildFailed(
                    f"{wanted.name} is to lie at {wanted.offset:#x}, which is no sector's start",
                    remedy="Offsets of images are multiples of 0x1000.",
                )
            artifact = self._take(wanted.path, "image", draft, max_bytes=_IMAGE_BYTES)
            last = images[-1] if images else None
            if last is not None and last.offset + last.size_bytes > wanted.offset:
                raise BuildFailed(
                    f"{last.name} ({last.size_bytes} bytes at {last.offset:#x}) reaches into "
                    f"{wanted.name} at {wanted.offset:#x}",
                    remedy="Choose other offsets, or a smaller image.",
                )
            images.append(
                FlashImage(
                    name=wanted.name[:80],
                    path=artifact.name,
                    offset=wanted.offset,
                    size_bytes=artifact.size_bytes,
                    sha256=artifact.sha256,
                )
            )
        return images

    def _optional(self, path: str | None, kind: str, draft: ResultDraft) -> Artifact | None:
        if path is None:
            return None
        try:
            return self._take(path, kind, draft, max_bytes=_ELF_BYTES)
        except ArtifactMissing:
            return None

    def _read(self, path: str) -> bytes:
        root, below = locate(path, self.writable, self.plan.shared)
        return read_out(root, below, max_bytes=_DESCRIPTION_BYTES)

    def _take(self, path: str, kind: str, draft: ResultDraft, *, max_bytes: int) -> Artifact:
        root, below = locate(path, self.writable, self.plan.shared)
        name = _artifact_name(below.name, [one.name for one in draft.artifacts])
        copy_out(root, below, draft.path(name), max_bytes=max_bytes)
        return draft.add(name, kind)


def locate(
    path: str, writable: Mapping[str, Path], shared: Mapping[str, Path]
) -> tuple[Path, PurePosixPath]:
    """
    Return where a path that the build named lies: a folder of this machine, and the path below it.

    writable  folders in the sandbox that builds write in: nothing below is followed here
    shared    read-only folders of a toolchain, whose own links are followed, inside of it
    """
    named = PurePosixPath(path)
    prefixes = sorted((*writable, *shared), key=len, reverse=True)
    prefix = next((one for one in prefixes if named.is_relative_to(one)), None)
    if prefix is not None and ".." not in named.parts:
        below = named.relative_to(prefix)
        if prefix in writable:
            return writable[prefix], below
        root = shared[prefix].resolve()
        found = root.joinpath(*below.parts).resolve()
        if found.is_relative_to(root):
            return root, PurePosixPath(found.relative_to(root))
    raise ArtifactUnsafe(f"{path[:300]} lies outside of the build", path=path[:300])


def _brief(exc: ValueError) -> str:
    if isinstance(exc, ValidationError):
        wrong = exc.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}"[:500]
    return str(exc)[:500]


def _artifact_name(wanted: str, taken: Sequence[str]) -> str:
    clean = re.sub(r"[^A-Za-z0-9_.+-]", "_", wanted).lstrip(".+-")[:150] or "file"
    name, number = clean, 2
    while name in taken or name in _RESERVED:
        name, number = f"{number}-{clean}", number + 1
    return name


def _description(image: Path) -> tuple[str, str]:
    """The project's name and version as the application image says them; empty where it doesn't."""
    with image.open("rb") as file:
        file.seek(_DESCRIPTION_AT)
        raw = file.read(_DESCRIPTION.size)
    if len(raw) < _DESCRIPTION.size:
        return "", ""
    magic, _, version, name = _DESCRIPTION.unpack(raw)
    if magic != _DESCRIPTION_MAGIC:
        return "", ""
    return _c_text(name), _c_text(version)


def _c_text(raw: bytes) -> str:
    text = raw.split(b"\0")[0].decode("utf-8", "replace")
    return "".join(c for c in text if c.isprintable())


def _compiler(elf: Path) -> str:
    """What GCC wrote into .comment; the same for every build of one toolchain."""
    overlap = b""
    with elf.open("rb") as file:
        while chunk := file.read(_COMPILER_WINDOW):
            match = _COMPILER.search(overlap + chunk)
            if match:
                packager, version = match[1].decode("ascii", "replace"), match[2].decode()
                return f"GCC {version} ({packager})"
            overlap = chunk[-128:]
    return ""
