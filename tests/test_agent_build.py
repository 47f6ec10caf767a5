"""Real firmware from real source: what a build gives, warm and cold, good and bad."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_agent.toolchains import Toolchains
from aegis_protocol.failures.build import (
    ArtifactMissing,
    BuildFailed,
    BuildTooLarge,
    SandboxUnavailable,
    TaskNotFound,
)
from aegis_protocol.failures.source import UploadIncomplete, WorkspaceBusy
from aegis_protocol.failures.toolchain import (
    EnvironmentUnknown,
    PackageMissing,
    ProjectNotPlatformIO,
    TargetUnsupported,
    ToolchainMissing,
)
from aegis_protocol.manifest import Manifest
from aegis_protocol.signing import manifest_statement, verified
from build_stand import BuildStand, Progress, Screen, as_ordinary_user, build_uid, fixture, plan_of
from fixtures_platformio import platformio_home

__all__ = ["platformio_home"]
pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc")


@pytest.fixture
async def stand(tmp: Path, platformio_home: Path) -> AsyncIterator[BuildStand]:
    yield BuildStand(tmp, await Toolchains.detect(platformio_home=platformio_home))


async def test_hello_becomes_signed_images(stand: BuildStand) -> None:
    screen, progress = Screen(), Progress()
    outcome = await stand.build(fixture("hello"), task_id="t1", screen=screen, progress=progress)

    assert outcome.error is None, screen.text
    manifest = outcome.result.manifest
    assert manifest is not None
    assert (manifest.project, manifest.version) == ("hello", "1.0.0")
    assert (manifest.target, manifest.environment) == ("esp32p4", "esp32p4")
    assert [(image.name, image.offset) for image in manifest.images] == [
        ("bootloader", 0x2000), ("partitions", 0x8000), ("app", 0x10000),
    ]  # fmt: skip
    assert (manifest.flash.mode, manifest.flash.freq, manifest.flash.size) == ("keep",) * 3
    assert manifest.toolchain.kind == "platformio"
    assert manifest.toolchain.platform == "aegis-esp 1.0.0"
    assert manifest.toolchain.compiler.startswith("GCC ")

    raw = {
        artifact.name: stand.results.path("alice", "t1", artifact.name)[0].read_bytes()
        for artifact in outcome.result.artifacts
    }
    for artifact in outcome.result.artifacts:
        assert sha256(raw[artifact.name]).hexdigest() == artifact.sha256
        assert len(raw[artifact.name]) == artifact.size_bytes
    for image in manifest.images:
        assert sha256(raw[image.path]).hexdigest() == image.sha256
        assert raw[image.path][0] in (0xE9, 0xAA)
    assert raw["manifest.json"] == manifest.to_bytes()
    statement = manifest_statement(raw["manifest.json"])
    assert verified(stand.public_key, raw["manifest.sig"], statement)
    assert sha256(raw["firmware.elf"]).hexdigest() == manifest.elf_sha256
    assert bytes.fromhex(manifest.elf_sha256 or "") in raw["firmware.bin"]
    assert raw["build.log"] == bytes(screen.data)
    info = json.loads(raw["build.json"])
    assert info["task_id"] == "t1"
    assert info["started_at"] < info["ended_at"]
    assert not info["warm"]
    assert outcome.result.size is not None
    assert outcome.result.size.flash_total == 3_145_728
    assert 0 < outcome.result.size.flash_used < 100_000
    assert stand.results.manifest("alice", "t1") == manifest
    assert progress.phases[0] == "sync"
    assert set(progress.phases) >= {"compile", "link", "size", "artifacts"}
    assert max(done for phase, done, _ in progress.reports if phase == "compile") >= 5


async def test_the_bundle_holds_manifest_signature_and_images_and_no_time(
    stand: BuildStand,
) -> None:
    first = await stand.build(fixture("hello"), task_id="t1")
    second = await stand.build(fixture("hello"), task_id="t2", identity="bob", slot=1)
    assert first.error is None
    assert second.error is None
    bundles = [
        stand.results.path(identity, task, "flash_bundle.tar.gz")[0].read_bytes()
        for identity, task in (("alice", "t1"), ("bob", "t2"))
    ]
    # Ed25519 signs deterministically, so even the signed bundle is the same.
    assert bundles[0] == bundles[1]
    with tarfile.open(fileobj=io.BytesIO(bundles[0])) as tar:
        assert tar.getnames() == [
            "manifest.json", "manifest.sig", "bootloader.bin", "partitions.bin", "firmware.bin",
        ]  # fmt: skip
        assert {member.mtime for member in tar} == {0}
        stream = tar.extractfile("manifest.json")
        assert stream is not None
        assert Manifest.model_validate_json(stream.read()) == first.result.manifest


async def test_a_second_build_is_warm_and_compiles_only_what_changed(stand: BuildStand) -> None:
    files = fixture("multi")
    cold, warm, changed = Screen(), Screen(), Screen()
    first = await stand.build(files, screen=cold)
    again = await stand.build(files, screen=warm)
    main = files["src/main.c"] + b"\nint added;\n"
    third = await stand.build({**files, "src/main.c": main}, screen=changed)
    assert [one.result.warm for one in (first, again, third)] == [False, True, True]
    assert cold.text.count("Compiling") > 8
    assert warm.text.count("Compiling") == 0
    assert changed.text.count("Compiling") == 1
    assert first.result.manifest == again.result.manifest
    assert third.result.manifest != first.result.manifest


async def test_a_clean_build_compiles_all_of_it_again(stand: BuildStand) -> None:
    cold, clean = Screen(), Screen()
    first = await stand.build(fixture("hello"), screen=cold)
    again = await stand.build(fixture("hello"), screen=clean, clean=True)
    assert clean.text.count("Compiling") == cold.text.count("Compiling")
    assert again.result.manifest == first.result.manifest


@pytest.mark.requires("xtensa-lx106-elf-gcc")
@pytest.mark.parametrize("target", ["esp32", "esp32c3", "esp32c6"])
async def test_each_target_finds_its_environment(stand: BuildStand, target: str) -> None:
    outcome = await stand.build(fixture("hello"), target=target)
    assert outcome.error is None
    assert outcome.result.manifest is not None
    assert outcome.result.manifest.target == target
    offsets = {"esp32": 0x1000, "esp32c3": 0, "esp32c6": 0}
    assert outcome.result.manifest.images[0].offset == offsets[target]


async def test_errors_of_all_files_come_with_place_and_hint(stand: BuildStand) -> None:
    outcome = await stand.build(fixture("broken"), task_id="t1")
    assert isinstance(outcome.error, BuildFailed)
    assert outcome.result.manifest is None
    errors = {one.file: one for one in outcome.result.diagnostics if one.severity == "error"}
    assert set(errors) == {"src/temperature.c", "src/calibration.c"}
    assert "'reading' undeclared" in errors["src/temperature.c"].message
    assert (errors["src/temperature.c"].line, errors["src/temperature.c"].column) == (9, 12)
    assert "calibration_table.h" in errors["src/calibration.c"].hint
    warnings = [one for one in outcome.result.diagnostics if one.severity == "warning"]
    assert [one.flag for one in warnings] == ["-Wreturn-type"]
    names = [artifact.name for artifact in stand.results.artifacts("alice", "t1")]
    assert names == ["build.json", "build.log", "diagnostics.json"]
    path, _ = stand.results.path("alice", "t1", "diagnostics.json")
    assert len(json.loads(path.read_bytes())) == len(outcome.result.diagnostics)
    with pytest.raises(ArtifactMissing):
        stand.results.manifest("alice", "t1")


async def test_a_program_too_large_says_by_how_much(stand: BuildStand) -> None:
    outcome = await stand.build(fixture("toolarge"))
    assert isinstance(outcome.error, BuildTooLarge)
    assert outcome.error.facts["used_bytes"] > outcome.error.facts["allowed_bytes"] > 0


async def test_a_linker_error_is_an_error_with_its_file(stand: BuildStand) -> None:
    files = fixture("hello")
    main = files["src/main.c"] + b"\nvoid absent(void);\nvoid *keep(void) { return absent; }\n"
    ini = files["platformio.ini"].replace(
        b"platform = aegis-esp", b"platform = aegis-esp\nbuild_flags = -Wl,--undefined=keep"
    )
    outcome = await stand.build({**files, "src/main.c": main, "platformio.ini": ini})
    assert isinstance(outcome.error, BuildFailed)
    (error,) = [one for one in outcome.result.diagnostics if one.severity == "error"]
    assert "undefined reference to `absent'" in error.message
    assert error.file == "src/main.c"
    assert error.line > 0
    assert error.hint


async def test_a_script_that_fails_is_an_error_with_its_line(stand: BuildStand) -> None:
    files = fixture("hello")
    ini = files["platformio.ini"].replace(
        b"platform = aegis-esp", b"platform = aegis-esp\nextra_scripts = pre:tools/gen.py"
    )
    files = {**files, "platformio.ini": ini, "tools/gen.py": b"import os\nraise KeyError('x')\n"}
    outcome = await stand.build(files)
    assert isinstance(outcome.error, BuildFailed)
    assert [(one.file, one.line) for one in outcome.result.diagnostics] == [("tools/gen.py", 2)]
    assert "KeyError" in outcome.result.diagnostics[0].message


async def test_verbose_shows_the_commands(stand: BuildStand) -> None:
    screen = Screen()
    await stand.build(fixture("hello"), screen=screen, verbose=True)
    assert "riscv64-unknown-elf-gcc -o .pio" in screen.text


async def test_what_is_wrong_is_said_before_anything_runs(stand: BuildStand) -> None:
    hello = fixture("hello")
    with pytest.raises(ProjectNotPlatformIO):
        await stand.prepare({"main.c": b"int a;"})
    with pytest.raises(TargetUnsupported):
        await stand.prepare(hello, target="esp32s3")
    with pytest.raises(EnvironmentUnknown):
        await stand.prepare(hello, environment="absent")
    ini = b"[env:a]\nplatform = espressif32\nboard = esp32dev\nframework = arduino\n"
    with pytest.raises(PackageMissing) as caught:
        await stand.prepare({"platformio.ini": ini, "src/main.cpp": b""}, target="esp32")
    assert "install-platform" in caught.value.remedy
    assert not list(stand.state.glob("source/workspaces/*/*"))


async def test_an_agent_without_the_toolchain_says_so(tmp: Path) -> None:
    stand = BuildStand(tmp, await Toolchains.detect(platformio_home=tmp / "none"))
    assert stand.builder.toolchains.found == ()
    with pytest.raises(ToolchainMissing):
        await stand.prepare(fixture("hello"))


async def test_a_machine_without_a_sandbox_builds_nothing(
    stand: BuildStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_agent.sandbox.sandbox.BWRAP_PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable):
        await stand.prepare(fixture("hello"))


async def test_source_that_is_not_here_is_not_built(stand: BuildStand) -> None:
    build = await stand.prepare(fixture("hello"))
    planned = await stand.sources.plan("alice", plan_of({"platformio.ini": b"other"}))
    request = build._request.__class__(**{**vars(build._request), "planned": planned})
    with pytest.raises(UploadIncomplete):
        await stand.builder.prepare(request)


async def test_a_project_is_built_once_at_a_time(stand: BuildStand) -> None:
    build = await stand.prepare(fixture("hello"))
    planned = build._request.planned
    with await stand.sources.workspace("alice", planned), pytest.raises(WorkspaceBusy):
        await stand.prepare(fixture("hello"))


async def test_identities_see_their_own_results_alone(stand: BuildStand) -> None:
    await stand.build(fixture("hello"), task_id="t1")
    assert stand.results.artifacts("alice", "t1")
    for identity, task in (("bob", "t1"), ("alice", "absent"), ("alice", ".."), ("alice", "../x")):
        with pytest.raises(TaskNotFound):
            stand.results.artifacts(identity, task)
    for name in ("absent", "../result.json", ""):
        with pytest.raises(ArtifactMissing):
            stand.results.path("alice", "t1", name)


async def test_detection_names_version_and_targets(stand: BuildStand) -> None:
    (found,) = stand.builder.toolchains.found
    assert found.kind == "platformio"
    assert found.version[0].isdigit()
    assert {"esp32p4", "esp32c3", "esp32c6"} <= set(stand.builder.toolchains.targets)


@pytest.mark.requires("root")
async def test_two_slots_build_at_once_as_two_users(stand: BuildStand) -> None:
    screens = Screen(), Screen()
    files = fixture("hello")
    builds = [
        await stand.prepare(files, identity=identity, slot=slot)
        for slot, identity in enumerate(("alice", "bob"))
    ]
    outcomes = await asyncio.gather(
        *(build.run(screen, Progress()) for build, screen in zip(builds, screens, strict=True))
    )
    assert [outcome.error for outcome in outcomes] == [None, None]
    owners = {path.stat().st_uid for path in stand.state.glob("source/workspaces/*/*/project")}
    assert owners == {build_uid(0), build_uid(1)}


BY_AN_ORDINARY_USER = """
import asyncio, os, sys, pathlib
sys.path.insert(0, "/mnt/clone/tests")
from aegis_agent.toolchains import Toolchains
from build_stand import BuildStand, Screen, fixture
async def main():
    toolchains = await Toolchains.detect(platformio_home=pathlib.Path(sys.argv[2]))
    stand = BuildStand(pathlib.Path(sys.argv[1]), toolchains)
    screen = Screen()
    first = await stand.build(fixture("hello"), screen=screen)
    again = await stand.build(fixture("hello"))
    assert first.error is None, screen.text
    assert again.result.warm and again.result.manifest == first.result.manifest
    print("BUILT", os.getuid(), stand.workspace().stat().st_uid)
asyncio.run(main())
"""


@pytest.mark.requires("root")
def test_an_agent_that_is_an_ordinary_user_builds_too(tmp: Path, platformio_home: Path) -> None:
    state = tmp / "agent"
    state.mkdir()
    os.chown(state, 65_200, 65_200)
    done = as_ordinary_user(65_200, BY_AN_ORDINARY_USER, str(state), str(platformio_home))
    assert done.returncode == 0, done.stderr.decode()
    assert b"BUILT 65200 65200" in done.stdout
