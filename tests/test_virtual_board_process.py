"""The process that is a board: how it starts, what it says of bad settings, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from aegis_agent.virtual_board.control_words import BoardState
from aegis_agent.virtual_board.spawn import virtual_board
from aegis_protocol.failures.virtual_board import (
    BadBoardSetting,
    BoardAddressTaken,
    BoardControlFailed,
    FlashFileUnusable,
)
from waiting import until

BOARD = (sys.executable, "-m", "aegis_agent.virtual_board")


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *BOARD,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_a_board_and_leaves_nothing(number: signal.Signals, tmp: Path) -> None:
    link = tmp / "pty"
    process = await start("--chip", "esp32", "--json", "--pty", str(link))
    assert process.stdout is not None and process.stderr is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
    assert ready["pty"] == str(link) and link.is_symlink()
    assert ready["url"] == f"virtual://{ready['socket']}" and ready["pid"] == process.pid
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not await process.stderr.read()
    assert not link.is_symlink()
    assert not Path(ready["socket"]).parent.exists()


async def test_a_board_says_in_words_where_it_is(tmp: Path) -> None:
    process = await start("--chip", "esp32", "--listen", str(tmp / "a board"))
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readuntil(b"board\n"), 20)
    assert f"virtual://{tmp}/a%20board".encode() in said
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_board_ends_with_the_program_that_started_it(tmp: Path) -> None:
    script = (
        "import asyncio, os\n"
        "from aegis_agent.virtual_board.spawn import virtual_board\n"
        "async def main():\n"
        "    async with virtual_board(chip='esp32') as board:\n"
        "        print(board.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp)},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 20)))
    parent.kill()
    await parent.wait()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_settings_that_make_no_board_are_named() -> None:
    for wrong in (
        {"chip": "esp8266"},
        {"flash_size": "3MB"},
        {"flash_size": "much"},
        {"mac": "02:ae"},
        {"mac": "01:00:00:00:00:00"},
        {"revision": "77.1"},
        {"faults": ["smoke"]},
        {"cpu_budget": 2.0},
    ):
        with pytest.raises(BadBoardSetting):
            async with virtual_board(**{"chip": "esp32", **wrong}):  # type: ignore[arg-type]
                pass


async def test_a_path_that_is_taken_is_refused_and_a_dead_socket_replaced(tmp: Path) -> None:
    path = tmp / "port"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    process = await start("--chip", "esp32", "--json", "--listen", str(path))
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert json.loads(stderr)["error"]["code"] == BoardAddressTaken.code
    listener.close()
    process = await start("--chip", "esp32", "--json", "--listen", str(path))
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20)
    process.terminate()
    await asyncio.wait_for(process.wait(), 10)


async def test_two_boards_never_share_a_flash_file(tmp: Path) -> None:
    path = tmp / "flash.bin"
    async with virtual_board(chip="esp32", flash_file=path, flash_size="1MB") as first:
        with pytest.raises(FlashFileUnusable):
            async with virtual_board(chip="esp32", flash_file=path):
                pass
        assert await first.read_flash(0, 10) == b"\xff" * 10
    async with virtual_board(chip="esp32", flash_file=path) as again:
        assert again.mac == first.mac, "a board that is kept in a file stays the same board"
        assert again.ready.flash_size_bytes == 1024 * 1024
    async with virtual_board(chip="esp32") as another:
        assert another.mac != first.mac


async def test_control_tells_bad_requests_and_goes_on() -> None:
    async with virtual_board(chip="esp32") as board:
        with pytest.raises(BadBoardSetting):
            await board.read_flash(4 * 1024 * 1024 - 1, 2)
        reader, writer = await asyncio.open_unix_connection(board.ready.control)
        writer.write(b'{"type": "explode"}\n{"type": "status"}\n')
        assert "error" in json.loads(await asyncio.wait_for(reader.readline(), 5))
        assert json.loads(await asyncio.wait_for(reader.readline(), 5))["status"]["chip"] == "esp32"
        writer.close()
        await writer.wait_closed()
        before = await board.status()
        await board.reset()
        await board.until(lambda now: now.boots > before.boots)
    with pytest.raises(BoardControlFailed):
        await board.status()


async def test_a_board_without_a_holder_uses_next_to_no_processor() -> None:
    async with virtual_board(chip="esp32p4") as board:
        await board.until(lambda now: now.state is BoardState.RUNNING)
        times = psutil.Process(board.pid).cpu_times()
        await asyncio.sleep(1.0)
        later = psutil.Process(board.pid).cpu_times()
        assert later.user + later.system - times.user - times.system < 0.2


async def test_the_command_becomes_the_board_and_passes_its_options_on(tmp: Path) -> None:
    script = (
        "import typer; from aegis_agent.virtual_board.cli import virtual_board_command; "
        "typer.run(virtual_board_command)"
    )
    options = ("--chip", "esp32", "--json", "--mac", "02:00:00:00:00:09", "--flash-size", "2MB")
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *options, "--listen", str(tmp / "port")),
        *("--fault", "bad-md5", "--fault", "unplug-after:10"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert command.stdout is not None
    ready = json.loads(await asyncio.wait_for(command.stdout.readline(), 20))
    assert ready["pid"] == command.pid
    assert (ready["mac"], ready["flash_size_bytes"]) == ("02:00:00:00:00:09", 2 * 1024 * 1024)
    reader, writer = await asyncio.open_unix_connection(ready["control"])
    writer.write(b'{"type": "status"}\n')
    status = json.loads(await asyncio.wait_for(reader.readline(), 5))["status"]
    assert status["faults"] == {"bad-md5": 0.0, "unplug-after": 10.0}
    writer.close()
    await writer.wait_closed()
    command.terminate()
    assert await asyncio.wait_for(command.wait(), 10) == 0
