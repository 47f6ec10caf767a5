"""The commands of `espctl` against a control and an agent that are fakes behind real wires."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_client.cli.output import Output
from aegis_client.exit_codes import ExitCode
from aegis_protocol import __version__
from aegis_protocol.errors import ErrorReply
from aegis_protocol.failures.board import BoardGone
from aegis_protocol.failures.build import BuildFailed, BuildTooLarge
from aegis_protocol.failures.http import ChannelNotAllowed, RateLimited
from aegis_protocol.http_api.jobs import Reason
from aegis_protocol.manifest import Diagnostic
from client_stand import Espctl, Served, project
from fake_agent import APP, ELF_SHA256, FakeAgent, Script
from fake_control import BOARD, KEY

ERROR = Diagnostic(
    severity="error", file="src/main.c", line=3, column=7, message="'x' undeclared", hint="declare"
)


@pytest.fixture
def served() -> Iterator[Served]:
    with Served().running() as running:
        yield running


@pytest.fixture
def espctl(
    served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp: Path
) -> Espctl:
    monkeypatch.chdir(tmp)
    return Espctl(monkeypatch, capfd, served.control.url, tmp)


def test_version_and_help_need_nothing(espctl: Espctl) -> None:
    espctl.set(AEGIS_STORE="/nowhere/at/all", MCP_AUTH_SECRET=None)
    assert espctl("--version").out == f"espctl {__version__}\n"
    assert "doctor" in espctl("--help").out


def test_login_keeps_a_key_that_control_knows_readable_for_its_owner_alone(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    espctl.set(MCP_AUTH_SECRET=None, ESPCTL_URL=None)
    (tmp / "key").write_text(f"{KEY}\n")
    ended = espctl("login", served.control.url, "--key-file", tmp / "key", "--json")
    assert (ended.code, ended.json["role"]) == (0, "flasher")
    kept = [path for path in espctl.store.rglob("*") if path.is_file()]
    assert kept
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    assert KEY not in ended.out + ended.err
    assert espctl("whoami", "--json").json["identity"] == "me"


def test_a_wrong_key_is_not_kept(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl.set(MCP_AUTH_SECRET=None)
    (tmp / "key").write_text("aegis_sk_wrong\n")
    ended = espctl("login", served.control.url, "--key-file", tmp / "key", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.NOT_PERMITTED, "auth.key_wrong")
    assert "aegis_sk_wrong" not in ended.err
    assert espctl("agents", "--json").error["code"] == "auth.key_missing"


def test_a_kept_key_goes_to_its_own_control_only(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl.set(MCP_AUTH_SECRET=None)
    (tmp / "key").write_text(KEY)
    espctl("login", served.control.url, "--key-file", tmp / "key")
    espctl.set(ESPCTL_URL="http://127.0.0.1:1")
    assert espctl("whoami", "--json").error["code"] == "auth.key_missing"


def test_logout_forgets_the_key(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl.set(MCP_AUTH_SECRET=None)
    (tmp / "key").write_text(KEY)
    espctl("login", served.control.url, "--key-file", tmp / "key")
    assert espctl("logout", "--json").json["forgotten"] is True
    assert espctl("whoami", "--json").error["code"] == "auth.key_missing"


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"AEGIS_STORE": "/nowhere/at/all"}, "store.not_found"),
        ({"ESPCTL_URL": "http://192.0.2.77"}, "config.url_insecure"),
        ({"ESPCTL_URL": "ftp://control"}, "config.invalid"),
        ({"AEGIS_REQUEST_TIMEOUT": "soon"}, "config.invalid"),
        ({"ESPCTL_TRUST": "everyone"}, "config.invalid"),
        ({"AEGIS_CA_FILE": "/nowhere/ca.pem"}, "config.invalid"),
        ({"MCP_AUTH_SECRET": "two words"}, "config.invalid"),
    ],
)
def test_a_bad_setting_is_named_with_exit_code_2(
    espctl: Espctl, env: dict[str, str], code: str
) -> None:
    espctl.set(**env)
    ended = espctl("whoami", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.USAGE, code)
    assert ended.error["remedy"]
    assert ended.out == ""


def test_the_store_that_cannot_be_used_is_named_in_words(espctl: Espctl) -> None:
    espctl.set(AEGIS_STORE="/nowhere/at/all")
    assert "cannot find store at /nowhere/at/all" in espctl("agents").err


def test_a_wrong_option_is_a_json_error_too(espctl: Espctl) -> None:
    ended = espctl("build", ".", "--target", "esp32", "--nonsense", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.USAGE, "usage.invalid")
    assert espctl("build", ".", "--target", "not a chip", "--json").code == ExitCode.USAGE
    assert espctl("build", ".", "--target", "esp32", "--label", "x", "--json").code == 2


def test_an_unreachable_control_ends_with_5(espctl: Espctl) -> None:
    espctl.set(ESPCTL_URL="http://127.0.0.1:1")
    ended = espctl("agents", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.UNREACHABLE, "control.unreachable")


def test_agents_show_their_pins_and_trust_refuses_another_key(
    espctl: Espctl, served: Served
) -> None:
    assert espctl("agents", "--json").json["agents"][0]["trust"] == "new"
    assert espctl("agents", "trust", "bench", "--key", served.agent.key_text).code == 0
    assert espctl("agents", "--json").json["agents"][0]["trust"] == "pinned"
    served.agent.key = FakeAgent().key
    assert espctl("agents", "--json").json["agents"][0]["trust"] == "CHANGED"
    assert espctl("agents", "trust", "bench", "--json").error["code"] == "agent.key_changed"
    assert espctl("agents", "trust", "bench", "--key", served.agent.id).code == 0
    assert espctl("agents", "forget", "bench", "--json").json["forgotten"] is True
    assert espctl("agents", "trust", "nobody", "--json").error["code"] == "agent.not_found"


def test_boards_and_jobs_are_data(espctl: Espctl) -> None:
    assert espctl("boards", "--json").json["boards"][0]["board"]["id"] == BOARD.id
    assert espctl("jobs", "--json").json == {"jobs": []}
    assert BOARD.id in espctl("boards").out


def test_a_build_sends_shows_and_fetches(espctl: Espctl, served: Served, tmp: Path) -> None:
    folder = project(tmp / "hello")
    ended = espctl("build", folder, "--target", "ESP32-P4")
    assert ended.code == 0, ended.err
    assert "\x1b[1;31mred\x1b[0m\r\n" in ended.out, "the terminal's bytes arrive as they are"
    output = folder / ".aegis" / "firmware" / "esp32p4"
    assert ended.out.splitlines()[-1] == str(output)
    assert (output / "firmware.bin").read_bytes() == APP
    assert not list(output.glob("*.part"))
    assert served.agent.builds[0].target == "esp32p4"
    assert served.agent.ended_jobs == list(served.control.jobs)


def test_a_second_build_sends_nothing_and_is_one_json_object(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    folder = project(tmp / "hello")
    first = espctl("build", folder, "-t", "esp32p4", "--json")
    assert first.json["sent_files"] == 2
    again = espctl("build", folder, "-t", "esp32p4", "--json", "-o", tmp / "out")
    assert again.json["sent_files"] == 0
    assert again.json["state"] == "succeeded"
    assert again.json["error"] is None
    assert again.err == ""
    assert (tmp / "out" / "manifest.json").is_file()
    requests = [job.request for job in served.control.jobs.values()]
    assert requests[0].project_key == requests[1].project_key is not None
    assert len(set(served.control.idempotency_keys)) == 2


def test_a_failed_build_shows_file_line_column_and_ends_with_3(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    served.agent.script = Script(error=BuildFailed("2 errors"), diagnostics=(ERROR,))
    folder = project(tmp / "broken")
    ended = espctl("build", folder, "-t", "esp32p4")
    assert ended.code == ExitCode.BUILD_FAILED
    assert "src/main.c:3:7" in ended.out
    assert "'x' undeclared" in ended.out
    assert "build.failed" in ended.err
    data = espctl("build", folder, "-t", "esp32p4", "--json")
    assert data.json["diagnostics"][0]["line"] == 3
    assert data.error["code"] == "build.failed"
    assert not (folder / ".aegis" / "firmware").exists(), "nothing half done"


def test_a_build_that_is_too_large_says_so(espctl: Espctl, served: Served, tmp: Path) -> None:
    served.agent.script = Script(error=BuildTooLarge("the app is 2 MiB, its partition 1 MiB"))
    ended = espctl("build", project(tmp / "big"), "-t", "esp32p4", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.BUILD_FAILED, "build.too_large")


def test_a_target_that_no_agent_has_ends_with_the_reasons(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    served.control.pending = (Reason(code="target.missing", detail="none builds for esp32h2"),)
    ended = espctl("build", project(tmp / "p"), "-t", "esp32h2", "--wait", "0.1", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.TIMED_OUT, "job.wait_expired")
    assert ended.error["facts"]["reasons"][0]["code"] == "target.missing"
    assert (
        "target.missing"
        in espctl("build", project(tmp / "q"), "-t", "esp32h2", "--wait", "0.1").err
    )


def test_a_channel_that_is_not_allowed_is_the_documented_error(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    error = ChannelNotAllowed("pty is not allowed here", allowed=["espctl"])
    body = ErrorReply(error=error.body()).model_dump_json().encode()
    served.control.failures = [(403, body, {})]
    ended = espctl("build", project(tmp / "p"), "-t", "esp32p4", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.NOT_PERMITTED, "channel.not_allowed")
    assert ended.error["facts"]["allowed"] == ["espctl"]


def test_too_many_requests_are_waited_out_once(espctl: Espctl, served: Served) -> None:
    body = ErrorReply(error=RateLimited("slowly").body()).model_dump_json().encode()
    served.control.failures = [(429, body, {"Retry-After": "0"})]
    assert espctl("whoami").code == 0
    served.control.failures = [(429, body, {"Retry-After": "3600"})]
    ended = espctl("whoami", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.UNREACHABLE, "request.rate_limited")
    assert ended.error["facts"]["retry_after_s"] == 3600


def test_a_server_that_is_not_control_is_told_apart(espctl: Espctl, served: Served) -> None:
    served.control.failures = [(200, b"<html>welcome</html>", {})]
    assert espctl("whoami", "--json").error["code"] == "control.answer_invalid"
    served.control.failures = [(302, b"", {"Location": "https://elsewhere"})]
    ended = espctl("whoami", "--json")
    assert ended.error["code"] == "control.answer_invalid"
    assert "elsewhere" in ended.error["message"]
    served.control.failures = [(502, b"bad gateway", {})] * 3
    assert espctl("whoami", "--json").error["code"] == "control.unavailable"


def test_a_detached_build_is_attached_and_fetched(
    espctl: Espctl, served: Served, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp / "hello")
    served.agent.script = Script(hold=True)
    job = espctl("build", folder, "-t", "esp32p4", "--detach", "--json").json
    assert job["state"] == "running"
    assert served.agent.ended_jobs == []
    monkeypatch.chdir(folder)
    served.call(served.agent.script.release.set)
    ended = espctl("attach")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Compiling\r\n"), "from its first byte"
    assert (folder / ".aegis" / "firmware" / "esp32p4" / "firmware.bin").read_bytes() == APP
    assert served.agent.ended_jobs == [job["job_id"]]
    assert len(served.control.jobs) == 1


def test_download_lists_and_fetches_the_last_build(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    folder = project(tmp / "hello")
    built = espctl("build", folder, "-t", "esp32p4", "--json").json
    listed = espctl("download", "--list", "--json").json
    assert listed["task_id"] == built["task_id"]
    assert {a["name"] for a in listed["artifacts"]} >= {"firmware.bin", "manifest.json"}
    ended = espctl("download", built["job_id"], "-o", tmp / "again", "--json")
    assert ended.code == 0, ended.err
    assert (tmp / "again" / "firmware.bin").read_bytes() == APP
    request = list(served.control.jobs.values())[-1].request
    assert request.agent_id == served.agent.id
    assert set(request.required_channels) == {"espctl", "firmware"}


def test_a_cut_download_goes_on_where_it_stopped(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl("build", project(tmp / "hello"), "-t", "esp32p4")
    (tmp / "out").mkdir()
    (tmp / "out" / "firmware.bin.part").write_bytes(APP[:3000])
    ended = espctl("download", "-o", tmp / "out", "--name", "firmware.bin")
    assert ended.code == 0, ended.err
    assert (tmp / "out" / "firmware.bin").read_bytes() == APP
    assert espctl("download", "--name", "nothing.bin", "--json").error["code"] == (
        "artifact.not_found"
    )


def test_a_download_of_an_unknown_build_needs_its_agent(espctl: Espctl, tmp: Path) -> None:
    assert espctl("download", "--json").error["code"] == "task.none_known"
    assert espctl("download", "some-task", "--json").error["code"] == "task.not_found"


def test_a_forged_manifest_is_refused(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl("build", project(tmp / "hello"), "-t", "esp32p4")
    files = next(iter(served.agent.files.values()))
    files["manifest.json"] = files["manifest.json"].replace(b"hello", b"other")
    ended = espctl("download", "-o", tmp / "out", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.BUILD_FAILED, "artifact.unsafe")


def test_flash_means_the_last_good_build_of_this_folder(
    espctl: Espctl, served: Served, tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp / "hello")
    built = espctl("build", folder, "-t", "esp32p4", "--json").json
    monkeypatch.chdir(folder)
    ended = espctl("flash", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["board_id"] == BOARD.id
    assert served.agent.flashes[0].task_id == built["task_id"]
    assert served.agent.flashes[0].bundle is None
    assert espctl("flash", "--build", built["task_id"], "--board", BOARD.id).code == 0


def test_flash_sends_a_bundle(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl("build", project(tmp / "hello"), "-t", "esp32p4")
    manifest = next(iter(served.agent.files.values()))["manifest.json"]
    bundle = tmp / "flash_bundle.tar.gz"
    with tarfile.open(bundle, "w:gz") as tar:
        for name, data in (("manifest.json", manifest), ("firmware.bin", APP)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    assert espctl("flash", bundle).code == 0
    assert sha256(served.agent.bundles[0]).digest() == sha256(bundle.read_bytes()).digest()
    wish = list(served.control.jobs.values())[-1].request.boards[0]
    assert wish.chip == "esp32p4", "the bundle says which chip it is for"


def test_what_is_no_bundle_is_refused_before_anything_is_asked_for(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    (tmp / "x.tar.gz").write_bytes(b"no archive")
    assert espctl("flash", tmp / "x.tar.gz", "--json").error["code"] == "bundle.invalid"
    assert espctl("flash", tmp / "nothing", "--json").error["code"] == "source.not_found"
    assert espctl("flash", "--json").error["code"] == "task.none_known"
    assert served.control.jobs == {}


def test_a_flash_that_fails_ends_with_6(espctl: Espctl, served: Served, tmp: Path) -> None:
    espctl("build", project(tmp / "hello"), "-t", "esp32p4")
    served.agent.script.flash_error = BoardGone("the port vanished")
    ended = espctl("flash", tmp / "hello", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.BOARD, "board.gone")


def test_another_chip_is_refused_before_the_flash(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    espctl("build", project(tmp / "hello"), "-t", "esp32")
    ended = espctl("flash", tmp / "hello", "--board", BOARD.id, "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.BOARD, "board.chip_mismatch")
    assert served.agent.flashes == []


def test_a_board_that_no_agent_has_and_one_of_another_chip_end_with_6(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    folder = project(tmp / "p")
    words = (["monitor", "--board", "lab9"], ["run", folder, "-t", "esp32p4", "--board", "lab9"])
    for command in words:
        ended = espctl(*command, "--json")
        assert (ended.code, ended.error["code"]) == (ExitCode.BOARD, "board.not_found")
        assert ended.error["facts"]["boards"] == [BOARD.id]
    ended = espctl("run", folder, "-t", "esp32", "--board", BOARD.id, "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.BOARD, "board.chip_mismatch")
    assert served.control.jobs == {}


def test_monitor_ends_well_when_the_pattern_comes_across_pieces(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    served.agent.script.console = (b"boot\r\nhel", b"lo fr\x1b[0mom esp32p4\r\n")
    ended = espctl(
        "monitor", "--board", BOARD.id, "--expect", "hello from esp32p4$", "--timeout", "5",
        "--log", tmp / "console.log", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json["matched"] == "hello from esp32p4"
    assert (tmp / "console.log").read_bytes().startswith(b"boot\r\nhello fr\x1b[0m")


def test_monitor_shows_the_console_with_the_time_of_each_line(
    espctl: Espctl, served: Served
) -> None:
    ended = espctl("monitor", "--chip", "esp32p4", "--expect", "boot", "--timestamps")
    assert ended.code == 0, ended.err
    assert ended.out[2] == ended.out[5] == ":"
    assert ended.out.endswith(" boot\r\n")


def test_a_pattern_that_does_not_come_and_one_that_may_not_end_with_7(
    espctl: Espctl, served: Served
) -> None:
    late = espctl("monitor", "--board", BOARD.id, "--expect", "never", "--timeout", "0.2", "--json")
    assert (late.code, late.error["code"]) == (ExitCode.MONITOR, "monitor.timed_out")
    assert late.error["facts"]["last"] == "boot\r\n"
    served.agent.script.console = (b"Guru Meditation Error: Core 0 panic'ed\r\n",)
    bad = espctl(
        "monitor", "--board", BOARD.id, "--fail", "Guru Meditation", "--timeout", "5", "--json"
    )
    assert (bad.code, bad.error["code"]) == (ExitCode.MONITOR, "monitor.fail_pattern")
    assert espctl("monitor", "--board", BOARD.id, "--timeout", "0.2").code == 0


def test_a_bad_pattern_and_no_board_are_usage(espctl: Espctl, served: Served) -> None:
    assert espctl("monitor", "--board", "b", "--expect", "(", "--json").code == ExitCode.USAGE
    assert espctl("monitor", "--json").error["code"] == "usage.invalid"
    assert served.control.jobs == {}


def test_run_builds_flashes_watches_and_proves(espctl: Espctl, served: Served, tmp: Path) -> None:
    served.agent.script.console = (
        f"I (1) app_init: ELF file SHA256:  {ELF_SHA256[:16]}...\r\nhello\r\n".encode(),
    )
    folder = project(tmp / "hello")
    ended = espctl("run", folder, "-t", "esp32p4", "--expect", "hello", "--timeout", "5", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["proof"] == {
        "status": "equal",
        "artifact": ELF_SHA256,
        "console": ELF_SHA256[:16],
    }
    assert ended.json["flash"]["board_id"] == BOARD.id
    assert ended.json["monitor"]["matched"] == "hello"
    assert len(served.control.jobs) == 1, "one job for all of it"


def test_run_says_when_the_board_runs_something_else(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    served.agent.script.console = (f"ELF file SHA256:  {'0' * 64}\r\nhello\r\n".encode(),)
    ended = espctl("run", project(tmp / "p"), "-t", "esp32p4", "--expect", "hello", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.MONITOR, "monitor.elf_mismatch")


def test_run_does_not_flash_what_did_not_build(espctl: Espctl, served: Served, tmp: Path) -> None:
    served.agent.script.error = BuildFailed("1 error")
    ended = espctl("run", project(tmp / "p"), "-t", "esp32p4", "--json")
    assert ended.code == ExitCode.BUILD_FAILED
    assert ended.json["flash"] is None
    assert served.agent.flashes == []


def test_cancel_takes_a_job_or_its_task(espctl: Espctl, served: Served, tmp: Path) -> None:
    built = espctl("build", project(tmp / "p"), "-t", "esp32p4", "--json").json
    assert espctl("cancel", built["task_id"], "--json").json["job_id"] == built["job_id"]
    assert served.control.canceled == [built["job_id"]]
    assert espctl("cancel", "nothing", "--json").error["code"] == "job.not_found"
    jobs = espctl("jobs", "--json").json["jobs"]
    assert jobs[0]["tasks"][0]["task_id"] == built["task_id"]


def test_doctor_names_every_check_and_what_to_do(espctl: Espctl, served: Served) -> None:
    well = espctl("doctor", "--json").json
    assert well["status"] == "ok"
    assert {check["name"] for check in well["checks"]} >= {
        "network", "store", "control_plane", "version", "clock", "key", "agents", "trust",
    }  # fmt: skip
    linked = espctl("doctor", "--link", "--json").json
    assert linked["checks"][-1]["name"] == "peer_link"
    assert "host/host" in linked["checks"][-1]["detail"]
    refused = espctl("doctor", "--agent", "nobody", "--json").json["checks"][-1]
    assert (refused["name"], refused["status"]) == ("peer_link", "error")
    espctl.set(ESPCTL_URL="http://127.0.0.1:1")
    ended = espctl("doctor", "--json")
    assert (ended.code, ended.json["status"]) == (ExitCode.UNREACHABLE, "error")
    control = next(c for c in ended.json["checks"] if c["name"] == "control_plane")
    assert control["status"] == "error"
    assert control["remedy"]
    assert ended.json["errors"]


def test_a_project_that_cannot_be_sent_asks_for_no_job(
    espctl: Espctl, served: Served, tmp: Path
) -> None:
    folder = project(tmp / "p")
    (folder / "out").symlink_to("/etc")
    ended = espctl("build", folder, "-t", "esp32p4", "--json")
    assert (ended.code, ended.error["code"]) == (ExitCode.USAGE, "source.symlink_unsafe")
    assert served.control.jobs == {}


def test_the_command_line_imports_nothing_heavy_for_its_help() -> None:
    heavy = ("aiortc", "aiohttp", "pydantic", "cryptography")
    code = (
        "import sys, aegis_client.cli.app\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words_of_others_beside_a_result_steer_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Output()
    reason = "agent.paused: [/x] \x1b[31mhot\x07 (lab-1)"
    out.note(reason)
    out.line(reason)
    out.table(("why",), ((reason,),))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "[/x]" in text and "\x1b[31m" not in text and "\x07" not in text
