"""The fixtures build with the real PlatformIO, GCC and esptool, and give what they promise."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from aegis_agent.platformio_home import (
    Layout,
    fixtures_dir,
    metadata_command,
    prepare_core,
)
from fixtures_platformio import CHIPS, Project, copy_fixture, platformio_home, write_files

pytestmark = pytest.mark.requires("riscv64-unknown-elf-gcc", "xtensa-lx106-elf-gcc")

__all__ = ["platformio_home"]

TITLES = {"esp32": "ESP32", "esp32p4": "ESP32-P4", "esp32c3": "ESP32-C3", "esp32c6": "ESP32-C6"}
BOOTLOADERS = {"esp32": "0x1000", "esp32p4": "0x2000", "esp32c3": "0x0", "esp32c6": "0x0"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture(scope="module")
def hello(platformio_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`hello`, built for every chip."""
    project = copy_fixture("hello", platformio_home, tmp_path_factory.mktemp("hello"))
    run = project.build(*CHIPS)
    assert run.code == 0, run.output
    return project


@pytest.fixture
def project(request: pytest.FixtureRequest, platformio_home: Path, tmp: Path) -> Project:
    """The fixture project that the test names, not built."""
    return copy_fixture(request.param, platformio_home, tmp)


def image_info(home: Path, image: Path) -> str:
    command = [str(Layout(home).python), "-m", "esptool", "image-info", str(image)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30, cwd=image.parent
    ).stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("chip", CHIPS)
def test_an_app_image_is_valid_and_names_its_elf(
    chip: str, hello: Project, platformio_home: Path
) -> None:
    info = image_info(platformio_home, hello.out(chip) / "firmware.bin")
    assert f"Detected image type: {TITLES[chip]}\n" in info
    assert re.search(r"Checksum: \w+ \(valid\)", info)
    assert re.search(r"Validation hash: \w+ \(valid\)", info)
    assert "Project name: hello\n" in info
    assert "App version: 1.0.0\n" in info
    assert f"ELF file SHA256: {sha256(hello.out(chip) / 'firmware.elf')}\n" in info


@pytest.mark.parametrize("chip", CHIPS)
def test_a_bootloader_image_is_valid_for_its_chip(
    chip: str, hello: Project, platformio_home: Path
) -> None:
    info = image_info(platformio_home, hello.out(chip) / "bootloader.bin")
    assert f"Detected image type: {TITLES[chip]}\n" in info
    assert re.search(r"Validation hash: \w+ \(valid\)", info)


def test_the_partition_table_has_its_rows_and_their_digest(hello: Project) -> None:
    table = (hello.out("esp32p4") / "partitions.bin").read_bytes()
    assert len(table) == 0xC00
    rows = [struct.unpack_from("<2sBBII16sI", table, at) for at in range(0, 96, 32)]
    assert all(magic == b"\xaa\x50" for magic, *_ in rows)
    assert [(name.rstrip(b"\0"), offset, size) for _, _, _, offset, size, name, _ in rows] == [
        (b"nvs", 0x9000, 0x6000),
        (b"phy_init", 0xF000, 0x1000),
        (b"factory", 0x10000, 0x300000),
    ]
    assert table[96:98] == b"\xeb\xeb"
    assert table[112:128] == hashlib.md5(table[:96], usedforsecurity=False).digest()
    assert set(table[128:]) == {0xFF}


@pytest.mark.parametrize("chip", ["esp32", "esp32p4"])
def test_metadata_names_every_image_with_its_offset(
    chip: str, hello: Project, platformio_home: Path
) -> None:
    run = hello.run(metadata_command(platformio_home, chip))
    assert run.code == 0, run.output
    found = json.loads(run.output)[chip]
    out = hello.out(chip)
    assert found["prog_path"] == str(out / "firmware.elf")
    assert found["extra"] == {
        "application_offset": "0x10000",
        "flash_images": [
            {"offset": BOOTLOADERS[chip], "path": str(out / "bootloader.bin")},
            {"offset": "0x8000", "path": str(out / "partitions.bin")},
        ],
    }


def test_the_same_source_gives_the_same_bytes_in_any_folder(
    hello: Project, platformio_home: Path, tmp: Path
) -> None:
    elsewhere = copy_fixture("hello", platformio_home, tmp)
    run = elsewhere.build("esp32p4", "esp32")
    assert run.code == 0, run.output
    for chip in ("esp32p4", "esp32"):
        for name in ("firmware.elf", "firmware.bin", "bootloader.bin", "partitions.bin"):
            assert sha256(elsewhere.out(chip) / name) == sha256(hello.out(chip) / name), name


@pytest.mark.long
@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_another_time_gives_other_bytes_and_so_the_time_is_fixed(
    project: Project, hello: Project
) -> None:
    run = project.build("esp32c3", SOURCE_DATE_EPOCH="1700000000")
    assert run.code == 0, run.output
    ours, fixed = (one.out("esp32c3") / "firmware.bin" for one in (project, hello))
    assert b"Nov 14 2023" in ours.read_bytes()
    assert b"Jan  1 2000" in fixed.read_bytes()


def test_a_second_build_compiles_nothing(hello: Project) -> None:
    run = hello.build("esp32p4")
    assert run.code == 0, run.output
    assert "Compiling" not in run.output
    assert "Linking" not in run.output


@pytest.mark.parametrize("project", ["broken"], indirect=True)
def test_all_files_with_errors_are_reported_in_one_run(project: Project) -> None:
    run = project.build("esp32p4")
    assert run.code == 1
    plain = ANSI.sub("", run.output)
    assert "src/temperature.c:9:12: error: 'reading' undeclared" in plain
    assert "src/calibration.c:6:10: fatal error: calibration_table.h: No such file" in plain
    assert not (project.out("esp32p4") / "firmware.bin").exists()


@pytest.mark.parametrize("project", ["broken"], indirect=True)
def test_errors_have_colors_in_a_terminal_and_none_in_a_file(project: Project) -> None:
    command = [str(Layout(project.home).python), "-m", "platformio", "run", "-e", "esp32c3"]
    colored = re.compile(r"\x1b\[01;31m\x1b\[Kerror: ")
    in_terminal = project.run_in_terminal(command, PLATFORMIO_BUILD_FLAGS="")
    assert in_terminal.code == 1
    assert colored.search(in_terminal.output)
    in_file = project.run(command, PLATFORMIO_BUILD_FLAGS="")
    assert "error: 'reading' undeclared" in in_file.output
    assert not colored.search(in_file.output)
    forced = project.run(command, PLATFORMIO_BUILD_FLAGS="", PLATFORMIO_FORCE_ANSI="true")
    assert colored.search(forced.output)


@pytest.mark.parametrize("project", ["toolarge"], indirect=True)
def test_a_program_larger_than_its_partition_fails_the_build(project: Project) -> None:
    run = project.build("esp32c6")
    assert run.code == 1
    assert re.search(
        r"Error: The program size \(34\d{5} bytes\) is greater than maximum allowed "
        r"\(3145728 bytes\)",
        run.output,
    )


@pytest.mark.parametrize("project", ["multi"], indirect=True)
def test_several_files_and_a_library_build(project: Project) -> None:
    run = project.build("esp32")
    assert run.code == 0, run.output
    assert (project.out("esp32") / "src" / "tally.o").exists()
    assert list(project.out("esp32").glob("lib*/morse/morse.o"))


@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_a_missing_compiler_is_named_with_its_package(project: Project) -> None:
    own = str(Layout(project.home).venv / "bin")
    run = project.build("esp32c3", PATH=own)
    assert run.code == 1
    assert "riscv64-unknown-elf-gcc is not on PATH" in run.output
    assert "apt-get install gcc-riscv64-unknown-elf" in run.output


@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_a_name_too_long_for_the_descriptor_is_refused(project: Project) -> None:
    ini = project.path / "platformio.ini"
    ini.write_text(ini.read_text().replace("= hello", "= " + "h" * 32))
    run = project.build("esp32c3")
    assert run.code == 1
    assert "custom_app_name: at most 31 printable ASCII characters" in run.output


def test_an_upload_without_a_port_fails_instead_of_guessing(hello: Project) -> None:
    python = str(Layout(hello.home).python)
    run = hello.run([python, "-m", "platformio", "run", "-e", "esp32", "-t", "upload"])
    assert run.code == 1
    assert "name the board's port with --upload-port" in run.output


def test_compile_commands_name_the_real_compiler(hello: Project) -> None:
    python = str(Layout(hello.home).python)
    run = hello.run([python, "-m", "platformio", "run", "-e", "esp32p4", "-t", "compiledb"])
    assert run.code == 0, run.output
    commands = json.loads((hello.path / "compile_commands.json").read_text())
    main = next(one for one in commands if one["file"].endswith("src/main.c"))
    assert "riscv64-unknown-elf-gcc" in main["command"]
    assert "-march=rv32imafc" in main["command"]


@pytest.mark.long
@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_size_data_tells_flash_and_ram(project: Project) -> None:
    python = str(Layout(project.home).python)
    run = project.run([python, "-m", "platformio", "run", "-e", "esp32p4", "-t", "sizedata"])
    assert run.code == 0, run.output
    total = json.loads((project.out("esp32p4") / "sizedata.json").read_text())["memory"]["total"]
    assert 4_000 < total["flash_size"] < 20_000
    assert total["ram_size"] > 1_000


@pytest.mark.long
@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_the_platform_can_be_named_by_its_folder(project: Project, tmp: Path) -> None:
    (project.core / "platforms" / "aegis-esp").unlink()
    ini = project.path / "platformio.ini"
    folder = fixtures_dir() / "platform"
    ini.write_text(ini.read_text().replace("= aegis-esp\n", f"= symlink://{folder}\n"))
    run = project.build("esp32c3")
    assert run.code == 0, run.output


BAD_TABLES = {
    "nvs, data, nvs, 0x9000": "line 1: a row is: name, type, subtype, offset, size, flags",
    "a, data, nvs, 0x9000, 0x6000,\nb, data, nvs, 0xe000, 0x1000,": "line 2: b overlaps",
    "factory, app, factory, 0x11000, 1M,": "factory: the offset is no multiple of 0x10000",
    "nvs, data, nvs, , 0x6000,": "nvs: offset and size must be given",
    "nvs, data, what, 0x9000, 0x6000,": "subtype of nvs: 'what' is no number",
    "sixteen_letters_, data, nvs, 0x9000, 0x6000,": "a name has 1 to 15 bytes",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_a_bad_partition_table_is_refused_with_its_line(text: str, tmp: Path) -> None:
    script = fixtures_dir() / "platform" / "builder" / "partition_table.py"
    source, target = tmp / "table.csv", tmp / "table.bin"
    source.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(target)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert BAD_TABLES[text] in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()


@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_a_project_may_bring_its_own_partition_table(project: Project) -> None:
    ini = project.path / "platformio.ini"
    write_files(
        {
            ini: ini.read_text().replace("[env]\n", "[env]\nboard_build.partitions = own.csv\n"),
            project.path / "own.csv": "factory, app, factory, 0x10000, 1M,\n",
        }
    )
    run = project.build("esp32c6")
    assert run.code == 0, run.output
    table = (project.out("esp32c6") / "partitions.bin").read_bytes()
    assert struct.unpack_from("<II16s", table, 4) == (
        0x10000,
        0x100000,
        b"factory".ljust(16, b"\0"),
    )


@pytest.mark.long
@pytest.mark.parametrize("project", ["hello", "multi", "crash", "big"], indirect=True)
def test_every_project_builds_for_every_chip(project: Project, platformio_home: Path) -> None:
    run = project.build(*CHIPS)
    assert run.code == 0, run.output
    assert "warning" not in run.output
    for chip in CHIPS:
        info = image_info(platformio_home, project.out(chip) / "firmware.bin")
        assert f"Detected image type: {TITLES[chip]}\n" in info
        assert re.search(r"Validation hash: \w+ \(valid\)", info)


@pytest.mark.long
@pytest.mark.parametrize("project", ["broken", "toolarge"], indirect=True)
@pytest.mark.parametrize("chip", CHIPS)
def test_what_must_fail_fails_for_every_chip(chip: str, project: Project) -> None:
    assert project.build(chip).code == 1


@pytest.mark.long
@pytest.mark.parametrize("project", ["hello"], indirect=True)
def test_two_clean_builds_in_one_place_are_the_same_bytes(project: Project, tmp: Path) -> None:
    digests = []
    for _ in range(2):
        prepare_core(Layout(project.home).core, tmp / "core")
        run = project.run(
            [str(Layout(project.home).python), "-m", "platformio", "run", "-t", "fullclean"]
        )
        assert run.code == 0, run.output
        run = project.build(*CHIPS)
        assert run.code == 0, run.output
        made = sorted((project.path / ".pio" / "build").glob("*/*.[be][il][nf]"))
        assert len(made) == 20
        digests.append([sha256(path) for path in made])
    assert digests[0] == digests[1]
