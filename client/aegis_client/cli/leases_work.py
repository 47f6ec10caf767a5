"""What `espctl lease` does."""

from __future__ import annotations

import time
from collections.abc import Sequence

from aegis_protocol.board import BoardWish
from aegis_protocol.http_api.leases import Lease, LeaseRequest
from aegis_protocol.states import LeaseState

from aegis_client import leases
from aegis_client.cli import wishes
from aegis_client.cli.opened import with_client
from aegis_client.cli.output import Output
from aegis_client.cli.wishes import identifier
from aegis_client.client import Client
from aegis_client.exit_codes import ExitCode
from aegis_client.failures import UsageInvalid


def take(
    board: str | None,
    *,
    chip: str | None,
    labels: Sequence[str],
    agent: str | None,
    for_secs: int,
    wait_secs: int,
    note: str,
    as_json: bool,
) -> ExitCode:
    out = Output(json=as_json)
    if board is None and chip is None and not labels:
        raise UsageInvalid("name a board, or say which will do: --chip, --label")
    request = LeaseRequest(
        board=BoardWish(
            id=identifier(board, "BOARD"),
            chip=None if chip is None else wishes.chip(chip),
            labels=wishes.labels(labels),
        ),
        agent_id=identifier(agent, "--agent"),
        for_secs=for_secs,
        wait_secs=wait_secs,
        note=note[:200],
    )

    def waits(lease: Lease) -> None:
        before = f"{lease.position} before you" if lease.position else "you are next"
        out.note(f"waiting for a board, {before}:")
        for reason in lease.reasons:
            out.note(f"  {reason}")

    async def work(client: Client) -> None:
        lease = await leases.take(client.control, request, on_wait=waits)
        out.result(lease.model_dump(mode="json"))
        out.line(f"{lease.board_id} on {lease.agent_name} is yours until {_clock(lease)}")

    return with_client(out, work)


def renew(word: str, *, for_secs: int, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        lease = await leases.mine(client.control, word)
        lease = await client.control.renew_lease(lease.id, for_secs=for_secs)
        out.result(lease.model_dump(mode="json"))
        out.line(f"{lease.board_id} on {lease.agent_name} is yours until {_clock(lease)}")

    return with_client(out, work)


def release(word: str, *, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        lease = await leases.mine(client.control, word)
        lease = await client.control.release_lease(lease.id)
        out.result(lease.model_dump(mode="json"))
        board = lease.board_id or lease.wish.board.id or "the board"
        out.line(f"{board} is released" if lease.held_at else f"you don't wait for {board} now")

    return with_client(out, work)


def list_leases(*, as_json: bool) -> ExitCode:
    out = Output(json=as_json)

    async def work(client: Client) -> None:
        found = await client.control.leases()
        out.result(found.model_dump(mode="json"))
        out.table(
            ["board", "agent", "state", "holder", "until", "note", "id"],
            [_row(lease) for lease in found.leases],
        )

    return with_client(out, work)


def _row(lease: Lease) -> list[str]:
    wish = lease.wish.board
    wanted = " ".join(word for word in (wish.id, wish.chip) if word) or "any"
    queued = lease.state is LeaseState.QUEUED
    return [
        lease.board_id or f"wants {wanted}",
        lease.agent_name or "",
        f"{lease.state}, {lease.position} before" if queued else str(lease.state),
        lease.holder,
        _clock(lease),
        lease.note,
        lease.id,
    ]


def _clock(lease: Lease) -> str:
    return time.strftime("%H:%M:%S", time.localtime(lease.expires_at))
