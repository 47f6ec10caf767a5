"""Source to a running board with the real programs: proof on the flash, proof on the console."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_protocol.manifest import Manifest
from esptool_runs import run_esptool
from fixtures_platformio import platformio_home
from stand import Client, Done, Stand, a_stand, copy_project

__all__ = ["platformio_home"]

pytestmark = pytest.mark.requires("bwrap", "riscv64-unknown-elf-gcc", "xtensa-lx106-elf-gcc")


@pytest.fixture(scope="module")
def house(platformio_home: Path) -> Iterator[Stand]:
    with a_stand(platformio_home) as stand:
        boards = [
            stand.virtual_board("p4-one", "esp32p4"),
            stand.virtual_board("p4-two", "esp32p4"),
            stand.virtual_board("old", "esp32"),
        ]
        bare = stand.folder / "bare.pty"
        stand.virtual_board("behind-a-pty", "esp32p4", "--pty", str(bare))
        boards.append(f'[[boards]]\nid = "bare"\nchip = "esp32p4"\nport = "{bare}"\n')
        stand.agent(slots=2, boards=boards)
        yield stand


async def test_a_run_ends_with_the_very_image_on_the_board_that_was_built(
    house: Stand, tmp_path: Path
) -> None:
    client = await asyncio.to_thread(house.client, "runner")
    project, out = copy_project("hello", tmp_path), tmp_path / "out"
    log = tmp_path / "console.log"
    done = await asyncio.to_thread(
        client,
        *("run", str(project), "--target", "esp32p4", "--board", "p4-one"),
        *("--expect", "hello from esp32p4", "--timeout", "30"),
        *("--output", str(out), "--log", str(log), "--json"),
    )
    done.expect()
    manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    said = re.search(rb"ELF file SHA256:\s+([0-9a-f]{64})", log.read_bytes())
    assert said is not None
    assert said.group(1).decode() == manifest.elf_sha256
    url = f"virtual://{house.folder / 'p4-one.sock'}"
    for image in manifest.images:
        read = tmp_path / f"{image.name}.read"
        ran = await run_esptool(
            url,
            *("--chip", "esp32p4", "read-flash"),
            *(hex(image.offset), str(image.size_bytes), str(read)),
            folder=tmp_path,
        )
        assert ran.code == 0, ran.output
        assert sha256(read.read_bytes()).hexdigest() == image.sha256


def test_a_bundle_is_flashed_to_an_esp32_whose_console_names_the_image(
    house: Stand, tmp_path: Path
) -> None:
    client = house.client("bundler")
    out = tmp_path / "out"
    project = copy_project("hello", tmp_path)
    client("build", str(project), "--target", "esp32", "--output", str(out), "--json").expect()
    client("flash", str(out), "--board", "old", "--json").expect()
    manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert manifest.elf_sha256 is not None
    watched = client(
        *("monitor", "--board", "old", "--reset", "--timeout", "15"),
        *("--expect", f"ELF SHA-256 {manifest.elf_sha256}"),
    )
    watched.expect()
    assert "Xtensa code is not executed" in watched.out


def test_a_board_that_its_port_can_not_reset_is_flashed_and_watched_from_then_on(
    house: Stand, tmp_path: Path
) -> None:
    client = house.client("patient")
    project = copy_project("hello", tmp_path)
    ran = client(
        *("run", str(project), "--target", "esp32p4", "--board", "bare"),
        *("--expect", "count [0-9]", "--timeout", "30"),
    )
    ran.expect()
    assert "has no modem lines" in ran.err


def test_a_typed_line_is_answered(house: Stand, tmp_path: Path) -> None:
    client = house.client("typist")
    project = copy_project("hello", tmp_path)
    client(
        *("run", str(project), "--target", "esp32p4", "--board", "p4-two"),
        *("--expect", "count 1", "--timeout", "30"),
    ).expect()
    client(
        *("monitor", "--board", "p4-two", "--stdin", "--timeout", "15"),
        *("--expect", "you typed: good evening"),
        input="good evening\n",
    ).expect()


def test_an_image_for_another_chip_is_refused_and_nothing_is_written(
    house: Stand, tmp_path: Path
) -> None:
    client = house.client("mistaken")
    out = tmp_path / "out"
    project = copy_project("multi", tmp_path)
    client("build", str(project), "--target", "esp32c3", "--output", str(out), "--json").expect()
    refused = client("flash", str(out), "--board", "p4-two", "--json").expect(6)
    assert refused.error["code"] == "board.chip_mismatch"
    assert refused.error["remedy"]


def test_a_board_that_does_not_exist_is_named(house: Stand, tmp_path: Path) -> None:
    client = house.client("lost")
    refused = client("monitor", "--board", "no-such", "--wait", "1", "--timeout", "5", "--json")
    assert refused.code != 0
    assert "no-such" in refused.err or "board" in refused.error["code"]


def test_a_pattern_that_does_not_come_ends_with_an_exit_code_of_its_own(house: Stand) -> None:
    client = house.client("waiter")
    words = ("monitor", "--board", "p4-two", "--expect", "never printed", "--timeout", "1")
    assert client(*words, "--json").expect(7).error["code"] == "monitor.timed_out"


def test_two_identities_at_once_see_nothing_of_each_other(house: Stand, tmp_path: Path) -> None:
    ended: dict[str, Done] = {}
    clients = {name: house.client(name) for name in ("alice", "bob")}
    boards = {"alice": "p4-one", "bob": "p4-two"}

    def go(name: str) -> None:
        project = copy_project("hello", tmp_path / name)
        (project / "src" / f"only_{name}.c").write_text(f"int only_{name};\n")
        ended[name] = clients[name](
            *("run", str(project), "--target", "esp32p4", "--board", boards[name]),
            *("--expect", "hello from esp32p4", "--timeout", "40", "--json"),
        )

    threads = [threading.Thread(target=go, args=(name,)) for name in clients]
    for thread in threads:
        (tmp_path / thread.name).mkdir(exist_ok=True)
        thread.start()
    for thread in threads:
        thread.join(90)
    for name in clients:
        ended[name].expect()
    for name, other in (("alice", "bob"), ("bob", "alice")):
        assert f"only_{other}" not in ended[name].err
        mine = clients[name]("jobs", "--json").expect().json["jobs"]
        theirs = clients[other]("jobs", "--json").expect().json["jobs"]
        assert not {job["id"] for job in mine} & {job["id"] for job in theirs}
        task = ended[other].json["build"]["task_id"]
        stolen = clients[name]("download", task, "--agent", "agent", "--json")
        assert stolen.error["code"] == "task.not_found"
        canceled = clients[name]("cancel", theirs[0]["id"], "--json")
        assert canceled.error["code"] == "job.not_found"


def test_a_board_in_other_hands_is_waited_for_with_the_reason(house: Stand) -> None:
    holder, other = house.client("holder"), house.client("other")
    watching = holder.start("holding", "monitor", "--board", "p4-one", "--timeout", "40")
    house.until(lambda: _held(holder, "p4-one"), "the board to be held", watching)
    refused = other("monitor", "--board", "p4-one", "--wait", "1", "--timeout", "5", "--json")
    assert refused.error["code"] == "job.wait_expired"
    assert [reason["code"] for reason in refused.error["facts"]["reasons"]] == ["board.held"]
    watching.stop()


def _held(client: Client, board_id: str) -> bool:
    rows = client("boards", "--json").expect().json["boards"]
    return any(row["board"]["id"] == board_id and row["holder"] for row in rows)
