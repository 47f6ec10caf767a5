"""Words about changes: heard after the commit, once, by everybody who asked for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from aegis_control.bus import EVERYTHING, Bus, tell
from aegis_control.store.database import Database


class Lost(Exception):
    """What ends a transaction early."""


async def test_a_word_is_heard_after_the_commit_and_once(tmp: Path) -> None:
    heard: list[str] = []
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        database.bus.subscribe("job", heard.append)
        async with database.write() as conn:
            for word in ("a", "b", "a"):
                await tell(conn, "job", word)
            await tell(conn, "lease", "c")
            assert heard == []
        assert heard == ["a", "b"]


async def test_the_words_of_a_transaction_that_failed_are_never_heard(tmp: Path) -> None:
    heard: list[str] = []
    async with Database.open(f"sqlite+aiosqlite:///{tmp / 'control.db'}") as database:
        database.bus.subscribe("job", heard.append)
        with pytest.raises(Lost):
            async with database.write() as conn:
                await tell(conn, "job", "a")
                raise Lost
        async with database.write() as conn:
            await tell(conn, "job", "b")
        assert heard == ["b"]


def test_a_subscriber_that_fails_keeps_no_other_from_its_word() -> None:
    heard: list[str] = []

    def fail(_: str) -> None:
        raise Lost

    bus = Bus()
    bus.subscribe("job", fail)
    bus.subscribe("job", heard.append)
    bus.deliver([("job", "a")])
    bus.missed()
    assert heard == ["a", EVERYTHING]
