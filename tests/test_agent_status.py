"""What the agent says of itself on its own machine: for people, for Prometheus, and for no page."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aegis_agent.config import AgentConfig
from aegis_agent.status_server import Listen, StatusUnavailable, status_server
from aegis_protocol.control_link import Pause, Status
from agent_control import ControlPlane
from agent_stand import RunningAgent, an_agent
from pydantic import ValidationError
from waiting import until


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.running() as made:
        yield made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def get(
    url: str, path: str, *, at: Path | None = None, **headers: str
) -> tuple[int, str, Any]:
    connector = None if at is None else aiohttp.UnixConnector(str(at))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(url + path, headers=headers) as answer,
    ):
        text = await answer.text()
        is_json = "json" in answer.content_type
        return answer.status, text, await answer.json() if is_json else None


async def test_an_agent_tells_its_health_its_state_and_its_metrics(
    control: ControlPlane, tmp: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with an_agent(control, tmp, slots=2, status_listen=f"127.0.0.1:{port}") as agent:
        async with agent.peer() as peer:
            await peer.hello()
            code, _, health = await get(url, "/health")
            assert (code, health["status"], health["detail"]) == (200, "ok", None)
            _, _, now = await get(url, "/status.json")
            assert (now["agent_id"], now["linked"], now["slots"]) == (agent.id, True, 2)
            (job,) = now["jobs"]
            assert (job["job_id"], job["state"], job["peers"]) == (peer.job_id, "running", 1)
            _, text, _ = await get(url, "/metrics")
            for line in (
                "aegis_agent_linked 1.0",
                "aegis_agent_slots 2.0",
                'aegis_agent_jobs{state="running"} 1.0',
                "aegis_agent_closed 0.0",
            ):
                assert line in text.splitlines()
            assert peer.job_id not in text
            control.send(Pause(reason="the lab moves"))
            await control.heard(Status, lambda s: s.paused is not None)
            code, _, health = await get(url, "/health")
            assert (code, health) == (
                200,
                {"status": "closed", "version": now["version"], "detail": "the lab moves"},
            )
            await peer.ask("job.end")
        await until(agent.daemon.jobs.idle)
        _, text, _ = await get(url, "/metrics")
        assert 'aegis_agent_jobs_ended_total{state="succeeded"} 1.0' in text.splitlines()
        await control.stop()
        await unlinked(agent)
        code, _, health = await get(url, "/health")
        assert (code, health["status"]) == (503, "unlinked")
        await control.start()
        await control.linked(again=True)
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(url, "/health")


async def unlinked(agent: RunningAgent) -> None:
    link = agent.daemon._link
    assert link is not None
    await until(lambda: not link.up)


async def test_a_socket_is_its_users_alone_and_goes_with_the_agent(
    control: ControlPlane, tmp: Path
) -> None:
    path = tmp / "status.sock"
    async with an_agent(control, tmp, status_listen=str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await get("http://localhost", "/health", at=path))[0] == 200
    assert not path.exists()


async def test_a_page_of_a_browser_gets_nothing(control: ControlPlane, tmp: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with an_agent(control, tmp, status_listen=f"localhost:{port}"):
        assert (await get(url, "/status.json", Host="evil.example:8471"))[0] == 403
        assert (await get(url, "/status.json", Host="127.0.0.1.evil.example"))[0] == 403
        assert (await get(url, "/status.json", Origin="http://127.0.0.1"))[0] == 403
        assert (await get(url, "/status.json", Host=f"localhost:{port}"))[0] == 200
        async with aiohttp.ClientSession() as session:
            async with session.post(url + "/status.json") as answer:
                assert answer.status == 405
            async with session.get(url + "/etc/passwd") as answer:
                assert answer.status == 404


@pytest.mark.parametrize(
    "place", ["0.0.0.0:8471", "192.0.2.1:80", "8471", "[::]:1", "a:b", "127.0.0.1:99999", "/" * 200]
)
def test_only_a_place_on_this_machine_is_taken(place: str, tmp: Path) -> None:
    with pytest.raises(ValidationError):
        AgentConfig(state_dir=tmp, status_listen=place)
    assert AgentConfig(state_dir=tmp, status_listen="").status_listen is None
    assert Listen.read("[::1]:8471") == Listen(host="::1", port=8471)


async def never() -> Any:
    raise AssertionError("nobody asked")


async def test_a_place_that_is_taken_is_named(tmp: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StatusUnavailable, match=f"127.0.0.1:{port}"):
            async with status_server(Listen(host="127.0.0.1", port=port), never):
                pass
    file = tmp / "precious"
    file.write_text("kept")
    with pytest.raises(StatusUnavailable, match="precious"):
        async with status_server(Listen(path=file), never):
            pass
    assert file.read_text() == "kept"
    stale = tmp / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    async with status_server(Listen(path=stale), never):
        await asyncio.sleep(0)
    assert not stale.exists()
