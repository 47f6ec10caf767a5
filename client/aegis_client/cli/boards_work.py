"""What flash, monitor and run do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from aegis_protocol.board import BoardWish

from aegis_client.board_choice import check_wish
from aegis_client.build_project import ProjectBuild
from aegis_client.cli.build_work import shown, summary
from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.cli.progress import LiveReporter, log_stream
from aegis_client.client import Client
from aegis_client.exit_codes import ExitCode, exit_code
from aegis_client.expect import ConsoleWatch
from aegis_client.failures import UsageInvalid
from aegis_client.firmware import find_firmware
from aegis_client.flash import FlashOptions, FlashReport, choose_source, granted_board
from aegis_client.flash import flash as flash_board
from aegis_client.keyboard import keys
from aegis_client.monitor import MonitorOptions, watch_console
from aegis_client.needs import FLASH, RESET, TYPE, UPLOAD, WATCH, Needs
from aegis_client.run_project import RunReport, run_project
from aegis_client.terminal import keys_at_once
from aegis_client.timestamps import Timestamps
from aegis_client.wish import Wish

LONGEST_WATCH_S: Final = 14_400
_MARGIN_S: Final = 120


def flash(
    out: Output,
    what: Path | None,
    build: str | None,
    board: BoardWish,
    options: FlashOptions,
    *,
    agent: str | None,
    timeout_s: int,
    wait_s: float,
) -> ExitCode:
    async def work(client: Client) -> None:
        firmware = find_firmware(client, what, build)
        wanted = board
        if board.id is None and board.chip is None:
            wanted = board.model_copy(update={"chip": firmware.target})
        rows = (await client.control.boards()).boards
        check_wish(rows, wanted, firmware.target)
        source, builder = choose_source(firmware, wanted, rows)
        wish = Wish(
            needs=FLASH if source.bundle is None else FLASH | UPLOAD,
            timeout_s=timeout_s,
            wait_s=wait_s,
            agent=agent or builder,
            boards=(wanted,),
        )
        with LiveReporter(out, None) as reporter:
            async with client.session(wish, reporter) as session:
                report = await flash_board(session, source, firmware.target, options, reporter)
        out.result(report.as_json())
        _flashed(out, report)

    return with_client(out, work)


def monitor(
    out: Output,
    board: BoardWish,
    options: MonitorOptions,
    *,
    agent: str | None,
    wait_s: float,
    timestamps: bool,
    eol: str,
    stdin: bool,
) -> ExitCode:
    if board.id is None and board.chip is None and not board.labels:
        raise UsageInvalid("say which board: --board ID, --chip CHIP or --label K=V")
    ConsoleWatch(options.expect, options.fail)  # a bad pattern is named before a job is made
    interactive = sys.stdin.isatty() and out.talks
    types = interactive or stdin
    wish = Wish(
        needs=monitor_needs(types=types, resets=options.reset),
        timeout_s=min(LONGEST_WATCH_S, int(options.timeout_s or LONGEST_WATCH_S) + _MARGIN_S),
        wait_s=wait_s,
        agent=agent,
        boards=(board,),
    )

    async def work(client: Client) -> None:
        check_wish((await client.control.boards()).boards, board, None)
        leave = asyncio.Event()
        with LiveReporter(out, log_stream(out, None), stamps(timestamps)) as reporter:
            async with client.session(wish, reporter) as session:
                if interactive:
                    reporter.note("Ctrl-] leaves")
                with keys_at_once():
                    report = await watch_console(
                        session,
                        granted_board(session).id,
                        options,
                        reporter,
                        keys=keys(leave, eol) if types else None,
                        leave=leave,
                    )
        out.result({"job_id": session.job_id, **report.as_json()})
        if report.matched is not None:
            out.note(f"seen: {report.matched!r}")

    return with_client(out, work)


def run(
    out: Output,
    wanted: ProjectBuild,
    flashing: FlashOptions,
    watching: MonitorOptions,
    wish: Wish,
    *,
    timestamps: bool,
    show: bool | None,
) -> ExitCode:
    ConsoleWatch(watching.expect, watching.fail)

    async def work(client: Client) -> ExitCode:
        with LiveReporter(out, log_stream(out, show), stamps(timestamps)) as reporter:
            report = await run_project(client, wanted, flashing, watching, wish, reporter)
        return _ran(out, report)

    return with_client(out, work)


def monitor_needs(*, types: bool, resets: bool) -> Needs:
    needs = WATCH | TYPE if types else WATCH
    return needs | RESET if resets else needs


def stamps(wanted: bool) -> Timestamps | None:
    return Timestamps() if wanted else None


def _ran(out: Output, report: RunReport) -> ExitCode:
    error = report.build.error
    if error is not None and not out.json:
        return shown(out, report.build)
    out.result(report.as_json())
    if error is not None:
        out.error(error)
        return exit_code(error.code)
    if out.json:
        return ExitCode.OK
    summary(out, report.build)
    if report.flash is not None:
        _flashed(out, report.flash)
    if report.monitor is not None and report.monitor.matched is not None:
        out.line(f"the console showed: {report.monitor.matched}")
    proof = report.proof
    if proof is not None and proof.status == "equal":
        out.line(f"the board runs what was built: ELF SHA-256 {proof.console}")
    elif proof is not None and proof.status == "not_printed":
        out.note("the console did not print an ELF SHA-256 to compare with what was built")
    return ExitCode.OK


def _flashed(out: Output, report: FlashReport) -> None:
    result = report.result
    out.line(
        f"flashed {result.board_id} ({result.chip}{f', {result.mac}' if result.mac else ''}) "
        f"on {report.agent_name} in {result.duration_s:.1f} s"
    )
    if result.regions and not out.quiet:
        out.table(
            ["offset", "region", "bytes", "SHA-256, as verified"],
            [[f"0x{r.offset:x}", r.name, str(r.size_bytes), r.sha256[:16]] for r in result.regions],
        )
