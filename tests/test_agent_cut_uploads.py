"""What is kept of uploads that were cut: a few of each agent's, each with one owner."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aegis_agent import cut_uploads
from aegis_agent.cut_uploads import MOST, MOST_BYTES, CutUpload, CutUploads
from aegis_agent.source import PlannedSource
from aegis_protocol.source import plan_digest
from build_stand import plan_of

FRESH = Path("fresh")


def a_cut(sha256: str, *, identity: str = "key-1", size_bytes: int = 1) -> CutUpload:
    planned = PlannedSource(plan_id="p", plan=plan_of({"a": sha256.encode()}), missing=(True,))
    return CutUpload(identity, planned, sha256, "none", Path(f"part-of-{sha256}"), size_bytes)


async def path_for(uploads: CutUploads, sha256: str, identity: str = "key-1") -> Path:
    async with uploads.receiving(identity, sha256, FRESH) as path:
        return path


async def test_the_same_pack_of_the_same_identity_goes_on_and_no_other() -> None:
    uploads = CutUploads()
    uploads.keep(a_cut("one"))
    assert await path_for(uploads, "another") == FRESH
    assert await path_for(uploads, "one", identity="key-2") == FRESH
    assert await path_for(uploads, "one") == a_cut("one").path
    assert await path_for(uploads, "one") == FRESH, "it was given away"


async def test_the_oldest_go_first_and_what_is_too_much_goes_at_once() -> None:
    uploads = CutUploads()
    cuts = [a_cut(str(number)) for number in range(MOST + 2)]
    assert [old for cut in cuts for old in uploads.keep(cut)] == cuts[:2]
    huge = a_cut("huge", size_bytes=MOST_BYTES + 1)
    assert uploads.keep(huge) == [*cuts[2:], huge]


async def test_only_other_source_of_the_same_identity_outdates_a_cut() -> None:
    uploads = CutUploads()
    mine, theirs = a_cut("one"), a_cut("two", identity="key-2")
    uploads.keep(mine)
    uploads.keep(theirs)
    assert uploads.outdated("key-1", plan_digest(mine.planned.plan)) == []
    assert uploads.outdated("key-1", "other source") == [mine]
    assert not uploads.give_up(mine)
    assert uploads.give_up(theirs)


async def test_whoever_comes_before_the_lost_connection_is_noticed_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uploads, cut = CutUploads(), a_cut("one")
    async with AsyncExitStack() as lost:
        await lost.enter_async_context(uploads.receiving("key-1", "one", FRESH))
        second = asyncio.create_task(path_for(uploads, "one"))
        await asyncio.sleep(0)
        assert not second.done()
        uploads.keep(cut)
    assert await second == cut.path
    monkeypatch.setattr(cut_uploads, "YIELD_S", 0.01)
    async with uploads.receiving("key-1", "one", FRESH):
        assert await path_for(uploads, "one") == FRESH, "but not for ever"
