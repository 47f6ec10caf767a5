"""What a build needs installed: the platform, its packages, the project's libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegis_agent.platformio_home.inventory import Platform, installed_packages
from aegis_agent.platformio_home.package_spec import (
    InstalledPackage,
    PackageSpec,
    matches,
    parse_spec,
)
from aegis_agent.platformio_home.project_environment import ProjectEnvironment, read_spec
from aegis_agent.platformio_home.project_ini import ProjectIni


@dataclass(frozen=True)
class Missing:
    """Something to install before a build. requirement: as the project asks for it."""

    kind: Literal["platform", "package", "library"]
    name: str
    requirement: str


def missing_for(ini: ProjectIni, chosen: ProjectEnvironment, core: Path) -> list[Missing]:
    """Return what `core` and the project's own libdeps lack for environment `chosen`."""
    section = f"env:{chosen.name}"
    if chosen.platform is None:
        return [Missing("platform", chosen.spec.name, chosen.spec.raw)]
    wanted = _needed_packages(chosen.platform, chosen.frameworks)
    for text in ini.list(section, "platform_packages"):
        spec = read_spec(ini, text, "platform_packages")
        wanted[spec.name] = spec
    have = installed_packages(core / "packages")
    missing = [
        Missing("package", spec.name, spec.raw)
        for spec in wanted.values()
        if not _is_there(spec, have)
    ]
    libdeps = ini.text("platformio", "libdeps_dir")
    folder = ini.inside(
        libdeps if libdeps and "${" not in libdeps else ".pio/libdeps", "libdeps_dir"
    )
    libraries = installed_packages(folder / chosen.name)
    for text in ini.list(section, "lib_deps"):
        spec = read_spec(ini, text, "lib_deps")
        # A bare name is a library that comes with the framework or lies in lib/.
        if (spec.uri or spec.owner) and not _is_there(spec, libraries):
            missing.append(Missing("library", spec.name, spec.raw))
    return missing


def _needed_packages(platform: Platform, frameworks: tuple[str, ...]) -> dict[str, PackageSpec]:
    """What the platform's manifest demands. More is up to its code, which is not run here."""
    declared = platform.manifest.get("packages")
    declared = declared if isinstance(declared, dict) else {}
    known = platform.manifest.get("frameworks")
    known = known if isinstance(known, dict) else {}
    required = {
        str(known[name].get("package")) for name in frameworks if isinstance(known.get(name), dict)
    }
    needed = {}
    for name, options in declared.items():
        if not isinstance(options, dict) or (options.get("optional") and name not in required):
            continue
        version = str(options.get("version") or "*")
        owner = options.get("owner")
        if "://" in version:
            needed[name] = parse_spec(f"{name}={version}")
        else:
            needed[name] = PackageSpec(
                raw=f"{f'{owner}/' if owner else ''}{name} @ {version}",
                name=name,
                owner=owner if isinstance(owner, str) else None,
                requirement=version,
            )
    return needed


def _is_there(spec: PackageSpec, have: list[InstalledPackage]) -> bool:
    # A folder in the project is copied by the build itself.
    return spec.folder is not None or any(matches(spec, package) for package in have)
