"""
What a project writes for a platform, a package or a library, and whether an installed one is it.

    espressif32                      a name
    platformio/espressif32 @ ^6.4.0  owner, name, versions
    framework-x = https://…/x.zip    a name of one's own for an address
    https://…/x.zip, …/x.git#v1      an address
    file://…, symlink://…, ./folder  a folder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from semantic_version import SimpleSpec, Version

_FOLDER_SCHEMES: Final = ("file://", "symlink://")
_GIT_HOSTS: Final = ("github.com", "gitlab.com", "bitbucket.com")
_ARCHIVES: Final = (".zip", ".tar.gz", ".tar.xz")


@dataclass(frozen=True)
class PackageSpec:
    """
    raw      as the project has it
    uri      an address as PlatformIO records it (`git+` before a repository), else None
    folder   the path after file:// or symlink://, else None
    """

    raw: str
    name: str
    owner: str | None = None
    requirement: str | None = None
    uri: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class InstalledPackage:
    """A package in a core directory or a libdeps folder. uri: where it was installed from."""

    name: str
    version: str
    owner: str | None
    uri: str | None


def parse_spec(raw: str) -> PackageSpec:
    """Return what `raw` asks for; it never fails, a strange spec just matches nothing."""
    text = raw.strip()
    if text.startswith(_FOLDER_SCHEMES):
        folder = text.partition("://")[2]
        return PackageSpec(raw, name=_name_of(folder), uri=text, folder=folder)
    if text.startswith(("./", "../", "/", "~")):
        return PackageSpec(raw, name=_name_of(text), uri=f"file://{text}", folder=text)
    requirement = None
    head, at, tail = text.rpartition("@")
    if at and not any(sign in tail for sign in ":/"):
        text, requirement = head.strip(), tail.strip() or None
    custom, equals, rest = text.partition("=")
    name = None
    if equals and "/" not in custom:
        name, text = custom.strip(), rest.strip()
    if not any(sign in text for sign in "@:/"):
        return PackageSpec(raw, name=name or text, requirement=requirement)
    if text.count("/") == 1 and not any(sign in text for sign in "@:"):
        owner, _, own_name = text.partition("/")
        return PackageSpec(raw, name=own_name.strip(), owner=owner.strip(), requirement=requirement)
    uri = _as_recorded(text)
    return PackageSpec(raw, name=name or _name_of(uri), requirement=requirement, uri=uri)


def matches(spec: PackageSpec, package: InstalledPackage) -> bool:
    """Whether `package` satisfies `spec`, by PlatformIO's rules."""
    if spec.uri is not None:
        return spec.uri == package.uri
    if spec.owner is not None and spec.owner.lower() != (package.owner or "").lower():
        return False
    if spec.name.lower() != package.name.lower():
        return False
    return satisfies(spec.requirement, package.version)


def satisfies(requirement: str | None, version: str) -> bool:
    """Whether `version` is one of `requirement` (`^6.1`, `~4.41101.0`, `>=1,<2`, None: any)."""
    if not requirement or requirement == "*":
        return True
    try:
        return Version.coerce(version) in SimpleSpec(requirement)
    except ValueError:
        return False


def _as_recorded(uri: str) -> str:
    parts = urlsplit(uri)
    if "+" in parts.scheme:
        return uri
    is_repository = parts.path.endswith(".git") or (
        parts.netloc in _GIT_HOSTS and not parts.path.endswith(_ARCHIVES)
    )
    return f"git+{uri}" if is_repository else uri


def _name_of(uri: str) -> str:
    path = uri.rstrip("/")
    for stop in "#?@":
        path = path.partition(stop)[0] if stop != "@" or "://" not in uri else path
    parts = urlsplit(path)
    if parts.netloc == "github.com" and parts.path.count("/") > 2:
        return parts.path.split("/")[2]
    return path.rsplit("/", 1)[-1].partition(".")[0]
