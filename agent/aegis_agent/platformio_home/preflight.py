"""
What a build would do and what it lacks, before anything runs: in a fraction of a second, with no
network, without the project's code. PlatformIO itself needs a minute of silent retries to find
out, and then does not say what.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from aegis_protocol.failures.toolchain import (
    EnvironmentAmbiguous,
    EnvironmentUnknown,
    PackageMissing,
    ProjectConfigInvalid,
    TargetUnsupported,
    ToolchainMissing,
)

from aegis_agent.platformio_home.inventory import (
    OUR_PLATFORM,
    installed_platforms,
    missing_compiler,
)
from aegis_agent.platformio_home.layout import Layout
from aegis_agent.platformio_home.needs import Missing, missing_for
from aegis_agent.platformio_home.project_environment import ProjectEnvironment, read_environment
from aegis_agent.platformio_home.project_ini import ProjectIni


@dataclass(frozen=True)
class PreflightPlan:
    """
    What a build would use.

    environment       of platformio.ini, for `--environment`
    chip              None while the platform that knows the board is missing
    platform          as the project asks for it
    platform_version  of the installed one; None while it is missing
    missing           empty when the build can start
    """

    environment: str
    platform: str
    board: str | None
    chip: str | None
    frameworks: tuple[str, ...]
    platform_version: str | None
    missing: tuple[Missing, ...]

    def ensure_complete(self) -> None:
        """Raise PackageMissing, naming all that is missing and the command that installs it."""
        if self.missing:
            raise _package_missing(self)


def preflight(
    project_dir: Path, home: Path, *, target: str, environment: str | None = None
) -> PreflightPlan:
    """
    Return the plan of a build of `project_dir` for chip `target`; it is complete.

    environment  of platformio.ini; None: the one whose board has that chip

    Raises
    ------
    ProjectNotPlatformIO, ProjectConfigInvalid
    EnvironmentUnknown    there is no such environment, or none at all
    EnvironmentAmbiguous  several have the chip (and `default_envs` names not just one of them)
    TargetUnsupported     none has the chip, or the one asked for has another
    PackageMissing        something must be installed first: all of it, with the command
    ToolchainMissing      the compiler of our own platform is not installed
    """
    plan = plan_build(project_dir, home, target=target, environment=environment)
    plan.ensure_complete()
    return plan


def plan_build(
    project_dir: Path, home: Path, *, target: str, environment: str | None = None
) -> PreflightPlan:
    """`preflight`, for a caller that may install what is missing: that is no error here."""
    ini = ProjectIni(project_dir)
    core = Layout(home).core
    installed = installed_platforms(core)
    names = ini.environments
    if not names:
        raise ProjectConfigInvalid(
            "platformio.ini has no environment",
            remedy="Add one, such as [env:esp32p4] with platform and board.",
        )
    if environment is not None:
        if environment not in names:
            raise EnvironmentUnknown(
                f"platformio.ini has no environment {environment}; it has {', '.join(names)}",
                environments=list(names),
            )
        chosen = read_environment(ini, environment, installed)
        _check_chip(chosen, target)
    else:
        chosen = _choose([read_environment(ini, name, installed) for name in names], ini, target)
    if chosen.platform is not None and chosen.platform.name == OUR_PLATFORM and chosen.board:
        lacking = missing_compiler(chosen.board)
        if lacking is not None:
            raise ToolchainMissing(
                f"{lacking[0]} is not installed on the agent",
                remedy=f"On the agent, on Debian or Ubuntu: apt-get install {lacking[1]}",
            )
    return PreflightPlan(
        environment=chosen.name,
        platform=chosen.spec.raw,
        board=chosen.board_id,
        chip=chosen.chip,
        frameworks=chosen.frameworks,
        platform_version=chosen.platform.version if chosen.platform else None,
        missing=tuple(missing_for(ini, chosen, core)),
    )


def _choose(found: list[ProjectEnvironment], ini: ProjectIni, target: str) -> ProjectEnvironment:
    fitting = [one for one in found if one.chip == target]
    defaults = ini.default_environments
    if len(fitting) > 1:
        by_default = [one for one in fitting if one.name in defaults]
        fitting = by_default if len(by_default) == 1 else fitting
    if not fitting:
        # Perhaps one of those whose platform isn't there: then that is what to say.
        fitting = [one for one in found if one.undecided]
        preferred = [one for one in fitting if one.name in defaults]
        fitting = preferred[:1] or fitting[:1]
    if not fitting:
        chips = {one.name: one.chip for one in found}
        listed = ", ".join(f"{name} ({chip or 'no board'})" for name, chip in chips.items())
        raise TargetUnsupported(
            f"no environment has a board with {target}: {listed}", environments=dict(chips)
        )
    if len(fitting) > 1:
        names = [one.name for one in fitting]
        raise EnvironmentAmbiguous(
            f"several environments are for {target}: {', '.join(names)}", environments=list(names)
        )
    return fitting[0]


def _check_chip(chosen: ProjectEnvironment, target: str) -> None:
    if chosen.undecided or chosen.chip == target:
        return
    raise TargetUnsupported(
        f"environment {chosen.name} is for {chosen.chip or 'no board'}, not for {target}",
        remedy=f"Build it with `--target {chosen.chip}`, or choose another `--env`."
        if chosen.chip
        else None,
        environments={chosen.name: chosen.chip},
    )


def _package_missing(plan: PreflightPlan) -> PackageMissing:
    names = ", ".join(f"{one.kind} {one.requirement}" for one in plan.missing)
    kinds = {one.kind for one in plan.missing}
    if kinds == {"library"}:
        remedy = (
            "Builds have no network: put the libraries into the project's lib/ folder, or let the "
            "agent fetch them (AEGIS_BUILD_NETWORK)."
        )
    else:
        remedy = f"On the agent run: {_install_command(plan)}"
    return PackageMissing(
        f"environment {plan.environment} needs what the agent does not have: {names}",
        remedy=remedy,
        missing=[
            {"kind": one.kind, "name": one.name, "requirement": one.requirement}
            for one in plan.missing
        ],
    )


def _install_command(plan: PreflightPlan) -> str:
    words = ["aegis-agent", "toolchains", "install-platform", plan.platform]
    if plan.board and plan.frameworks:
        words += ["--board", plan.board]
        for framework in plan.frameworks:
            words += ["--framework", framework]
    return shlex.join(words)
