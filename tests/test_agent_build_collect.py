"""What is taken out of a workspace, and what is refused: made trees, no build."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from aegis_agent.build.collect import Collection, locate
from aegis_agent.build.opened import copy_out, read_out
from aegis_agent.results import ResultDraft, ResultStore
from aegis_agent.toolchains.kind import BuildPlan
from aegis_agent.toolchains.platformio import PlatformIO
from aegis_protocol.failures.build import ArtifactMissing, ArtifactUnsafe, BuildFailed
from aegis_protocol.manifest import Manifest

OUT = "/project/.pio/build/a"


@pytest.fixture
def draft(tmp: Path) -> Iterator[ResultDraft]:
    with ResultStore(tmp / "results", quota_bytes=1 << 30).draft("alice", "t1") as made:
        yield made


def made(tmp: Path, layout: object) -> Collection:
    """A workspace as a build leaves it, with what the layout script wrote."""
    for folder in ("project/.pio/build/a", "core", "shared/packages/framework"):
        (tmp / folder).mkdir(parents=True, exist_ok=True)
    out = tmp / "project/.pio/build/a"
    (out / "firmware.elf").write_bytes(b"\x7fELF" + b"GCC: (Debian 12.2.0-14) 12.2.0\0")
    (out / "firmware.bin").write_bytes(b"\xe9" + bytes(5000))
    (out / "bootloader.bin").write_bytes(b"\xe9boot")
    (tmp / "shared/packages/framework/boot_app0.bin").write_bytes(b"boot_app0")
    (tmp / "core/packages").symlink_to("/somewhere/packages")
    raw = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    (tmp / "core/aegis-layout.json").write_bytes(raw)
    plan = BuildPlan(
        kind="platformio", version="6.2.0", platform="p 1", environment="a", command=(), env={},
        mounts=(), shared={"/core/packages": tmp / "shared/packages"},
    )  # fmt: skip
    return Collection(
        plan=plan,
        target="esp32",
        source_sha256="0" * 64,
        writable={"/project": tmp / "project", "/core": tmp / "core"},
        sign=lambda statement: bytes(64),
    )


def layout(*images: tuple[str, str]) -> dict[str, object]:
    return {
        "program": f"{OUT}/firmware.elf",
        "application_offset": "0x10000",
        "images": [{"offset": offset, "path": path} for offset, path in images],
    }


def collected(tmp: Path, draft: ResultDraft, what: object) -> Manifest:
    return made(tmp, what).collect(PlatformIO(tmp / "home"), draft)


def test_images_of_the_project_and_of_the_toolchain_are_taken(
    tmp: Path, draft: ResultDraft
) -> None:
    manifest = collected(
        tmp,
        draft,
        layout(
            ("0x1000", f"{OUT}/bootloader.bin"),
            ("57344", "/core/packages/framework/boot_app0.bin"),
        ),
    )
    assert [(one.name, one.offset, one.path) for one in manifest.images] == [
        ("bootloader", 0x1000, "bootloader.bin"),
        ("boot_app0", 0xE000, "boot_app0.bin"),
        ("app", 0x10000, "firmware.bin"),
    ]
    assert manifest.project == "firmware"
    assert manifest.toolchain.compiler == "GCC 12.2.0 (Debian 12.2.0-14)"
    assert "firmware.map" not in {one.name for one in draft.artifacts}


def test_artifacts_of_one_name_are_both_kept_and_none_takes_a_reserved_name(
    tmp: Path, draft: ResultDraft
) -> None:
    what = layout(("0x1000", "/project/x/firmware.bin"), ("0x8000", "/project/x/manifest.json"))
    (tmp / "project/x").mkdir(parents=True)
    (tmp / "project/x/firmware.bin").write_bytes(b"other")
    (tmp / "project/x/manifest.json").write_bytes(b"{}")
    manifest = collected(tmp, draft, what)
    assert [one.path for one in manifest.images] == [
        "firmware.bin", "2-manifest.json", "2-firmware.bin",
    ]  # fmt: skip
    assert draft.path("manifest.json").read_bytes() == manifest.to_bytes()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/etc/shadow", ArtifactUnsafe),
        ("/project/../etc/shadow", ArtifactUnsafe),
        ("/core/packages/../../etc/shadow", ArtifactUnsafe),
        ("/core/packages/framework/escape", ArtifactUnsafe),
        ("/core/aegis-link", ArtifactUnsafe),
        ("/project", ArtifactUnsafe),
        ("/projectile", ArtifactUnsafe),
        ("relative.bin", ArtifactUnsafe),
        ("/project/absent.bin", ArtifactMissing),
        ("/core/packages/absent.bin", ArtifactMissing),
    ],
)
def test_an_image_outside_of_the_build_is_refused(
    tmp: Path, draft: ResultDraft, path: str, error: type[Exception]
) -> None:
    collection = made(tmp, layout(("0x300000", path)))
    (tmp / "shared/packages/framework/escape").symlink_to("/etc/hostname")
    (tmp / "core/aegis-link").symlink_to("/etc/hostname")
    with pytest.raises(error):
        collection.collect(PlatformIO(tmp / "home"), draft)


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        ("0xf000", "reaches into"),
        ("0x300001", "no sector"),
        ("-4096", "no sector"),
        ("many", "no offset"),
    ],
)
def test_images_that_can_not_be_flashed_are_refused(
    tmp: Path, draft: ResultDraft, offset: str, said: str
) -> None:
    (tmp / "project").mkdir()
    (tmp / "project/large.bin").write_bytes(bytes(5000))
    with pytest.raises(BuildFailed, match=said):
        collected(tmp, draft, layout((offset, "/project/large.bin")))


@pytest.mark.parametrize(
    "what",
    [b"", b"[]", b"{}", b"\xff", b"{" * 100_000, layout(*[("0x0", "x")] * 40)],
    ids=["empty", "list", "nothing", "bytes", "deep", "many"],
)
def test_a_layout_that_makes_no_sense_is_the_builds_failure(
    tmp: Path, draft: ResultDraft, what: object
) -> None:
    with pytest.raises(BuildFailed, match="did not say"):
        collected(tmp, draft, what)


def test_a_layout_that_is_a_link_or_endless_is_refused(tmp: Path, draft: ResultDraft) -> None:
    collection = made(tmp, layout())
    (tmp / "core/aegis-layout.json").unlink()
    (tmp / "core/aegis-layout.json").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactUnsafe):
        collection.collect(PlatformIO(tmp / "home"), draft)
    (tmp / "core/aegis-layout.json").unlink()
    with (tmp / "core/aegis-layout.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ArtifactUnsafe, match="allowed"):
        collection.collect(PlatformIO(tmp / "home"), draft)


def test_an_image_without_end_is_refused(tmp: Path, draft: ResultDraft) -> None:
    collection = made(tmp, layout())
    with (tmp / "project/.pio/build/a/firmware.bin").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ArtifactUnsafe, match="allowed"):
        collection.collect(PlatformIO(tmp / "home"), draft)


def test_the_longest_prefix_says_where_a_path_lies(tmp: Path) -> None:
    found = locate("/core/x", {"/core": tmp / "core"}, {"/core/packages": tmp})
    assert found == (tmp / "core", PurePosixPath("x"))
    (tmp / "y").touch()
    found = locate("/core/packages/y", {"/core": tmp / "core"}, {"/core/packages": tmp})
    assert found == (tmp, PurePosixPath("y"))


def test_only_an_ordinary_file_is_taken(tmp: Path) -> None:
    root, to = tmp / "project", tmp / "copy"
    (root / "folder").mkdir(parents=True)
    (root / "folder/file").write_bytes(b"content")
    (root / "link").symlink_to("folder/file")
    (root / "linked").symlink_to("folder")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    for name in ("link", "linked/file", "pipe", "socket", "folder", "../project/folder/file"):
        with pytest.raises(ArtifactUnsafe):
            copy_out(root, PurePosixPath(name), to, max_bytes=100)
        assert not to.exists()
    with pytest.raises(ArtifactMissing):
        copy_out(root, PurePosixPath("absent"), to, max_bytes=100)
    with pytest.raises(ArtifactUnsafe):
        copy_out(root, PurePosixPath("folder/file"), to, max_bytes=6)
    assert not to.exists()
    copy_out(root, PurePosixPath("folder/file"), to, max_bytes=7)
    assert to.read_bytes() == b"content"
    assert read_out(root, PurePosixPath("folder/file"), max_bytes=7) == b"content"
