"""
Unpacking a flash_bundle.tar.gz that a client sent: it may be hostile.

Read by our own few lines and not by `tarfile`, which follows whatever an archive asks for: headers
of any size, offsets backwards, links. Here the archive is one stream of plain files, read once
from its beginning to a limit: the manifest, its signature, and the images that it names, each of
the size and digest that the manifest says. Anything else is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from aegis_protocol.failures.board import ImageInvalid
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.manifest import FlashImage, Manifest
from pydantic import ValidationError

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
"""Of the archive, and of all that is in it."""
_MAX_SMALL_BYTES: Final = 256 * 1024
_MANIFEST: Final = "manifest.json"
_SIGNATURE: Final = "manifest.sig"
_BLOCK_BYTES: Final = 512
_COPY_BYTES: Final = 256 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS

FlashImages = tuple[tuple[FlashImage, Path], ...]


def unpack(archive: Path, into: Path) -> tuple[Manifest, FlashImages]:
    """
    Return the bundle's manifest and its images as files in the new folder `into`.

    Raises ImageInvalid for anything but a bundle as `espctl build` makes it, and DiskFull;
    `into` may hold something then, and is the caller's to remove.
    """
    try:
        into.mkdir(mode=0o700)
        with archive.open("rb") as file:
            return _unpacked(_Unzipped(file), into)
    except OSError as exc:
        raise DiskFull(f"the bundle can't be unpacked: {exc.strerror}") from exc


def _unpacked(stream: _Unzipped, into: Path) -> tuple[Manifest, FlashImages]:
    manifest = _manifest(stream)
    wanted = {image.path: image for image in manifest.images}
    if len(wanted) != len(manifest.images):
        raise ImageInvalid("the manifest names one file twice")
    if sum(image.size_bytes for image in manifest.images) > MAX_BUNDLE_BYTES:
        raise ImageInvalid("the images together are larger than any board's flash")
    found: dict[str, Path] = {}
    may_be_signed = True
    for name, size_bytes in _members(stream):
        if name == _SIGNATURE and may_be_signed:
            may_be_signed = False
            _small(stream, name, size_bytes)
            continue
        image = wanted.get(name)
        if image is None or name in found or size_bytes != image.size_bytes:
            raise ImageInvalid("the bundle's content is not what its manifest says")
        found[name] = into / f"image-{len(found)}.bin"
        _copy(stream, image, found[name])
    if not found or len(found) != len(wanted):
        raise ImageInvalid("the bundle lacks an image that its manifest names")
    return manifest, tuple((image, found[image.path]) for image in manifest.images)


class _Unzipped:
    """The bytes in a gzip file, read in order, `MAX_BUNDLE_BYTES` of them at most."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zip = zlib.decompressobj(_GZIP)
        self._read_bytes = 0

    def read(self, size_bytes: int) -> bytes:
        """Return exactly `size_bytes`, or raise ImageInvalid."""
        self._read_bytes += size_bytes
        if self._read_bytes > MAX_BUNDLE_BYTES:
            raise ImageInvalid("the bundle holds more than any board's flash")
        data = bytearray()
        while len(data) < size_bytes:
            packed = self._zip.unconsumed_tail or self._file.read(_COPY_BYTES)
            if not packed or self._zip.eof:
                raise ImageInvalid("the bundle is cut")
            try:
                data += self._zip.decompress(packed, size_bytes - len(data))
            except zlib.error as exc:
                raise ImageInvalid("the bundle is no gzip file, or damaged") from exc
        return bytes(data)


def _members(stream: _Unzipped) -> Iterator[tuple[str, int]]:
    """
    Yield each file's name and size, up to the archive's end; who is told reads just that much.

    Raises ImageInvalid for what is no plain file of the USTAR format.
    """
    while True:
        header = stream.read(_BLOCK_BYTES)
        if header == bytes(_BLOCK_BYTES):
            return
        try:
            name = header[:100].rstrip(b"\0").decode("ascii")
            size_bytes = int(header[124:136].rstrip(b"\0 "), 8)
            checksum = int(header[148:156].rstrip(b"\0 "), 8)
        except ValueError as exc:
            raise ImageInvalid("the bundle's archive is damaged") from exc
        if checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise ImageInvalid("the bundle's archive is damaged")
        if header[156:157] not in (b"0", b"\0") or header[345:500].strip(b"\0") or size_bytes < 0:
            raise ImageInvalid("the bundle holds something that is no plain file")
        yield name, size_bytes
        stream.read(-size_bytes % _BLOCK_BYTES)


def _manifest(stream: _Unzipped) -> Manifest:
    name, size_bytes = next(_members(stream), ("", 0))
    if name != _MANIFEST:
        raise ImageInvalid("the bundle does not begin with its manifest.json")
    raw = _small(stream, name, size_bytes)
    stream.read(-size_bytes % _BLOCK_BYTES)
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as exc:
        raise ImageInvalid("the bundle's manifest is not valid") from exc


def _small(stream: _Unzipped, name: str, size_bytes: int) -> bytes:
    if size_bytes > _MAX_SMALL_BYTES:
        raise ImageInvalid(f"the bundle's {name} is too large")
    return stream.read(size_bytes)


def _copy(stream: _Unzipped, image: FlashImage, to: Path) -> None:
    digest, left = sha256(), image.size_bytes
    with to.open("xb") as out:
        while left:
            block = stream.read(min(left, _COPY_BYTES))
            digest.update(block)
            out.write(block)
            left -= len(block)
    if digest.hexdigest() != image.sha256:
        raise ImageInvalid(f"the digest of {image.name} is not the manifest's")
