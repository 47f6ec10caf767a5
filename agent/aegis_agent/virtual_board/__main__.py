# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m aegis_agent.virtual_board`: the process that is one board."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
from aegis_protocol.errors import AegisError, ErrorReply
from aegis_protocol.failures.virtual_board import BadBoardSetting

from aegis_agent.virtual_board.chips import CHIPS, chip_named
from aegis_agent.virtual_board.faults import parse_fault
from aegis_agent.virtual_board.process import BoardSettings, run_board


def main(argv: Sequence[str] | None = None) -> int:
    """Run a board; 0 when it was stopped, 2 when it could not be made."""
    options = _parser().parse_args(argv)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if options.verbose else logging.WARNING
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    own_folder = None if options.listen else Path(tempfile.mkdtemp(prefix="aegis-board-"))
    try:
        asyncio.run(run_board(_settings(options, own_folder)))
    except (AegisError, BaseExceptionGroup) as exc:
        error = _first(exc)
        if options.json:
            sys.stderr.write(ErrorReply(error=error.body()).model_dump_json() + "\n")
        else:
            sys.stderr.write(f"error: {error.message}\n{error.remedy}\n")
        return 2
    finally:
        if own_folder is not None:
            shutil.rmtree(own_folder, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aegis-agent virtual-board", description="A board without hardware."
    )
    parser.add_argument("--chip", required=True, help=", ".join(CHIPS))
    parser.add_argument("--listen", type=Path, help="path of the socket behind its virtual:// URL")
    parser.add_argument("--pty", type=Path, metavar="LINK", help="offer a pty behind this link")
    parser.add_argument("--pty-lines", type=Path, metavar="SOCK", help=argparse.SUPPRESS)
    parser.add_argument("--flash-file", type=Path, help="keep the flash in this file")
    parser.add_argument("--flash-size", help="such as 4MB or 16MB")
    parser.add_argument("--mac", help="such as 02:ae:00:00:00:01")
    parser.add_argument("--revision", help="of the chip, such as 1.3")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME[:NUMBER]")
    parser.add_argument("--pace", action="store_true", help="as slow as a wire at its rate")
    parser.add_argument("--cpu-budget", default="0.5", help="part of a core for the firmware")
    parser.add_argument("--json", action="store_true", help="one JSON line when it is ready")
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    return parser


def _settings(options: argparse.Namespace, own_folder: Path | None) -> BoardSettings:
    chip = chip_named(options.chip)
    listen = own_folder / f"{chip.name}.sock" if own_folder else options.listen.absolute()
    if options.pty_lines and not options.pty:
        raise BadBoardSetting("--pty-lines gives lines to a pty: it needs --pty.")
    return BoardSettings(
        chip=chip,
        listen=listen,
        pty=options.pty.absolute() if options.pty else None,
        pty_lines=options.pty_lines,
        flash_file=options.flash_file,
        flash_size=parse_size(options.flash_size) if options.flash_size else None,
        mac=parse_mac(options.mac) if options.mac else None,
        revision=options.revision or chip.revision,
        faults=tuple(parse_fault(text) for text in options.fault),
        is_paced=options.pace,
        cpu_budget=parse_budget(options.cpu_budget),
        is_json=options.json,
        ends_with_stdin=options.until_stdin_closes,
    )


def parse_size(text: str) -> int:
    """Return the bytes that `4MB`, `4MiB`, `512KB` or a plain number mean."""
    match = re.fullmatch(r"(\d{1,9})\s*(k|m)?(i?b)?", text.strip().lower())
    if match is None:
        raise BadBoardSetting(f"{text!r} is no size such as 16MB.")
    unit = {"k": 1024, "m": 1024 * 1024}.get(match[2] or "", 1)
    return int(match[1]) * unit


def parse_mac(text: str) -> bytes:
    """Return the six bytes of a MAC; a group address is none of a board."""
    if not re.fullmatch(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}", text):
        raise BadBoardSetting(f"{text!r} is no MAC such as 02:ae:00:00:00:01.")
    mac = bytes.fromhex(text.replace("-", ":").replace(":", ""))
    if mac[0] & 1:
        raise BadBoardSetting(f"{text} is a group address: the first byte must be even.")
    return mac


def parse_budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = 0.0
    if not 0 < budget <= 1:
        raise BadBoardSetting(f"{text!r} is no part of a core: above 0, at most 1.")
    return budget


def _first(exc: BaseException) -> AegisError:
    """Return the named failure in `exc`; anything else in it is a bug and goes on."""
    found = exc
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, AegisError):
        raise exc
    return found


if __name__ == "__main__":
    sys.exit(main())
