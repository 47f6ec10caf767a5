"""Requests on `espctl`: answers, errors of their own class, and nonsense that ends nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aegis_links.channel import Channel
from aegis_links.rpc import Handler, OnNotification, RpcPeer
from aegis_protocol.channels import MAX_MESSAGE_BYTES, ChannelName
from aegis_protocol.errors import AegisError
from aegis_protocol.failures.grant import ActionNotGranted, MethodUnknown
from aegis_protocol.failures.link import (
    LinkClosed,
    MessageTooLarge,
    PeerGone,
    RpcBusy,
    RpcParamsInvalid,
    RpcResultTooLarge,
    RpcTimedOut,
)
from aegis_protocol.rpc import TaskParams
from linked_peers import Peers, linked_peers
from waiting import until

pytestmark = pytest.mark.timeout(20)

ESPCTL = ChannelName.ESPCTL


@asynccontextmanager
async def conversation(
    handler: Handler | None = None,
    on_notification: OnNotification | None = None,
    *,
    max_in_flight: int = 32,
) -> AsyncIterator[tuple[RpcPeer, RpcPeer, Peers]]:
    """The client's end, the agent's end (which has the handler), and the link below."""
    async with (
        linked_peers({ESPCTL}) as peers,
        RpcPeer.over(peers.client.channel(ESPCTL)) as client,
        RpcPeer.over(
            peers.agent.channel(ESPCTL),
            handler=handler,
            on_notification=on_notification,
            max_in_flight=max_in_flight,
        ) as agent,
    ):
        yield client, agent, peers


async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    match method:
        case "echo":
            return params
        case "refuse":
            raise ActionNotGranted("The grant lacks board.flash.", action="board.flash")
        case "parse":
            return TaskParams.model_validate(params).model_dump()
        case "large":
            return {"text": "x" * MAX_MESSAGE_BYTES}
        case "verbose":
            raise ActionNotGranted("No.", log="x" * MAX_MESSAGE_BYTES)
        case "break":
            return {"never": 1 // 0}
        case "forever":
            await asyncio.Event().wait()
    raise MethodUnknown(f"There is no method {method}.")


async def test_requests_are_answered_in_both_directions_and_many_at_once() -> None:
    async with conversation(answer) as (client, agent, _):
        asked = [client.request("echo", {"n": n, "ü": "ß"}) for n in range(100)]
        assert await asyncio.gather(*asked) == [{"n": n, "ü": "ß"} for n in range(100)]
        with pytest.raises(MethodUnknown):
            await agent.request("echo", {})


async def test_an_error_is_of_its_own_class_at_the_caller_with_its_facts() -> None:
    async with conversation(answer) as (client, _, _):
        with pytest.raises(ActionNotGranted) as caught:
            await client.request("refuse", {})
        assert caught.value.message == "The grant lacks board.flash."
        assert caught.value.facts == {"action": "board.flash"}
        with pytest.raises(MethodUnknown):
            await client.request("no.such", {})
        with pytest.raises(RpcParamsInvalid, match="task_id"):
            await client.request("parse", {"task": 5})
        with pytest.raises(ActionNotGranted):
            await client.request("verbose", {})


async def test_what_does_not_fit_a_message_says_so_on_both_sides() -> None:
    async with conversation(answer) as (client, _, _):
        with pytest.raises(RpcResultTooLarge, match="large") as caught:
            await client.request("large", {})
        assert "transfer" in caught.value.remedy
        with pytest.raises(MessageTooLarge):
            await client.request("echo", {"text": "x" * MAX_MESSAGE_BYTES})
        assert await client.request("echo", {"still": "here"}) == {"still": "here"}


async def test_a_defect_in_a_handler_is_an_internal_error_with_an_id_and_no_end() -> None:
    async with conversation(answer) as (client, _, _):
        with pytest.raises(AegisError) as caught:
            await client.request("break", {})
        assert caught.value.code == "internal.error"
        assert caught.value.facts["error_id"] in caught.value.message
        assert "ZeroDivision" not in caught.value.message
        assert await client.request("echo", {}) == {}


async def test_no_answer_in_time_is_told_and_too_many_at_once_are_refused() -> None:
    async with conversation(answer, max_in_flight=4) as (client, _, _):
        stuck = [asyncio.create_task(client.request("forever", {})) for _ in range(4)]
        with pytest.raises((RpcTimedOut, RpcBusy)):
            await client.request("forever", {}, deadline_s=0.2)
        with pytest.raises(RpcBusy):
            await client.request("echo", {}, deadline_s=5)
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)


async def test_notifications_arrive_in_order_and_pings_are_swallowed() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    async def listen(method: str, params: dict[str, Any]) -> None:
        if params.get("n") == 2:
            raise RuntimeError("a listener's defect")
        heard.append((method, params))

    async with conversation(answer, listen) as (client, _, _):
        for n in range(5):
            await client.notify("task.progress", {"n": n})
            await client.notify("ping", {})
        await until(lambda: len(heard) == 4)
        assert [params["n"] for _, params in heard] == [0, 1, 3, 4]
        assert {method for method, _ in heard} == {"task.progress"}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -32700),
        (b"\xff\xfe\x00", -32700),
        ("[" * 60_000, -32700),
        ('{"jsonrpc":"2.0","id":1,"method":"echo","params":{"x":NaN}}', -32700),
        ("[]", -32600),
        ("17", -32600),
        ('{"id":1,"method":"echo"}', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        ('{"jsonrpc":"2.0","id":{},"method":"echo"}', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":"' + "m" * 81 + '"}', -32600),
        ('{"jsonrpc":"2.0","id":1,"method":"no.such"}', -32601),
        ('{"jsonrpc":"2.0","id":1,"method":"echo","params":[1]}', -32602),
        ('{"jsonrpc":"2.0","id":1,"method":"parse","params":{}}', -32602),
        ('{"jsonrpc":"2.0","id":1,"method":"break"}', -32603),
        ('{"jsonrpc":"2.0","id":1,"method":"refuse"}', -32000),
    ],
)
async def test_each_kind_of_wrong_request_has_its_number(message: str | bytes, code: int) -> None:
    async with linked_peers({ESPCTL}) as peers:
        async with RpcPeer.over(peers.agent.channel(ESPCTL), handler=answer):
            raw: Channel = peers.client.channel(ESPCTL)
            await raw.send(message)
            reply = json.loads(await raw.receive())
            assert reply["error"]["code"] == code
            assert reply["error"]["data"]["code"]
            await raw.send('{"jsonrpc":"2.0","id":"a","method":"echo","params":{"alive":true}}')
            assert json.loads(await raw.receive())["result"] == {"alive": True}


@pytest.mark.parametrize(
    "message",
    [
        '{"jsonrpc":"2.0","method":"unknown.news","params":{}}',
        '{"jsonrpc":"2.0","method":"unknown.news","params":[]}',
        '{"jsonrpc":"2.0","id":999,"result":{}}',
        '{"jsonrpc":"2.0","id":[],"error":{}}',
    ],
)
async def test_what_needs_no_answer_gets_none(message: str) -> None:
    async with linked_peers({ESPCTL}) as peers:
        async with RpcPeer.over(peers.agent.channel(ESPCTL), handler=answer):
            raw = peers.client.channel(ESPCTL)
            await raw.send(message)
            await raw.send('{"jsonrpc":"2.0","id":1,"method":"echo"}')
            assert json.loads(await raw.receive()) == {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.parametrize("reply", ['"error":"boom"', '"error":{"code":-1}', '"result":7'])
async def test_an_answer_without_a_body_is_still_an_error(reply: str) -> None:
    async with linked_peers({ESPCTL}) as peers:
        async with RpcPeer.over(peers.client.channel(ESPCTL)) as client:
            asked = asyncio.create_task(client.request("echo", {}))
            raw = peers.agent.channel(ESPCTL)
            number = json.loads(await raw.receive())["id"]
            await raw.send(f'{{"jsonrpc":"2.0","id":{number},{reply}}}')
            with pytest.raises(AegisError):
                await asked


async def test_the_end_of_the_link_ends_requests_and_handlers() -> None:
    canceled = asyncio.Event()

    async def wait_forever(method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            canceled.set()
        return params

    async with conversation(wait_forever) as (client, agent, peers):
        asked = asyncio.create_task(client.request("forever", {}))
        await until(lambda: len(agent._serving) == 1)
        await peers.client.close(PeerGone("The peer said nothing for 6 s."))
        with pytest.raises(PeerGone):
            await asked
        await asyncio.wait_for(agent.wait_closed(), 5)
        await asyncio.wait_for(canceled.wait(), 5)
        with pytest.raises(PeerGone):
            await client.request("more", {})
        with pytest.raises(LinkClosed):
            await agent.request("more", {})
