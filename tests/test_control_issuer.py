"""The issuer's key changes without a restart, and everybody follows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from aegis_agent.identity import Enrollment
from aegis_control.issuer import Issuer, write_key
from aegis_protocol import grant as grants
from aegis_protocol.actions import Role
from aegis_protocol.control_link import IssuerKeys, JobOffer
from aegis_protocol.http_api.issuer import IssuerKey
from aegis_protocol.signing import issuer_statement, unb64, verified
from control_fixtures import Bench, bench, key_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from databases import postgres, postgres_url
from test_control_replicas import replicas_of

__all__ = ["postgres", "postgres_url"]


async def rotate(b: Bench) -> Any:
    client = b.client(await key_of(b.served, Role.OPERATOR))
    return await client.ask("POST", "/services/issuer/rotate")


async def states(b: Bench) -> list[str]:
    client = b.client(await key_of(b.served, Role.OPERATOR))
    answer = await client.ask("GET", "/services/issuer")
    return [row["state"] for row in answer.body["keys"]]


async def jwks(b: Bench) -> list[str]:
    answer = await b.client(None).ask("GET", "/.well-known/jwks.json")
    return [key["kid"] for key in answer.body["keys"]]


def trusts(agents_keys: tuple[IssuerKey, ...], token: str, audience: str) -> None:
    """Verify a grant as an agent does that trusts these keys."""
    keys = {k.kid: Ed25519PublicKey.from_public_bytes(unb64(k.x)) for k in agents_keys}
    grants.verify(token, keys, audience=audience, now_s=time.time())


async def test_a_new_key_is_signed_by_the_old_one_and_told_to_live_links(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent, client = await b.agent(), b.client()
        (old,) = await jwks(b)
        before = await client.granted()
        answer = await rotate(b)
        assert [row["state"] for row in answer.body["keys"]] == ["valid", "signing"]
        told = await agent.next(IssuerKeys)
        first, second = told.issuer_keys
        assert (first.kid, second.prev_kid) == (old, old)
        assert second.sig is not None
        message = issuer_statement(second.kid, unb64(second.x))
        assert verified(unb64(first.x), unb64(second.sig), message)
        assert await jwks(b) == [old, second.kid]
        # What the old key signed a moment ago still counts, and the new one signs.
        assert (await client.offer(before)).status == 202
        await agent.next(JobOffer)
        after = await client.granted()
        trusts(told.issuer_keys, after.grant, agent.id)
        trusts((second,), after.grant, agent.id)
        assert (await client.offer(after)).status == 202


async def test_two_keys_are_valid_at_a_time_and_the_chain_leads_from_older_ones(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        agent = b.machine()
        enrolled = (await agent.enroll()).issuer_keys
        for _ in range(3):
            assert (await rotate(b)).status == 200
        assert await states(b) == ["past", "past", "valid", "signing"]
        welcome = await agent.link()
        assert len(await jwks(b)) == 2
        followed = Enrollment(
            base_url=b.base_url, agent_id=agent.id, issuer_keys=enrolled
        ).with_keys(welcome.issuer_keys)
        assert [key.kid for key in followed.issuer_keys] == await jwks(b)
        trusts(followed.issuer_keys, (await b.client().granted()).grant, agent.id)


async def test_a_restart_signs_with_the_new_key(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await rotate(b)
        keys = await jwks(b)
        assert Issuer.open(tmp / "s" / "issuer.pem").kid == keys[-1]
    async with bench(tmp / "s") as b:
        assert await jwks(b) == keys
        assert b.served.control.issuer.kid == keys[-1]


async def test_a_rotation_that_a_crash_cut_short_is_finished_or_forgotten(tmp: Path) -> None:
    async with bench(tmp / "s") as b:
        await rotate(b)
        old, new = await jwks(b)
        made = b.served.control.issuer.key
    # The store knew the new key, and its file did not have its place yet.
    (tmp / "s" / "issuer.pem").rename(tmp / "s" / "issuer.next.pem")
    write_key(tmp / "s" / "issuer.pem", made)
    async with bench(tmp / "s") as b:
        assert await jwks(b) == [old, new]
    assert not (tmp / "s" / "issuer.next.pem").exists()
    # The store never knew it: nothing was signed with it.
    write_key(tmp / "s" / "issuer.next.pem", Ed25519PrivateKey.generate())
    async with bench(tmp / "s") as b:
        assert await jwks(b) == [old, new]
        assert b.served.control.issuer.kid == new
    assert not (tmp / "s" / "issuer.next.pem").exists()


async def test_every_replica_signs_with_the_key_that_one_of_them_made(
    tmp: Path, postgres_url: str
) -> None:
    async with replicas_of(tmp, postgres_url) as (a, c):
        agent = await a.agent()
        (old,) = await jwks(c)
        answer = await rotate(a)
        assert [row["state"] for row in answer.body["keys"]] == ["signing", "next"]
        again = await rotate(a)
        assert (again.status, again.error.code) == (409, "issuer.rotation_refused")
        told = await agent.next(IssuerKeys)
        new = told.issuer_keys[-1].kid
        async with asyncio.timeout(20):
            while await states(c) != ["valid", "signing"]:
                await asyncio.sleep(0.05)
        assert await jwks(c) == [old, new]
        client = c.client(await key_of(c.served, Role.FLASHER))
        granted = await client.granted()
        trusts((told.issuer_keys[-1],), granted.grant, agent.id)
        assert (await client.offer(granted)).status == 202
    # A replica that starts afterwards, with a file of its own, takes the key from the store.
    async with replicas_of(tmp / "later", postgres_url, count=1) as (late,):
        assert await jwks(late) == [old, new]
        assert late.served.control.issuer.kid == new


async def test_without_a_seal_key_replicas_can_not_rotate(tmp: Path, postgres_url: str) -> None:
    async with replicas_of(tmp, postgres_url, count=1, seal_key=None) as (only,):
        refused = await rotate(only)
        assert (refused.status, refused.error.code) == (409, "issuer.rotation_refused")
        assert "AEGIS_SEAL_KEY" in refused.error.remedy
