"""What is wrong with a project, or missing for it, is said before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from aegis_agent.platformio_home import (
    Layout,
    PreflightPlan,
    fixtures_dir,
    inventory,
    plan_build,
    preflight,
)
from aegis_agent.platformio_home.package_spec import InstalledPackage, matches, parse_spec
from aegis_agent.platformio_home.project_ini import ProjectIni
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.toolchain import (
    EnvironmentAmbiguous,
    EnvironmentUnknown,
    PackageMissing,
    ProjectConfigInvalid,
    ProjectNotPlatformIO,
    TargetUnsupported,
    ToolchainMissing,
)
from fixtures_platformio import platformio_home

__all__ = ["platformio_home"]

PIOARDUINO = "https://github.com/pioarduino/platform-espressif32/releases/download/55/platform.zip"


def write_package(
    folder: Path, name: str, version: str, *, owner: str = "platformio", uri: str | None = None
) -> Path:
    """Install a package as PlatformIO records it."""
    folder.mkdir(parents=True)
    spec = {"owner": None if uri else owner, "id": None, "name": name, "uri": uri}
    (folder / ".piopm").write_text(json.dumps({"name": name, "version": version, "spec": spec}))
    return folder


def write_platform(folder: Path, name: str, *, packages: dict[str, object] | None = None) -> None:
    manifest = {
        "name": name,
        "version": "6.13.0",
        "frameworks": {
            "arduino": {"package": "framework-arduinoespressif32"},
            "espidf": {"package": "framework-espidf"},
        },
        "packages": packages or {},
    }
    (folder / "platform.json").write_text(json.dumps(manifest))
    for board, mcu in {"esp32dev": "esp32", "esp32-c3-devkitm-1": "esp32c3"}.items():
        write_board(folder / "boards", board, mcu)


def write_board(folder: Path, board: str, mcu: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    manifest = {"name": board, "vendor": "x", "url": "x", "build": {"mcu": mcu}}
    (folder / f"{board}.json").write_text(json.dumps(manifest))


@pytest.fixture
def home(tmp: Path) -> Path:
    """A home with our own platform alone."""
    home = tmp / "home"
    ours = write_package(
        home / "core" / "platforms" / "aegis-esp", "aegis-esp", "1.0.0", owner="aegis"
    )
    source = fixtures_dir() / "platform"
    (ours / "platform.json").write_bytes((source / "platform.json").read_bytes())
    (ours / "boards").symlink_to(source / "boards")
    return home


@pytest.fixture
def espressif32(home: Path) -> Path:
    """Espressif's platform besides, with packages that it needs, none of them installed."""
    folder = write_package(home / "core" / "platforms" / "espressif32", "espressif32", "6.13.0")
    write_platform(
        folder,
        "espressif32",
        packages={
            "toolchain-xtensa": {"type": "toolchain", "owner": "espressif", "version": "~8.4.0"},
            "framework-arduinoespressif32": {
                "type": "framework",
                "optional": True,
                "owner": "platformio",
                "version": "~3.20017.0",
            },
            "tool-openocd": {"optional": True, "version": "*"},
        },
    )
    return folder


def project(tmp: Path, ini: str) -> Path:
    folder = tmp / "project"
    folder.mkdir(exist_ok=True)
    (folder / "platformio.ini").write_text(ini)
    return folder


def refusal(kind: type[AegisError], folder: Path, home: Path, **wish: str) -> AegisError:
    with pytest.raises(kind) as refused:
        preflight(folder, home, **{"target": "esp32p4", **wish})
    return refused.value


@pytest.mark.requires("riscv64-unknown-elf-gcc", "xtensa-lx106-elf-gcc")
@pytest.mark.parametrize("chip", ["esp32", "esp32p4", "esp32c3", "esp32c6"])
@pytest.mark.parametrize("name", ["hello", "multi", "broken", "toolarge", "crash", "big"])
def test_every_fixture_has_one_environment_for_every_chip(name: str, chip: str, home: Path) -> None:
    assert preflight(fixtures_dir() / name, home, target=chip) == PreflightPlan(
        environment=chip,
        platform="aegis-esp",
        board=f"aegis-{chip}",
        chip=chip,
        frameworks=(),
        platform_version="1.0.0",
        missing=(),
    )


def test_a_folder_without_platformio_ini_is_no_project(tmp: Path, home: Path) -> None:
    error = refusal(ProjectNotPlatformIO, tmp, home)
    assert error.code == "project.not_platformio"


def test_several_environments_for_a_chip_are_listed_and_one_is_chosen(
    tmp: Path, home: Path
) -> None:
    text = "[env]\nplatform = aegis-esp\nboard = aegis-esp32p4\n[env:a]\n[env:b]\n"
    folder = project(tmp, text)
    error = refusal(EnvironmentAmbiguous, folder, home)
    assert error.message == "several environments are for esp32p4: a, b"
    assert error.facts == {"environments": ["a", "b"]}
    assert preflight(folder, home, target="esp32p4", environment="b").environment == "b"
    project(tmp, text + "[platformio]\ndefault_envs = b\n")
    assert preflight(folder, home, target="esp32p4").environment == "b"


def test_an_environment_that_is_not_there_is_named_with_those_that_are(
    tmp: Path, home: Path
) -> None:
    folder = project(tmp, "[env:a]\nplatform = aegis-esp\nboard = aegis-esp32\n")
    error = refusal(EnvironmentUnknown, folder, home, environment="z")
    assert "z" in error.message
    assert error.facts == {"environments": ["a"]}


def test_a_chip_that_no_environment_has_is_named_with_what_they_have(tmp: Path, home: Path) -> None:
    folder = project(tmp, "[env:a]\nplatform = aegis-esp\nboard = aegis-esp32c3\n")
    error = refusal(TargetUnsupported, folder, home)
    assert error.message == "no environment has a board with esp32p4: a (esp32c3)"
    error = refusal(TargetUnsupported, folder, home, environment="a")
    assert error.remedy == "Build it with `--target esp32c3`, or choose another `--env`."


def test_a_missing_platform_is_named_with_the_command_that_installs_it(
    tmp: Path, home: Path
) -> None:
    folder = project(tmp, "[env:x]\nplatform = espressif32@6.13.0\nboard = esp32dev\n")
    before = time.monotonic()
    error = refusal(PackageMissing, folder, home, target="esp32")
    assert time.monotonic() - before < 0.3
    assert error.code == "toolchain.package_missing"
    assert error.remedy == (
        "On the agent run: aegis-agent toolchains install-platform espressif32@6.13.0"
    )
    assert error.facts["missing"] == [
        {"kind": "platform", "name": "espressif32", "requirement": "espressif32@6.13.0"}
    ]


def test_a_missing_platform_by_address_is_named_with_its_board_and_framework(
    tmp: Path, home: Path
) -> None:
    folder = project(
        tmp,
        f"[env:p4]\nplatform = {PIOARDUINO}\nboard = esp32-p4-evboard\nframework = arduino\n",
    )
    error = refusal(PackageMissing, folder, home)
    assert error.remedy == (
        f"On the agent run: aegis-agent toolchains install-platform {PIOARDUINO} "
        "--board esp32-p4-evboard --framework arduino"
    )
    plan = plan_build(folder, home, target="esp32p4")
    assert (plan.environment, plan.chip, plan.platform_version) == ("p4", None, None)


def test_missing_packages_of_an_installed_platform_are_all_named(
    tmp: Path, home: Path, espressif32: Path
) -> None:
    folder = project(
        tmp,
        "[env:x]\nplatform = espressif32 @ ^6.4.0\nboard = esp32dev\nframework = arduino\n"
        "lib_deps =\n  bblanchon/ArduinoJson @ ^7.0\n  Wire\n  file://lib/own\n"
        "platform_packages = tool-extra @ 1.2\n",
    )
    error = refusal(PackageMissing, folder, home, target="esp32")
    assert [(one["kind"], one["name"]) for one in error.facts["missing"]] == [
        ("package", "toolchain-xtensa"),
        ("package", "framework-arduinoespressif32"),
        ("package", "tool-extra"),
        ("library", "ArduinoJson"),
    ]
    packages = home / "core" / "packages"
    write_package(packages / "a", "toolchain-xtensa", "8.4.0+2021r2", owner="espressif")
    write_package(packages / "b", "framework-arduinoespressif32", "3.20017.1")
    write_package(packages / "c", "tool-extra", "1.2.0")
    libdeps = folder / ".pio" / "libdeps" / "x"
    write_package(libdeps / "ArduinoJson", "ArduinoJson", "7.2.0", owner="bblanchon")
    plan = preflight(folder, home, target="esp32")
    assert (plan.platform_version, plan.frameworks) == ("6.13.0", ("arduino",))


def test_a_platform_of_another_version_is_a_missing_one(
    tmp: Path, home: Path, espressif32: Path
) -> None:
    folder = project(tmp, "[env:x]\nplatform = espressif32@~5.0\nboard = esp32dev\n")
    error = refusal(PackageMissing, folder, home, target="esp32")
    assert "espressif32@~5.0" in error.message


def test_a_platform_installed_from_its_address_is_found(tmp: Path, home: Path) -> None:
    folder = write_package(
        home / "core" / "platforms" / "pioarduino", "espressif32", "55.3.37", uri=PIOARDUINO
    )
    write_platform(folder, "espressif32")
    write_board(folder / "boards", "esp32-p4-evboard", "esp32p4")
    text = f"[env:p4]\nplatform = {PIOARDUINO}\nboard = esp32-p4-evboard\n"
    assert preflight(project(tmp, text), home, target="esp32p4").platform_version == "55.3.37"


def test_a_platform_that_the_project_brings_is_used_and_one_outside_is_not(
    tmp: Path, home: Path
) -> None:
    folder = project(tmp, "[env:x]\nplatform = symlink://mine\nboard = esp32dev\n")
    (folder / "mine").mkdir()
    write_platform(folder / "mine", "mine")
    assert preflight(folder, home, target="esp32").platform_version == "6.13.0"
    project(tmp, "[env:x]\nplatform = mine/../mine\nboard = esp32dev\n")
    assert preflight(folder, home, target="esp32").platform_version == "6.13.0"
    for outside in ("symlink://../mine", "file://../../x", "../mine", "~/mine"):
        project(tmp, f"[env:x]\nplatform = {outside}\nboard = esp32dev\n")
        error = refusal(ProjectConfigInvalid, folder, home, target="esp32")
        assert "leaves the project" in error.message
    project(tmp, f"[env:x]\nplatform = symlink://{tmp}/mine\nboard = esp32dev\n")
    refusal(PackageMissing, folder, home, target="esp32")


def test_a_board_of_the_project_and_a_chip_of_its_own_count(tmp: Path, home: Path) -> None:
    folder = project(
        tmp,
        "[env:own]\nplatform = aegis-esp\nboard = mine\n"
        "[env:changed]\nplatform = aegis-esp\nboard = aegis-esp32\nboard_build.mcu = ESP32C6\n",
    )
    write_board(folder / "boards", "mine", "esp32p4")
    assert preflight(folder, home, target="esp32p4").environment == "own"
    assert preflight(folder, home, target="esp32c6").environment == "changed"


def test_an_unknown_board_is_named_with_its_platform(tmp: Path, home: Path) -> None:
    folder = project(tmp, "[env:x]\nplatform = aegis-esp\nboard = nope\n")
    error = refusal(ProjectConfigInvalid, folder, home)
    assert error.message == "environment x: platform aegis-esp 1.0.0 has no board nope"


def test_a_missing_compiler_is_named_with_its_package(
    tmp: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_BUILD_PATH", str(tmp))
    error = refusal(ToolchainMissing, fixtures_dir() / "hello", home)
    assert "riscv64-unknown-elf-gcc" in error.message
    assert error.remedy.endswith("apt-get install gcc-riscv64-unknown-elf")


def test_extends_common_options_and_references_are_followed(tmp: Path, home: Path) -> None:
    folder = project(
        tmp,
        "[platformio]\nextra_configs = more/*.ini\n"
        "[common]\nchip = esp32p4\nplatform = aegis-esp\n"
        "[env:x]\nextends = base, other\nbuild_flags = -DX=${sysenv.HOME} ${this.__env__}\n",
    )
    (folder / "more").mkdir()
    (folder / "more" / "base.ini").write_text(
        "[base]\nplatform = ${common.platform} ; the one\n[other]\nboard = aegis-${common.chip}\n"
    )
    assert preflight(folder, home, target="esp32p4").board == "aegis-esp32p4"
    assert ProjectIni(folder).text("env:x", "build_flags") == "-DX= x"


BAD_CONFIGURATIONS = {
    "no section": "platform = aegis-esp\n",
    "twice": "[env:x]\nplatform = a\nplatform = b\n",
    "no environment": "[platformio]\ndescription = nothing\n",
    "no platform": "[env:x]\nboard = aegis-esp32p4\n",
    "a bad name": "[env:x y]\nplatform = aegis-esp\n",
    "no such reference": "[env:x]\nplatform = ${nowhere.platform}\n",
    "a reference to itself": "[env:x]\nplatform = ${env:x.platform}\n",
    "references that grow": "[b]\n"
    + "".join(f"v{n} = ${{b.v{n + 1}}}${{b.v{n + 1}}}\n" for n in range(19))
    + "v19 = "
    + "x" * 900
    + "\n[env:x]\nplatform = ${b.v0}\n",
    "a circle": "[a]\nextends = b\n[b]\nextends = a\n[env:x]\nextends = a\n",
    "a stray per cent": "[env:x]\nplatform = 100%\n",
    "configs outside": "[platformio]\nextra_configs = ../*.ini\n[env:x]\nplatform = aegis-esp\n",
    "an absolute config": "[platformio]\nextra_configs = /etc/passwd\n[env:x]\nplatform = a\n",
    "a config of home": "[platformio]\nextra_configs = ~/.netrc\n[env:x]\nplatform = a\n",
    "a board with a path": "[env:x]\nplatform = aegis-esp\nboard = ../../etc/passwd\n",
    "boards outside": "[platformio]\nboards_dir = /etc\n[env:x]\nplatform=aegis-esp\nboard=b\n",
    "no such default": "[platformio]\ndefault_envs = y\n[env:x]\nplatform = aegis-esp\n",
}


@pytest.mark.parametrize("text", BAD_CONFIGURATIONS.values(), ids=BAD_CONFIGURATIONS.keys())
def test_a_bad_configuration_is_an_error_with_words(text: str, tmp: Path, home: Path) -> None:
    error = refusal(ProjectConfigInvalid, project(tmp, text), home)
    assert error.code == "project.config_invalid"
    assert len(error.message) > 10
    assert error.remedy


def test_a_configuration_that_is_no_ordinary_text_is_refused(tmp: Path, home: Path) -> None:
    folder = project(tmp, "")
    ini = folder / "platformio.ini"
    ini.write_bytes(b"[env:\xff\xfe]\n")
    refusal(ProjectConfigInvalid, folder, home)
    ini.write_bytes(b"; " + b"x" * (1 << 20))
    refusal(ProjectConfigInvalid, folder, home)
    ini.unlink()
    (tmp / "outside.ini").write_text("[env:x]\nplatform = aegis-esp\nboard = aegis-esp32p4\n")
    ini.symlink_to(tmp / "outside.ini")
    refusal(ProjectConfigInvalid, folder, home)
    ini.unlink()
    os.mkfifo(ini)
    refusal(ProjectNotPlatformIO, folder, home)


def test_a_link_out_of_the_project_is_not_followed(tmp: Path, home: Path) -> None:
    (tmp / "secret.ini").write_text("[env:stolen]\nplatform = aegis-esp\n")
    write_board(tmp / "outside", "stolen", "esp32p4")
    folder = project(tmp, "[platformio]\nextra_configs = *.ini\n[env:x]\nplatform = aegis-esp\n")
    (folder / "more.ini").symlink_to(tmp / "secret.ini")
    refusal(ProjectConfigInvalid, folder, home)
    (folder / "more.ini").unlink()
    project(tmp, "[env:x]\nplatform = aegis-esp\nboard = stolen\n")
    (folder / "boards").symlink_to(tmp / "outside")
    refusal(ProjectConfigInvalid, folder, home)


SPECS = [
    "espressif32",
    "espressif32@6.13.0",
    "platformio/espressif32 @ ^6.4.0",
    PIOARDUINO,
    "https://github.com/x/y.git#v1",
    "https://github.com/x/y",
    "https://gitlab.com/x/y/-/archive/v1/y.tar.gz",
    "mine = https://example.org/z.zip",
    "framework-x @ https://example.org/z.zip",
    "git@example.org:x/y.git",
    "git+ssh://git@example.org/x/y.git",
    "symlink://../platform",
    "file:///opt/platform",
]

INI = """
[platformio]
default_envs = one, two
[common]
flags = -DA ; a comment
    -DB
chip = esp32p4
[base]
board = base-${common.chip}
platform = base
[other]
board = other
framework = arduino, espidf
[env]
platform = common
monitor_speed = 115200
custom_text = ${this.__env__} of ${this.platform}
[env:one]
extends = base, other
build_flags = ${common.flags}
[env:two]
extends =
    other
platform = two # a comment
"""


def ask_platformio(home: Path, code: str, *arguments: str, cwd: Path) -> Any:
    """Run `code` in PlatformIO's own environment and return the JSON that it prints."""
    done = subprocess.run(
        [str(Layout(home).python), "-c", code, *arguments],
        cwd=cwd,
        env={"PLATFORMIO_CORE_DIR": str(cwd / "core"), "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return json.loads(done.stdout)


def test_specs_are_read_as_the_real_platformio_reads_them(platformio_home: Path, tmp: Path) -> None:
    code = (
        "import json, sys; from platformio.package.meta import PackageSpec as P;"
        "print(json.dumps([P(raw).as_dict() for raw in sys.argv[1:]]))"
    )
    theirs = ask_platformio(platformio_home, code, *SPECS, cwd=tmp)
    ours = [parse_spec(raw) for raw in SPECS]
    assert [(one.owner, one.requirement, one.uri) for one in ours] == [
        (one["owner"], one["requirements"], one["uri"]) for one in theirs
    ]
    assert [one.name for one in ours if one.uri is None] == [
        one["name"] for one in theirs if one["uri"] is None
    ]


def test_a_configuration_is_read_as_the_real_platformio_reads_it(
    platformio_home: Path, tmp: Path
) -> None:
    folder = project(tmp, INI)
    options = ["platform", "board", "framework", "build_flags", "custom_text", "monitor_speed"]
    code = (
        "import json, sys; from platformio.project.config import ProjectConfig;"
        "c = ProjectConfig('platformio.ini');"
        "print(json.dumps({e: {o: c.get('env:' + e, o, None) for o in sys.argv[1:]}"
        " for e in c.envs()}))"
    )
    theirs = ask_platformio(platformio_home, code, *options, cwd=folder)
    ini = ProjectIni(folder)
    lists = {"framework", "build_flags"}
    ours = {
        name: {
            option: ini.list(f"env:{name}", option)
            if option in lists
            else ini.text(f"env:{name}", option)
            for option in options
        }
        for name in ini.environments
    }
    for values in theirs.values():
        values["monitor_speed"] = str(values["monitor_speed"])
        values.update({option: values[option] or [] for option in lists})
    assert ours == theirs


@pytest.mark.parametrize(
    ("raw", "version", "fits"),
    [
        ("a", "1.0.0", True),
        ("A", "1.0.0", True),
        ("b", "1.0.0", False),
        ("owner/a", "1.0.0", True),
        ("other/a", "1.0.0", False),
        ("a@^1.2", "1.9.0", True),
        ("a@^1.2", "2.0.0", False),
        ("a@>=1,<2", "1.5.0+sha.abc", True),
        ("a@nonsense", "1.0.0", False),
        ("a@1.0.0", "no version", False),
    ],
)
def test_a_package_fits_a_spec_by_name_owner_and_version(
    raw: str, version: str, fits: bool
) -> None:
    package = InstalledPackage(name="a", version=version, owner="owner", uri=None)
    assert matches(parse_spec(raw), package) is fits
