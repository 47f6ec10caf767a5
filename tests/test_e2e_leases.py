"""A board that is held by a lease, with the real programs: its holder works, others wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand import Stand, a_stand

pytestmark = pytest.mark.long


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Stand]:
    with a_stand(tmp_path / "no-toolchain") as stand:
        stand.agent(slots=2, boards=[stand.virtual_board("p4", "esp32p4")])
        yield stand


def test_a_leased_board_serves_its_holder_until_it_is_kicked_to_the_next(house: Stand) -> None:
    ann, bob = house.client("ann"), house.client("bob")
    taken = ann("lease", "take", "p4", "--for", "600", "--note", "bisecting", "--json").expect()
    assert (taken.json["state"], taken.json["agent_name"]) == ("held", "agent")

    # Others wait, are told why, and can't take it either.
    turned_away = bob("monitor", "--board", "p4", "--wait", "2", "--json").expect(8)
    assert "board.leased" in turned_away.error["message"]
    refused = bob("lease", "take", "--chip", "ESP32-P4", "--json").expect(6)
    assert refused.error["code"] == "board.not_free"
    assert "leased by another until" in bob("boards").expect().out
    assert "bisecting" not in bob("lease", "list").expect().out

    # Its holder renews it and works.
    renewed = ann("lease", "renew", "p4", "--for", "1200", "--json").expect()
    assert renewed.json["expires_at"] > taken.json["expires_at"] + 300
    watching = ann.start("watching", "monitor", "--board", "p4", "--reset")
    house.until(lambda: "connected to agent" in watching.output(), "the holder's console", watching)

    # The next waits in the queue; an operator kicks the holder, whose console ends.
    waiting = bob.start("waiting", "lease", "take", "p4", "--wait", "120", "--json")
    house.until(
        lambda: "queued" in house.admin("lease", "list").out, "bob's place in the queue", waiting
    )
    listed = house.admin("lease", "list").expect().out
    assert "bisecting" in listed
    assert "queued, 0 before" in listed
    kicked = house.admin("lease", "kick", "p4", "--json").expect()
    assert (kicked.json["end"], kicked.json["fence"]) == ("kicked", taken.json["fence"])
    assert watching.process.wait(30) != 0
    assert "taken back" in watching.output()
    assert waiting.process.wait(30) == 0
    assert '"state": "held"' in waiting.output()

    # The board is bob's now; he gives it back and ann has it again.
    held = bob("lease", "list", "--json").expect().json["leases"]
    assert [lease["board_id"] for lease in held] == ["p4"]
    assert held[0]["fence"] > taken.json["fence"]
    assert ann("lease", "release", "p4", "--json").expect(6).error["code"] == "lease.not_found"
    assert "released" in bob("lease", "release", "p4").expect().out
    assert "yours until" in ann("lease", "take", "p4").expect().out
    by_id = ann("lease", "list", "--json").expect().json["leases"][0]["id"]
    ann("lease", "release", by_id).expect()
    assert "No board is leased" in house.admin("lease", "list").expect().out
    assert house.admin("lease", "kick", "p4", "--json").code == 8
    ann("lease", "take", "--json").expect(2)


def test_who_gives_up_waiting_leaves_the_queue(house: Stand) -> None:
    ann, bob = house.client("ann"), house.client("bob")
    ann("lease", "take", "p4").expect()
    assert bob("lease", "take", "p4", "--wait", "1", "--json").expect(6).error["code"] == (
        "lease.over"
    )
    waiting = bob.start("waiting", "lease", "take", "p4", "--wait", "120")
    house.until(lambda: "board.leased" in waiting.output(), "bob in the queue", waiting)
    waiting.process.send_signal(2)
    assert waiting.process.wait(20) == 130
    house.until(lambda: "queued" not in house.admin("lease", "list").out, "the queue to be empty")
