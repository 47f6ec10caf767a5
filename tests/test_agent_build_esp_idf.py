"""
ESP-IDF: found by its files, planned, and its build folder read. No ESP-IDF is installed where these
tests run: the trees are made after its documentation, and a stand-in `idf.py` plays the build.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aegis_agent.toolchains import BuildWish, Toolchains
from aegis_agent.toolchains.esp_idf import EspIdf
from aegis_agent.toolchains.idf_installations import find_installations
from aegis_protocol.failures.toolchain import (
    EnvironmentUnknown,
    ProjectConfigInvalid,
    TargetUnsupported,
    ToolchainMissing,
)
from build_stand import BuildStand, Screen, plan_of

CMAKE = b"cmake_minimum_required(VERSION 3.16)\ninclude($ENV{IDF_PATH}/tools/cmake/project.cmake)\n"
PROJECT = {"CMakeLists.txt": CMAKE + b"project(blink)\n", "main/main.c": b"int x;\n"}
WISH = BuildWish(target="esp32p4", environment=None, jobs=2, verbose=False, network=False)
FLASHER = {
    "write_flash_args": ["--flash_mode", "dio"],
    "flash_settings": {"flash_mode": "dio", "flash_size": "2MB", "flash_freq": "80m"},
    "flash_files": {
        "0x10000": "blink.bin",
        "0x2000": "bootloader/bootloader.bin",
        "0x8000": "partition_table/partition-table.bin",
        "0x310000": "storage.bin",
    },
    "bootloader": {"offset": "0x2000", "file": "bootloader/bootloader.bin", "encrypted": "false"},
    "app": {"offset": "0x10000", "file": "blink.bin", "encrypted": "false"},
    "partition-table": {"offset": "0x8000", "file": "partition_table/partition-table.bin"},
    "storage": {"offset": "0x310000", "file": "storage.bin", "encrypted": "false"},
    "extra_esptool_args": {"after": "hard_reset", "stub": True, "chip": "esp32p4"},
}
ABOUT = {"project_name": "blink", "project_version": "1.2.3", "app_elf": "blink.elf"}


def checkout(path: Path, version: str = "5.4.1") -> Path:
    """An ESP-IDF as far as it is looked at."""
    (path / "tools/idf_py_actions").mkdir(parents=True)
    (path / "tools/cmake").mkdir()
    (path / "tools/idf.py").write_text("")
    major, minor, patch = version.split(".")
    (path / "tools/cmake/version.cmake").write_text(
        f"set(IDF_VERSION_MAJOR {major})\nset(IDF_VERSION_MINOR {minor})\n"
        f"set(IDF_VERSION_PATCH {patch})\n"
    )
    (path / "tools/idf_py_actions/constants.py").write_text(
        "GENERATORS = {'Ninja': make()}\n"
        "SUPPORTED_TARGETS = ['esp32', 'esp32s3', 'esp32p4']\n"
        "PREVIEW_TARGETS = ['linux', 'esp32c5']\n"
    )
    return path


def tools(path: Path) -> Path:
    (path / "python_env").mkdir(parents=True)
    return path


def find(tmp: Path, **environ: Path) -> list[tuple[Path, str, tuple[str, ...]]]:
    variables = {name: str(value) for name, value in environ.items()}
    found = find_installations(variables, tmp / "home")
    return [(one.path, one.version, one.targets) for one in found]


ALL = ("esp32", "esp32s3", "esp32p4", "linux", "esp32c5")


def test_it_is_found_by_its_variables(tmp: Path) -> None:
    idf = checkout(tmp / "idf")
    assert find(tmp, IDF_PATH=idf) == []  # no tools
    assert find(tmp, IDF_PATH=idf, IDF_TOOLS_PATH=tools(tmp / "tools")) == [(idf, "5.4.1", ALL)]


def test_it_is_found_by_the_records_of_its_installers(tmp: Path) -> None:
    espressif = tools(tmp / "home/.espressif")
    old, new = checkout(tmp / "old", "4.4.8"), checkout(tmp / "new", "5.10.0")
    (espressif / "tools").mkdir()
    by_eim = {"id": "x", "path": str(new), "idfToolsPath": str(espressif)}
    (espressif / "tools/eim_idf.json").write_text(json.dumps({"idfInstalled": [by_eim]}))
    record = {"path": str(old), "targets": ["esp32"], "version": "4.4"}
    (espressif / "idf-env.json").write_text(json.dumps({"idfInstalled": {"esp-idf-1": record}}))
    assert find(tmp) == [(new, "5.10.0", ALL), (old, "4.4.8", ("esp32",))]


def test_a_release_says_its_version_in_a_file(tmp: Path) -> None:
    idf = checkout(tmp / "idf")
    (idf / "version.txt").write_text("v5.5.2\n")
    ((_, version, _),) = find(tmp, IDF_PATH=idf, IDF_TOOLS_PATH=tools(tmp / "tools"))
    assert version == "5.5.2"


@pytest.mark.parametrize("damage", ["{", "[]", '{"idfInstalled": 3}', '{"idfInstalled": [3, {}]}'])
def test_damaged_records_are_no_installations(tmp: Path, damage: str) -> None:
    espressif = tools(tmp / "home/.espressif")
    (espressif / "tools").mkdir()
    (espressif / "tools/eim_idf.json").write_text(damage)
    (espressif / "idf-env.json").write_text(damage)
    assert find(tmp) == []


def kind(tmp: Path) -> EspIdf:
    environ = {"IDF_PATH": str(checkout(tmp / "idf")), "IDF_TOOLS_PATH": str(tools(tmp / "tools"))}
    (found,) = EspIdf.installations(environ, tmp)
    return found


def project(tmp: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = tmp / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp / "project"


def test_a_target_has_a_build_folder_and_an_sdkconfig_of_its_own(tmp: Path) -> None:
    plan = kind(tmp).plan(project(tmp, PROJECT), WISH)
    assert plan.command[3:] == (
        "idf.py", "-B", "build/esp32p4", "-D", "IDF_TARGET=esp32p4",
        "-D", "SDKCONFIG=/project/build/esp32p4/sdkconfig", "build",
    )  # fmt: skip
    assert plan.env["IDF_PATH"] == str(tmp / "idf")
    assert not any(mount.writable for mount in plan.mounts)


def test_a_projects_own_sdkconfig_is_used_and_must_be_for_the_target(tmp: Path) -> None:
    mine = {**PROJECT, "sdkconfig": b'# x\nCONFIG_IDF_TARGET="esp32p4"\n'}
    plan = kind(tmp).plan(project(tmp, mine), WISH)
    assert not any("SDKCONFIG" in word for word in plan.command)
    project(tmp, {"sdkconfig": b'CONFIG_IDF_TARGET="esp32s3"\n'})
    (tmp / "idf").rename(tmp / "idf2")
    (tmp / "tools").rename(tmp / "tools2")
    with pytest.raises(TargetUnsupported, match="esp32s3"):
        kind(tmp).plan(tmp / "project", WISH)


def test_what_is_no_idf_project_is_refused(tmp: Path) -> None:
    idf = kind(tmp)
    plain = project(tmp, {"CMakeLists.txt": b"# include(x/project.cmake)\nproject(x)\n"})
    with pytest.raises(ProjectConfigInvalid):
        idf.plan(plain, WISH)
    project(tmp, PROJECT)
    with pytest.raises(TargetUnsupported, match="esp32h2"):
        idf.plan(plain, BuildWish("esp32h2", None, 2, verbose=False, network=False))
    with pytest.raises(EnvironmentUnknown):
        idf.plan(plain, BuildWish("esp32p4", "release", 2, verbose=False, network=False))


def test_the_build_folder_says_what_to_flash(tmp: Path) -> None:
    idf = kind(tmp)
    plan = idf.plan(project(tmp, PROJECT), WISH)
    files = {
        "/project/build/esp32p4/flasher_args.json": json.dumps(FLASHER).encode(),
        "/project/build/esp32p4/project_description.json": json.dumps(ABOUT).encode(),
    }
    described = idf.described(plan, files.__getitem__)
    assert {(image.name, image.offset, image.path) for image in described.images} == {
        ("bootloader", 0x2000, "/project/build/esp32p4/bootloader/bootloader.bin"),
        ("partitions", 0x8000, "/project/build/esp32p4/partition_table/partition-table.bin"),
        ("app", 0x10000, "/project/build/esp32p4/blink.bin"),
        ("storage", 0x310000, "/project/build/esp32p4/storage.bin"),
    }
    assert described.elf == "/project/build/esp32p4/blink.elf"
    assert described.map == "/project/build/esp32p4/blink.map"
    assert (described.project, described.version) == ("blink", "1.2.3")


@pytest.mark.parametrize("flasher", [b"", b"[]", b"{}", b'{"flash_files": {"many": "x"}}', b"\xff"])
def test_a_build_folder_that_makes_no_sense_is_an_error(tmp: Path, flasher: bytes) -> None:
    idf = kind(tmp)
    plan = idf.plan(project(tmp, PROJECT), WISH)
    with pytest.raises(ValueError):  # the builder turns each into its own error
        idf.described(plan, lambda path: flasher if "flasher" in path else b"{}")


async def test_an_agent_without_it_says_so(tmp: Path) -> None:
    found = await Toolchains.detect(platformio_home=tmp / "none", environ={})
    with pytest.raises(ToolchainMissing, match="ESP-IDF"):
        found.choose(plan_of(PROJECT), None)


IDF_PY = """
import json, pathlib, sys
build = pathlib.Path(sys.argv[sys.argv.index("-B") + 1])
for name in {names!r}:
    path = build / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
(build / "flasher_args.json").write_text({flasher!r})
(build / "project_description.json").write_text({about!r})
print("[1/2] Building C object main.c.obj")
"""


@pytest.mark.requires("bwrap")
async def test_its_plan_runs_in_the_sandbox_and_its_images_are_collected(tmp: Path) -> None:
    """What runs is the real plan and sandbox; `export.sh` and `idf.py` are stand-ins."""
    idf = checkout(tmp / "idf")
    script = IDF_PY.format(
        names=[*FLASHER["flash_files"].values(), "blink.elf"],  # type: ignore[attr-defined]
        flasher=json.dumps(FLASHER),
        about=json.dumps(ABOUT),
    )
    (idf / "tools/idf_program.py").write_text(script)
    (idf / "export.sh").write_text(
        "mkdir /tmp/bin && printf '#!/bin/sh\\nexec python3 %s \"$@\"\\n' "
        '"$IDF_PATH/tools/idf_program.py" > /tmp/bin/idf.py && chmod +x /tmp/bin/idf.py\n'
        "export PATH=/tmp/bin:$PATH\n"
    )
    environ = {"IDF_PATH": str(idf), "IDF_TOOLS_PATH": str(tools(tmp / "tools"))}
    toolchains = await Toolchains.detect(platformio_home=tmp / "none", environ=environ)
    assert [(one.kind, one.version) for one in toolchains.found] == [("esp-idf", "5.4.1")]
    stand, screen = BuildStand(tmp, toolchains), Screen()
    outcome = await stand.build(PROJECT, screen=screen)
    assert outcome.error is None, screen.text
    manifest = outcome.result.manifest
    assert manifest is not None
    assert [image.name for image in manifest.images] == [
        "bootloader", "partitions", "app", "storage",
    ]  # fmt: skip
    assert (manifest.project, manifest.version, manifest.elf) == ("blink", "1.2.3", "blink.elf")
    assert manifest.toolchain.kind == "esp-idf"
