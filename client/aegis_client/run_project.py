"""Build, flash and watch in one job; and the proof that the board runs what was built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from aegis_protocol.failures.board import NoResetLines

from aegis_client.board_choice import check_wish
from aegis_client.build_project import BuildReport, ProjectBuild, build_in, read_project
from aegis_client.client import Client
from aegis_client.failures import ProofFailed
from aegis_client.flash import FlashOptions, FlashReport, FlashSource, flash
from aegis_client.monitor import MonitorOptions, MonitorReport, watch_console
from aegis_client.reporter import Reporter
from aegis_client.session import Session
from aegis_client.wish import Wish


@dataclass(frozen=True)
class Proof:
    """Whether the digest on the console is that of the ELF that was built."""

    status: Literal["equal", "differs", "not_printed", "unknown"]
    artifact: str | None
    console: str | None


@dataclass(frozen=True)
class RunReport:
    """As far as it came: a failed build is not flashed."""

    build: BuildReport
    flash: FlashReport | None = None
    monitor: MonitorReport | None = None
    proof: Proof | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "build": self.build.as_json(),
            "flash": self.flash.as_json() if self.flash else None,
            "monitor": self.monitor.as_json() if self.monitor else None,
            "proof": vars(self.proof) if self.proof else None,
        }


async def run_project(
    client: Client,
    wanted: ProjectBuild,
    flashing: FlashOptions,
    watching: MonitorOptions,
    wish: Wish,
    reporter: Reporter,
) -> RunReport:
    """
    Build the project, flash it to the board of `wish`, reset the board (where its port can) and
    watch its console.

    A failed build is returned. Raises what flash and monitor raise, and ProofFailed when the
    board runs something else than what was built.
    """
    project = await read_project(client, wanted.folder, reporter)
    for board in wish.boards:
        check_wish((await client.control.boards()).boards, board, wanted.options.target)
    async with client.session(replace(wish, project_key=project.id), reporter) as session:
        built = await build_in(session, client, project, wanted, reporter)
        if built.error is not None:
            return RunReport(built)
        source = FlashSource(task_id=built.task.task_id)
        flashed = await flash(session, source, built.target, flashing, reporter)
        reporter.note(f"flashed {flashed.board.id} ({flashed.result.duration_s:.1f} s)")
        seen = await _watched(session, flashed.board.id, replace(watching, elf=True), reporter)
    manifest = built.manifest
    proof = prove(manifest.elf_sha256 if manifest else None, seen.elf_sha256)
    if proof.status == "differs":
        raise ProofFailed(
            f"the console names the ELF {proof.console}, and {proof.artifact} was built",
            console=proof.console,
            artifact=proof.artifact,
        )
    return RunReport(built, flashed, seen, proof)


async def _watched(
    session: Session, board_id: str, options: MonitorOptions, reporter: Reporter
) -> MonitorReport:
    """Watch the board from its reset on; or from now on, where its port can't reset it."""
    try:
        return await watch_console(session, board_id, replace(options, reset=True), reporter)
    except NoResetLines as exc:
        reporter.note(f"{exc.message}; watching from here. {exc.remedy}")
    return await watch_console(session, board_id, options, reporter)


def prove(artifact: str | None, console: str | None) -> Proof:
    """Compare an ELF's SHA-256 with what a console printed, which may be only its beginning."""
    if artifact is None:
        return Proof("unknown", artifact, console)
    if console is None:
        return Proof("not_printed", artifact, console)
    return Proof("equal" if artifact.startswith(console) else "differs", artifact, console)
