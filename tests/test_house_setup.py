"""What set-up says on a machine where something is missing: what, and the command that mends it."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from house import ROOT, as_nobody, copy_clone, give_to_nobody, path_with_only, run

# What a Debian has before anything is installed, as far as set-up uses it.
MINIMAL = [
    *("sh", "dirname", "id", "date", "mkdir", "mv", "cat", "sed", "tail", "timeout", "cksum"),
    *("apt-get", "setpriv", "flock", "true"),
]


@pytest.fixture
def clone(tmp: Path) -> Path:
    copy_clone(tmp / "clone", "scripts", "pyproject.toml", "constraints.txt", "Makefile")
    if os.geteuid() == 0:
        give_to_nobody(tmp / "clone")
    return tmp / "clone"


def test_an_ordinary_user_is_told_the_command_that_installs_what_is_missing(
    clone: Path, tmp: Path
) -> None:
    path = path_with_only(tmp / "bin", MINIMAL)
    done = run([*as_nobody(), "/bin/sh", "scripts/setup.sh", "demo"], cwd=clone, env={"PATH": path})
    assert done.returncode == 2
    line = next(line for line in done.stderr.splitlines() if "apt-get install" in line)
    words = shlex.split(line)
    assert words[:2] == ["sudo", "apt-get"]
    assert {"python3", "python3-venv", "bubblewrap", "gcc-riscv64-unknown-elf"} <= set(words)
    assert "util-linux" not in words  # setpriv is there
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


def test_without_apt_the_missing_packages_are_named(clone: Path, tmp: Path) -> None:
    path = path_with_only(tmp / "bin", [name for name in MINIMAL if name != "apt-get"])
    done = run([*as_nobody(), "/bin/sh", "scripts/setup.sh", "demo"], cwd=clone, env={"PATH": path})
    assert done.returncode == 2
    assert "bubblewrap" in done.stderr
    assert "apt-get install" not in done.stderr


def test_the_tests_need_more_than_the_demo(clone: Path, tmp: Path) -> None:
    path = path_with_only(tmp / "bin", MINIMAL)
    argv = [*as_nobody(), "/bin/sh", "scripts/setup.sh"]
    demo = run([*argv, "demo"], cwd=clone, env={"PATH": path}).stderr
    test = run([*argv, "test"], cwd=clone, env={"PATH": path}).stderr
    assert "shellcheck" in test
    assert "shellcheck" not in demo


@pytest.mark.parametrize(
    ("proof", "there"),
    [
        ("command:no-such|file:{tmp}/*/bin/initdb", True),
        ("command:sh|file:/no/such", True),
        ("command:no-such|file:{tmp}/*/sbin/initdb", False),
        ("file:{tmp}/15/bin/initdb", True),
    ],
)
def test_a_package_may_be_proven_in_one_of_several_ways(tmp: Path, proof: str, there: bool) -> None:
    (tmp / "15/bin").mkdir(parents=True)
    (tmp / "15/bin/initdb").touch()
    text = '. "$0"; is_there "$1"'
    script = str(ROOT / "scripts/setup/system_packages.sh")
    done = run(["/bin/sh", "-c", text, script, proof.format(tmp=tmp)], cwd=tmp)
    assert (done.returncode == 0) is there, done.stderr


def test_a_python_that_is_too_old_is_named_with_the_way_to_choose_another(
    clone: Path, tmp: Path
) -> None:
    path = path_with_only(tmp / "bin", MINIMAL)
    old = tmp / "bin" / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    done = run([*as_nobody(), "/bin/sh", "scripts/setup.sh", "lint"], cwd=clone, env={"PATH": path})
    assert done.returncode == 2
    assert "3.11 or newer" in done.stderr
    assert "3.9.2" in done.stderr
    assert "PYTHON=" in done.stderr


def in_a_kernel_that_refuses(settings: dict[str, str], argv: list[str]) -> list[str]:
    """
    The words that run `argv` where no user namespace can be made, as an ordinary user.

    The refusal is the kernel's own; `settings` are the files that /proc/sys/kernel then has.
    """
    files = {"overflowuid": "65534", "overflowgid": "65534", **settings}
    writes = [f"echo {value} > /proc/sys/kernel/{name}" for name, value in files.items()]
    script = " && ".join(
        [
            "mount -t tmpfs tmpfs /proc/sys/kernel",
            *writes,
            "echo 0 > /proc/sys/user/max_user_namespaces",
            shlex.join(["exec", "setpriv", "--inh-caps=-all", "--ambient-caps=-all", *argv]),
        ]
    )
    namespaces = ["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    return [*as_nobody(), *namespaces, "sh", "-c", script]


@pytest.mark.requires("unshare", "setpriv", "bwrap", "riscv64-unknown-elf-gcc")
@pytest.mark.parametrize(
    ("settings", "remedies"),
    [
        (
            {"apparmor_restrict_unprivileged_userns": "1"},
            ["install -m 0644 systemd/apparmor/aegis-bwrap", "apparmor_parser -r", "cd "],
        ),
        ({"unprivileged_userns_clone": "0"}, ["kernel.unprivileged_userns_clone=1", "sysctl"]),
        ({}, ["user.max_user_namespaces=", "sysctl"]),
    ],
    ids=["ubuntu", "hardened-debian", "no-namespaces"],
)
def test_refused_user_namespaces_are_explained_with_exact_commands(
    clone: Path, settings: dict[str, str], remedies: list[str]
) -> None:
    argv = in_a_kernel_that_refuses(settings, ["sh", "scripts/setup.sh", "demo"])
    done = run(argv, cwd=clone)
    assert done.returncode == 2, done.stderr
    assert "bubblewrap can't make a sandbox here" in done.stderr
    for remedy in remedies:
        assert remedy in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


def test_make_alone_names_every_target(clone: Path) -> None:
    shown = run(["make", "--no-print-directory"], cwd=clone).stdout
    makefile = (clone / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    for target in targets:
        assert f"make {target}" in shown or target == "help"


def test_a_benchmark_that_is_not_there_is_said(clone: Path) -> None:
    done = run(["make", "--no-print-directory", "bench", "NAME=nosuch"], cwd=clone)
    assert done.returncode != 0
    assert "no benchmark called nosuch" in done.stderr


def test_a_failed_stage_fails_the_run_of_ci_after_the_others_ran(clone: Path, tmp: Path) -> None:
    copy_clone(clone, ".ci")
    (clone / "Makefile").write_text(
        "setup test test-long:\n\t@echo ran $@\nlint:\n\t@echo ran $@; exit 3\n"
    )
    done = run(["bash", ".ci/run"], cwd=clone)
    assert done.returncode == 1
    for stage in ("setup", "lint", "test", "test-long"):
        assert f"ran {stage}\n" in done.stdout
    assert "failed: lint" in done.stdout


def test_without_a_set_up_ci_runs_no_stage(clone: Path) -> None:
    copy_clone(clone, ".ci")
    (clone / "Makefile").write_text("setup:\n\t@exit 2\nlint test test-long:\n\t@echo ran $@\n")
    done = run(["bash", ".ci/run"], cwd=clone)
    assert done.returncode == 1
    assert "ran" not in done.stdout
    assert "failed: setup" in done.stdout


def test_a_second_set_up_waits_for_the_first(clone: Path, tmp: Path) -> None:
    (clone / "build").mkdir()
    if os.geteuid() == 0:
        give_to_nobody(clone)
    path = path_with_only(tmp / "bin", MINIMAL)
    with subprocess.Popen(
        ["flock", clone / "build/setup.lock", "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        second = subprocess.Popen(
            ["/bin/sh", "scripts/setup.sh", "nosuch"],
            cwd=clone,
            env={"PATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        holder.communicate("done\n", timeout=10)
        _, stderr = second.communicate(timeout=10)
    assert second.returncode == 2
    assert "usage" in stderr
