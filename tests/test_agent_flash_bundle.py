"""A flash bundle is what `espctl build` makes, and an archive that is anything else is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aegis_agent.build.bundle import write_bundle
from aegis_agent.flash_bundle import MAX_BUNDLE_BYTES, unpack
from aegis_protocol.failures.board import ImageInvalid
from aegis_protocol.failures.source import DiskFull
from aegis_protocol.manifest import FlashImage, Manifest, ToolchainUsed

FILES = {"bootloader.bin": b"\xe9boot" * 700, "firmware.bin": b"\xe9app" * 5000}
MEMORY_BYTES = 32 * 1024 * 1024


def manifest_of(files: dict[str, bytes], **changes: Any) -> Manifest:
    images = [
        FlashImage(
            name=name.partition(".")[0],
            path=name,
            offset=0x10000 * (index + 1),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        for index, (name, data) in enumerate(files.items())
    ]
    return Manifest(
        project="hello",
        target="esp32p4",
        images=changes.get("images", tuple(images)),
        toolchain=ToolchainUsed(kind="platformio", version="6"),
        source_sha256="0" * 64,
    )


MANIFEST = manifest_of(FILES).to_bytes()
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def whole() -> list[Entry]:
    return [
        entry("manifest.json", MANIFEST),
        entry("manifest.sig", b"s" * 64),
        *(entry(name, data) for name, data in FILES.items()),
    ]


def tar_of(entries: list[Entry], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A USTAR header by hand, with its checksum, for what tarfile would not write."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_bundle_as_a_build_makes_it_is_unpacked(tmp: Path) -> None:
    for name, data in (("manifest.json", MANIFEST), ("manifest.sig", b"s" * 64), *FILES.items()):
        (tmp / name).write_bytes(data)
    members = [tmp / name for name in ("manifest.json", "manifest.sig", *FILES)]
    write_bundle(tmp / "flash_bundle.tar.gz", members)
    manifest, images = unpack(tmp / "flash_bundle.tar.gz", tmp / "into")
    assert manifest.to_bytes() == MANIFEST
    assert [image for image, _ in images] == list(manifest.images)
    assert [path.read_bytes() for _, path in images] == list(FILES.values())
    assert {path.parent for _, path in images} == {tmp / "into"}


def test_a_bundle_that_was_packed_again_by_tar_is_unpacked(tmp: Path) -> None:
    for name, data in (("manifest.json", MANIFEST), *FILES.items()):
        (tmp / name).write_bytes(data)
    subprocess.run(["tar", "czf", "b.tgz", "manifest.json", *FILES], cwd=tmp, check=True)
    assert len(unpack(tmp / "b.tgz", tmp / "into")[1]) == 2


def _other(name: str, data: bytes) -> list[Entry]:
    return [entry(name, data) if info.name == name else (info, old) for info, old in whole()]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no gzip": lambda: tar_of(whole()),
    "no archive": lambda: gzip.compress(b"x" * 5000),
    "nothing in it": lambda: gzip.compress(tar_of([])),
    "cut in the gzip": lambda: gzip.compress(tar_of(whole()))[:-200],
    "cut in the archive": lambda: gzip.compress(tar_of(whole())[:9000]),
    "damaged gzip": lambda: gzip.compress(tar_of(whole()))[:40] + b"\xff" * 500,
    "wrong checksum": lambda: gzip.compress(b"M" + tar_of(whole())[1:]),
    "no manifest": lambda: gzip.compress(tar_of(whole()[1:])),
    "manifest not first": lambda: gzip.compress(tar_of([*whole()[1:], whole()[0]])),
    "manifest no JSON": lambda: gzip.compress(tar_of(_other("manifest.json", b"{"))),
    "manifest of no images": lambda: gzip.compress(
        tar_of([entry("manifest.json", manifest_of({}).to_bytes())])
    ),
    "manifest too large": lambda: gzip.compress(
        tar_of(_other("manifest.json", MANIFEST + b" " * 300_000))
    ),
    "two manifests": lambda: gzip.compress(tar_of([whole()[0], *whole()])),
    "two signatures": lambda: gzip.compress(tar_of([*whole(), whole()[1]])),
    "an image twice": lambda: gzip.compress(tar_of([*whole(), whole()[-1]])),
    "an image missing": lambda: gzip.compress(tar_of(whole()[:-1])),
    "an image too many": lambda: gzip.compress(tar_of([*whole(), entry("more.bin", b"x")])),
    "another digest": lambda: gzip.compress(
        tar_of(_other("firmware.bin", b"X" + FILES["firmware.bin"][1:]))
    ),
    "another size": lambda: gzip.compress(tar_of(_other("firmware.bin", b"short"))),
    "one file for two images": lambda: gzip.compress(
        tar_of(
            [
                entry(
                    "manifest.json",
                    manifest_of(FILES, images=(manifest_of(FILES).images[0],) * 2).to_bytes(),
                ),
                *whole()[2:3],
            ]
        )
    ),
    "a symbolic link": lambda: gzip.compress(
        tar_of([*whole()[:3], entry("firmware.bin", type=tarfile.SYMTYPE, linkname="/etc/shadow")])
    ),
    "a hard link": lambda: gzip.compress(
        tar_of([*whole()[:3], entry("firmware.bin", type=tarfile.LNKTYPE, linkname="x")])
    ),
    "a device": lambda: gzip.compress(
        tar_of([*whole(), entry("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5)])
    ),
    "a folder": lambda: gzip.compress(tar_of([*whole(), entry("d", type=tarfile.DIRTYPE)])),
    "a path out": lambda: gzip.compress(tar_of([*whole(), entry("../../evil", b"x")])),
    "an absolute path": lambda: gzip.compress(tar_of([*whole(), entry("/tmp/evil", b"x")])),
    "a prefix before the name": lambda: gzip.compress(
        tar_of([*whole(), entry("d" * 90 + "/" + "f" * 90, b"x")])
    ),
    "a name in odd bytes": lambda: gzip.compress(header("n\xe9", b"00000000000")),
    "an extended header": lambda: gzip.compress(
        tar_of([*whole(), entry("x" * 300, b"x")], format=tarfile.PAX_FORMAT)
    ),
    "a long name's header": lambda: gzip.compress(
        tar_of([*whole(), entry("x" * 300, b"x")], format=tarfile.GNU_FORMAT)
    ),
    "a negative size": lambda: gzip.compress(header("manifest.json", b"-0000000777")),
    "a size in base 256": lambda: gzip.compress(header("manifest.json", b"\xff" * 12)),
    "no size": lambda: gzip.compress(header("manifest.json", b"")),
    "a huge manifest": lambda: gzip.compress(header("manifest.json", b"77777777777")),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_anything_else_is_refused_and_leaves_nothing_outside(what: str, tmp: Path) -> None:
    (tmp / "b.tgz").write_bytes(HOSTILE[what]())
    with pytest.raises(ImageInvalid):
        unpack(tmp / "b.tgz", tmp / "into")
    assert sorted(path.name for path in tmp.iterdir()) == ["b.tgz", "into"]
    for path in (tmp / "into").iterdir():
        assert path.is_file()
        assert not path.is_symlink()


def _bomb(start: bytes, of_bytes: int) -> bytes:
    """gzip of `start` and so many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    out, block = [packer.compress(start)], bytes(1 << 20)
    out += [packer.compress(block) for _ in range(of_bytes >> 20)]
    return b"".join((*out, packer.flush()))


HUGE = 0o77777777777
BIG = FlashImage(name="big", path="big.bin", offset=0, size_bytes=HUGE, sha256="0" * 64)
BOMBS = {
    "pax": (MANIFEST, "firmware.bin", b"x", "no plain file"),
    "gnu": (MANIFEST, "firmware.bin", b"L", "no plain file"),
    "signature": (MANIFEST, "manifest.sig", b"0", "too large"),
    "image": (manifest_of({}, images=(BIG,)).to_bytes(), "big.bin", b"0", "any board's flash"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_an_archive_that_unpacks_to_very_much_costs_neither_memory_nor_time(
    what: str, tmp: Path
) -> None:
    manifest, name, kind, words = BOMBS[what]
    start = tar_of([entry("manifest.json", manifest)])[: 512 + 512 * -(-len(manifest) // 512)]
    bomb = _bomb(start + header(name, b"%011o" % HUGE, kind), 128 << 20)
    (tmp / "b.tgz").write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(ImageInvalid, match=words):
        unpack(tmp / "b.tgz", tmp / "into")
    assert time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_BYTES // 1024
    assert list((tmp / "into").iterdir()) == []


def test_images_together_are_bounded_whatever_the_manifest_says(tmp: Path) -> None:
    data = bytes(MAX_BUNDLE_BYTES // 2)
    manifest = manifest_of({"a.bin": data, "b.bin": data + b"x"}).to_bytes()
    bundle = tar_of([entry("manifest.json", manifest), entry("a.bin", data)])
    (tmp / "b.tgz").write_bytes(gzip.compress(bundle, 1))
    with pytest.raises(ImageInvalid, match="any board's flash"):
        unpack(tmp / "b.tgz", tmp / "into")
    assert list((tmp / "into").iterdir()) == []


def test_a_full_disk_is_named(tmp: Path) -> None:
    (tmp / "b.tgz").write_bytes(gzip.compress(tar_of(whole())))
    with pytest.raises(DiskFull):
        unpack(tmp / "b.tgz", tmp / "no-such-folder" / "into")
