"""
An agent's building parts, wired as the daemon wires them: real stores, sandbox and compilers.

    stand = BuildStand(tmp, await Toolchains.detect(platformio_home=platformio_home))
    outcome = await stand.build(fixture("hello"))
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from aegis_agent.build import Build, Builder, BuildOutcome, BuildRequest
from aegis_agent.platformio_home import fixtures_dir
from aegis_agent.results import ResultStore
from aegis_agent.sandbox import Sandbox
from aegis_agent.source import PlannedSource, SourceStore
from aegis_agent.toolchains import Toolchains
from aegis_protocol.ids import new_id
from aegis_protocol.rpc import BuildStartParams, Terminal
from aegis_protocol.signing import public_bytes
from aegis_protocol.source import SourceFile, SourceLink, SourcePlan
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Files = Mapping[str, bytes]

USERS = 16
UID_BASE = 200_000 + os.getpid() % 20_000 * USERS


def fixture(name: str) -> dict[str, bytes]:
    """The files of a firmware fixture."""
    root = fixtures_dir() / name
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).parts[0].startswith(".")
    }


def with_script(files: Files, script: str) -> dict[str, bytes]:
    """`files` with a script that runs as a part of the build."""
    ini = files["platformio.ini"].replace(
        b"platform = aegis-esp", b"platform = aegis-esp\nextra_scripts = pre:hostile.py"
    )
    assert ini != files["platformio.ini"]
    return {**files, "platformio.ini": ini, "hostile.py": script.encode()}


def plan_of(
    files: Files,
    *,
    links: Mapping[str, str] | None = None,
    project_id: str = "project-1",
    executable: frozenset[str] = frozenset(),
) -> SourcePlan:
    return SourcePlan(
        project_id=project_id,
        installation_id="laptop-1",
        files=tuple(
            SourceFile(
                path=path,
                size_bytes=len(data),
                sha256=sha256(data).hexdigest(),
                executable=path in executable,
            )
            for path, data in sorted(files.items())
        ),
        links=tuple(
            SourceLink(path=path, target=target) for path, target in sorted((links or {}).items())
        ),
    )


def pack_of(planned: PlannedSource, files: Files) -> bytes:
    return b"".join(files[blob.path] for blob in planned.missing_blobs)


async def upload(
    store: SourceStore, identity: str, plan: SourcePlan, files: Files, scratch: Path
) -> PlannedSource:
    """Plan and push, as a client does."""
    planned = await store.plan(identity, plan)
    pack = scratch / new_id()
    pack.write_bytes(pack_of(planned, files))
    try:
        return await store.push(identity, planned, pack, "none")
    finally:
        pack.unlink()


@dataclass
class Screen:
    """A spool that only remembers."""

    data: bytearray = field(default_factory=bytearray)

    def append(self, data: bytes) -> None:
        self.data += data

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


@dataclass
class Progress:
    phases: list[str] = field(default_factory=list)
    reports: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, phase: str, done: int, total: int, detail: str = "") -> None:
        if not self.phases or self.phases[-1] != phase:
            self.phases.append(phase)
        self.reports.append((phase, done, total))


class BuildStand:
    def __init__(
        self,
        root: Path,
        toolchains: Toolchains,
        *,
        sandbox: Sandbox | None = None,
        silence_s: float = 30,
        quota_bytes: int = 1 << 30,
    ) -> None:
        # As an agent's state is: closed to everyone else.
        self.state = root / "state"
        self.state.mkdir(mode=0o700)
        self.key = Ed25519PrivateKey.generate()
        self.sources = SourceStore(self.state / "source", quota_bytes=quota_bytes)
        self.results = ResultStore(self.state / "results", quota_bytes=quota_bytes)
        self.sandbox = sandbox or our_sandbox()
        self.builder = Builder(
            sources=self.sources,
            results=self.results,
            toolchains=toolchains,
            sandbox=self.sandbox,
            sign=self.key.sign,
            silence_s=silence_s,
        )

    @property
    def public_key(self) -> bytes:
        return public_bytes(self.key)

    async def prepare(
        self,
        files: Files,
        *,
        target: str = "esp32p4",
        environment: str | None = None,
        identity: str = "alice",
        task_id: str | None = None,
        slot: int = 0,
        timeout_s: float = 60,
        clean: bool = False,
        verbose: bool = False,
        color: bool = True,
        links: Mapping[str, str] | None = None,
        project_id: str = "project-1",
    ) -> Build:
        plan = plan_of(files, links=links, project_id=project_id)
        planned = await upload(self.sources, identity, plan, files, self.state)
        params = BuildStartParams(
            plan_id=planned.plan_id,
            target=target,
            environment=environment,
            clean=clean,
            verbose=verbose,
            terminal=Terminal(cols=100, rows=30, color=color),
        )
        return await self.builder.prepare(
            BuildRequest(
                identity=identity,
                job_id=new_id(),
                task_id=task_id or new_id(),
                planned=planned,
                params=params,
                slot=slot,
                cpu_cores=2.0,
                memory_mb=1024,
                timeout_s=timeout_s,
                agent_id="ag-test",
            )
        )

    async def build(
        self,
        files: Files,
        *,
        screen: Screen | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> BuildOutcome:
        build = await self.prepare(files, **options)  # type: ignore[arg-type]
        return await build.run(screen or Screen(), progress or Progress())

    def workspace(self) -> Path:
        """The one workspace's folder that builds see as /project."""
        (found,) = self.state.glob("source/workspaces/*/*/project")
        return found


def as_ordinary_user(uid: int, code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """
    Run Python `code` as `uid`, from root. This clone may lie in a folder closed to everyone else,
    so it is shown at another place, in a mount namespace of its own.
    """
    repository = Path(__file__).resolve().parents[1]
    shown = Path("/mnt/clone")
    wings = ("protocol", "links", "agent")
    script = f"""
        mount -t tmpfs tmpfs /mnt && mkdir {shown} && mount --bind {repository} {shown} &&
        cd / && exec setpriv --reuid {uid} --regid {uid} --clear-groups \\
            env -i PATH=/usr/bin:/bin PYTHONPATH={":".join(str(shown / wing) for wing in wings)} \\
            {shown / Path(sys.prefix).relative_to(repository)}/bin/python -P -c "$0" "$@"
    """
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, code, *arguments],
        capture_output=True,
        timeout=90,
        check=False,
    )


def our_sandbox() -> Sandbox:
    """A sandbox whose builds run as users that no other run of the tests has."""
    return Sandbox(uid_base=UID_BASE)


def build_uid(slot: int = 0) -> int:
    """Who builds of `slot` run as here."""
    owner = our_sandbox().owner(slot)
    return owner.uid if owner else os.getuid()


def alive(word: str = "", slot: int = 0) -> list[str]:
    """The command lines with `word` in them of what builds of `slot` run now."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == build_uid(slot):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                # One that has ended and waits for its parent has no command line; and an
                # ordinary user runs more than builds.
                if line and word in line and (os.geteuid() == 0 or word or "bwrap --args" in line):
                    found.append(line)
        except OSError:
            continue
    return found
