"""
Unpacking a flash_bundle.tar.gz that a client sent: it may be hostile.

Only the manifest and the images that it names are taken, as plain files, each of the size and
digest that the manifest says; everything else in the archive is an error.
"""

from __future__ import annotations

import tarfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Final

from aegis_protocol.failures.board import ImageInvalid
from aegis_protocol.manifest import FlashImage, Manifest
from pydantic import ValidationError

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
_MAX_MANIFEST_BYTES: Final = 256 * 1024
_SIGNATURE: Final = "manifest.sig"

FlashImages = tuple[tuple[FlashImage, Path], ...]


def unpack(archive: Path, into: Path) -> tuple[Manifest, FlashImages]:
    """
    Return the bundle's manifest and its images as files in the new folder `into`.

    Raises ImageInvalid for anything but a bundle as `espctl build` makes it.
    """
    into.mkdir(mode=0o700)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            return _unpack(tar, into)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as exc:
        raise ImageInvalid(f"the bundle can't be read: {exc}") from exc


def _unpack(tar: tarfile.TarFile, into: Path) -> tuple[Manifest, FlashImages]:
    manifest: Manifest | None = None
    wanted: dict[str, FlashImage] = {}
    found: dict[str, Path] = {}
    while (member := tar.next()) is not None:
        stream = tar.extractfile(member) if member.isreg() else None
        if stream is None:
            raise ImageInvalid("the bundle holds something that is no plain file")
        if manifest is None:
            if member.name != "manifest.json" or member.size > _MAX_MANIFEST_BYTES:
                raise ImageInvalid("the bundle does not begin with its manifest.json")
            try:
                manifest = Manifest.model_validate_json(stream.read(_MAX_MANIFEST_BYTES))
            except ValidationError as exc:
                raise ImageInvalid("the bundle's manifest is not valid") from exc
            wanted = {image.path: image for image in manifest.images}
            continue
        if member.name == _SIGNATURE:
            continue
        image = wanted.pop(member.name, None)
        if image is None or member.size != image.size_bytes:
            raise ImageInvalid("the bundle's content is not what its manifest says")
        data = stream.read(image.size_bytes)
        if sha256(data).hexdigest() != image.sha256:
            raise ImageInvalid(f"the digest of {image.name} is not the manifest's")
        found[image.path] = into / f"image-{len(found)}.bin"
        found[image.path].write_bytes(data)
    if manifest is None or wanted or not found:
        raise ImageInvalid("the bundle lacks an image that its manifest names")
    return manifest, tuple((image, found[image.path]) for image in manifest.images)
