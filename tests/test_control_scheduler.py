"""The pure function that matches jobs with agents."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from aegis_control.scheduler import (
    AgentView,
    Decision,
    KnownFleet,
    Leased,
    WaitingJob,
    decide,
    in_turn,
    satisfies,
)
from aegis_control.scheduler.decide import KEEP_AFTER_S
from aegis_control.scheduler.order import AGING_S
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.http_api.toolchains import Toolchain, ToolchainWish
from aegis_protocol.states import AgentState, BoardState

PIO = Toolchain(kind="platformio", version="6.1.18", targets=("esp32", "esp32p4"))


def agent(name: str, **facts: Any) -> AgentView:
    given: dict[str, Any] = {
        "id": f"ag-{name}",
        "state": AgentState.ONLINE,
        "targets": frozenset({"esp32", "esp32p4"}),
        "toolchains": (PIO,),
        "slots": 2,
        "slots_free": 2,
        "cpu_cores": 4.0,
        "cpu_free": 4.0,
        "memory_mb": 4096,
        "memory_free_mb": 4096,
    }
    return AgentView(name=name, **(given | facts))


def job(job_id: str = "j", identity: str = "me", **wishes: Any) -> WaitingJob:
    fields: dict[str, Any] = {"id": job_id, "identity": identity, "created_at": 1.0}
    return WaitingJob(**(fields | wishes))


def a_fleet(size: int) -> list[AgentView]:
    """Agents of several kinds, some of which take no jobs."""
    states = [AgentState.ONLINE] * 8 + [AgentState.PAUSED, AgentState.DISCONNECTED]
    return [
        agent(
            f"{n:04}",
            state=states[n % 10],
            reason=f"disk 9{n % 7} %" if states[n % 10] is AgentState.PAUSED else "",
            labels={"site": f"lab{n % 7}"},
            boards=(Board(id=f"b{n}", chip="esp32p4"), Board(id=f"c{n}", chip="esp32")),
        )
        for n in range(size)
    ]


def a_queue(size: int) -> list[WaitingJob]:
    return [
        job(
            f"j{n:04}",
            f"u{n % 20}",
            created_at=float(n),
            target=("esp32", "esp32p4")[n % 2],
            toolchain=ToolchainWish(kind="platformio", version=">=6.1") if n % 3 else None,
            labels={"site": f"lab{n % 7}"} if n % 5 == 0 else {},
            boards=(BoardWish(chip="esp32p4"),) if n % 4 == 0 else (),
            cpu_cores=float(1 + n % 2),
            project_key=f"p{n % 100}",
        )
        for n in range(size)
    ]


def chosen(found: Decision) -> dict[str, str]:
    return {match.job_id: match.agent_id for match in found.matches}


@pytest.mark.parametrize(
    ("wishes", "facts", "code"),
    [
        ({"target": "esp32c6"}, {}, "target.missing"),
        ({"toolchain": ToolchainWish(kind="esp-idf")}, {}, "toolchain.missing"),
        (
            {"toolchain": ToolchainWish(kind="platformio", version=">=6.2")},
            {},
            "toolchain.version",
        ),
        (
            {"target": "esp32c6", "toolchain": ToolchainWish(kind="platformio")},
            {"targets": frozenset({"esp32c6"})},
            "target.missing",
        ),
        ({"agent": "another"}, {}, "agent.not_asked"),
        ({"labels": {"site": "lab1"}}, {"labels": {"site": "lab2"}}, "labels.differ"),
        ({"among": (("site=lab1", "site=lab2"),)}, {}, "agent.not_allowed"),
        ({"among": (("a",), ("site=lab1",))}, {"labels": {"site": "x"}}, "agent.not_allowed"),
        ({"among": ((),)}, {}, "agent.not_allowed"),
        ({}, {"state": AgentState.DISCONNECTED}, "agent.disconnected"),
        ({}, {"state": AgentState.PAUSED, "reason": "disk 96 %"}, "agent.paused"),
        ({}, {"state": AgentState.DRAINING}, "agent.draining"),
        ({}, {"state": AgentState.QUARANTINED, "reason": "cloned"}, "agent.quarantined"),
        ({}, {"slots_free": 0}, "slots.full"),
        ({}, {"slots": 0, "slots_free": 0}, "slots.full"),
        ({"cpu_cores": 8.0}, {}, "cpu.short"),
        ({"memory_mb": 8192}, {}, "memory.short"),
        ({"boards": (BoardWish(id="x"),)}, {}, "board.missing"),
        (
            {"boards": (BoardWish(chip="esp32p4"),)},
            {"boards": (Board(id="b", chip="esp32"),)},
            "board.missing",
        ),
        (
            {"boards": (BoardWish(id="b"),)},
            {"boards": (Board(id="b", state=BoardState.GONE),)},
            "board.gone",
        ),
        (
            {"boards": (BoardWish(id="b"),)},
            {"boards": (Board(id="b"),), "held": frozenset({"b"})},
            "board.held",
        ),
        (
            {"boards": (BoardWish(), BoardWish())},
            {"boards": (Board(id="b"),)},
            "board.held",
        ),
        (
            {"boards": (BoardWish(),), "board_limits": ("c",)},
            {"boards": (Board(id="b"),)},
            "board.not_allowed",
        ),
    ],
)
def test_what_is_in_the_way_has_a_code(
    wishes: dict[str, Any], facts: dict[str, Any], code: str
) -> None:
    found = decide([job(**wishes)], [agent("a", **facts)], {})
    assert found.matches == ()
    (reason,) = found.waiting["j"]
    assert (reason.code, reason.agents) == (code, ("a",))
    assert decide([job()], [agent("a")], {}).matches  # the ordinary job and agent fit


def test_without_agents_that_is_the_reason() -> None:
    assert [reason.code for reason in decide([job()], [], {}).waiting["j"]] == ["agent.none"]


def test_each_agent_is_named_with_its_own_reason() -> None:
    fleet = [
        agent("a", state=AgentState.PAUSED, reason="disk 96 %"),
        agent("b", slots_free=0),
        agent("c", state=AgentState.PAUSED, reason="disk 96 %"),
    ]
    reasons = decide([job()], fleet, {}).waiting["j"]
    assert [(r.code, r.detail, r.agents) for r in reasons] == [
        ("agent.paused", "disk 96 %", ("a", "c")),
        ("slots.full", "all slots taken (2)", ("b",)),
    ]


def test_the_agent_with_the_project_warm_is_best_even_when_it_is_busier() -> None:
    fleet = [agent("a"), agent("b", warm=frozenset({"blinky"}), slots_free=1)]
    assert chosen(decide([job(project_key="blinky")], fleet, {})) == {"j": "ag-b"}
    assert chosen(decide([job(project_key="other")], fleet, {})) == {"j": "ag-a"}


def test_of_equal_agents_the_least_loaded_by_share_is_taken_then_the_first_by_name() -> None:
    fleet = [agent("a", slots=2, slots_free=1), agent("b", slots=8, slots_free=6)]
    assert chosen(decide([job()], fleet, {})) == {"j": "ag-b"}
    assert chosen(decide([job()], [agent("b"), agent("a")], {})) == {"j": "ag-a"}


def test_jobs_spread_and_never_exceed_what_an_agent_has() -> None:
    fleet = [agent("a"), agent("b")]
    found = decide([job(str(n), cpu_cores=2.0) for n in range(6)], fleet, {})
    assert sorted(chosen(found).values()) == ["ag-a", "ag-a", "ag-b", "ag-b"]
    assert {r.code for reasons in found.waiting.values() for r in reasons} == {"slots.full"}
    short = decide([job(str(n), memory_mb=3000) for n in range(3)], fleet, {})
    assert len(short.matches) == 2
    assert {r.code for rs in short.waiting.values() for r in rs} == {"memory.short"}


def test_a_board_goes_to_one_job_of_a_round() -> None:
    fleet = [agent("a", boards=(Board(id="b", chip="esp32p4"),))]
    wish = (BoardWish(chip="esp32p4"),)
    found = decide([job("1", boards=wish), job("2", boards=wish)], fleet, {})
    assert [match.boards for match in found.matches] == [("b",)]
    assert [r.code for r in found.waiting["2"]] == ["board.held"]


def test_wishes_find_boards_of_their_own_whatever_their_order() -> None:
    boards = (
        Board(id="1", chip="esp32p4", labels={"lcd": "yes"}),
        Board(id="2", chip="esp32p4"),
        Board(id="3", chip="esp32"),
    )
    wishes = (BoardWish(), BoardWish(chip="esp32p4"), BoardWish(labels={"lcd": "yes"}))
    (match,) = decide([job(boards=wishes)], [agent("a", boards=boards)], {}).matches
    assert match.boards == ("3", "2", "1")


def test_identities_take_turns_and_the_one_with_less_running_goes_first() -> None:
    queue = [job(f"a{n}", "a", created_at=float(n)) for n in range(3)]
    queue += [job(f"b{n}", "b", created_at=10.0 + n) for n in range(2)]
    assert [j.id for j in in_turn(queue, {})] == ["a0", "b0", "a1", "b1", "a2"]
    assert [j.id for j in in_turn(queue, {"a": 2})] == ["b0", "b1", "a0", "a1", "a2"]


def test_a_flood_of_one_identity_does_not_starve_another() -> None:
    queue = [job(f"a{n:03}", "a", created_at=float(n)) for n in range(500)]
    queue.append(job("b", "b", created_at=1000.0))
    found = decide(queue, [agent("x", slots=2, slots_free=2)], {})
    assert set(chosen(found)) == {"a000", "b"}


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("6.1.18", "", True),
        ("6.1.18", ">=6.1", True),
        ("6.1.18", ">=6.1,<6.1.18", False),
        ("6.1.18rc1", ">=6.1", True),
        ("6.1.18", "==6.1.*", True),
        ("not a version", ">=1", False),
    ],
)
def test_versions_are_compared_as_pep_440_has_it(version: str, wanted: str, fits: bool) -> None:
    assert satisfies(version, wanted) is fits


def test_of_a_large_fleet_a_few_agents_are_named_and_the_rest_counted() -> None:
    fleet = [agent(f"{n:03}", slots_free=0) for n in range(100)]
    (reason,) = decide([job()], fleet, {}).waiting["j"]
    assert reason.agents == tuple(f"{n:03}" for n in range(16))
    assert reason.more == 84
    assert str(reason).endswith("014, 015 and 84 more)")


def test_a_leased_board_is_its_holders_alone() -> None:
    board = (Board(id="b", chip="esp32p4"),)
    fleet = [agent("a", boards=board, leased={"b": Leased("ann", 1_790_000_000.0)})]
    wish = (BoardWish(chip="esp32p4"),)
    found = decide([job("1", "bob", boards=wish), job("2", "ann", boards=wish)], fleet, {})
    assert chosen(found) == {"2": "ag-a"}
    assert [str(reason) for reason in found.waiting["1"]] == [
        "board.leased: board with esp32p4 is leased until 14:13 UTC (a)"
    ]


def test_a_key_has_no_more_jobs_at_once_than_it_may() -> None:
    queue = [job(str(n), "ann", most_jobs=3) for n in range(4)]
    found = decide(queue, [agent("a", slots_free=4, cpu_free=9.0)], {"ann": 1})
    assert len(found.matches) == 2
    assert [str(r) for r in found.waiting["3"]] == [
        "jobs.at_limit: the key may have 3 at once, and has 3"
    ]


def test_a_higher_priority_goes_first_and_waiting_raises_it() -> None:
    queue = [job("low", "ann", created_at=0.0), job("high", "bob", created_at=5.0, priority=2)]
    assert [j.id for j in in_turn(queue, {}, now_s=10)] == ["high", "low"]
    assert [j.id for j in in_turn(queue, {}, now_s=3 * AGING_S + 9)] == ["low", "high"]
    # never above the highest that somebody asks for: of equals age is no claim to every turn
    crowd = [job(f"a{n}", "ann", created_at=float(n)) for n in range(3)]
    crowd.append(job("b", "bob", created_at=9 * AGING_S))
    assert [j.id for j in in_turn(crowd, {}, now_s=9 * AGING_S)] == ["a0", "b", "a1", "a2"]
    crowd.append(job("c", "cyd", created_at=AGING_S))  # who has less on agents is before the older
    assert [j.id for j in in_turn(crowd, {"ann": 1}, now_s=9 * AGING_S)][:3] == ["c", "a0", "b"]


@pytest.mark.parametrize(("identity", "after_s"), [("bob", KEEP_AFTER_S), ("ann", AGING_S)])
def test_a_large_job_gets_an_agent_that_small_ones_would_never_leave_idle(
    identity: str, after_s: float
) -> None:
    """
    One of two slots is free at each tick, and a small job of bob's is always there to take it,
    before one of ann's: she has a job elsewhere.
    """
    large = job("large", identity, created_at=0.0, cpu_cores=4.0)
    ends = {"before": 2}
    for tick in range(1, 120):
        ends = {job_id: end for job_id, end in ends.items() if end > tick}
        small = job(f"s{tick:03}", "bob", created_at=tick * 10.0, cpu_cores=2.0)
        free = 2 - len(ends)
        fleet = [agent("a", slots_free=free, cpu_free=2.0 * free)]
        found = decide([large, small], fleet, {"ann": 1}, now_s=tick * 10.0)
        if "large" in chosen(found):
            assert after_s <= tick * 10.0 <= after_s + 50
            return
        if small.id in chosen(found):
            ends[small.id] = tick + 2
        else:
            assert "agent.kept" in {reason.code for reason in found.waiting[small.id]}
    raise AssertionError("it waits still")


def test_five_hundred_jobs_and_a_thousand_agents_are_decided_and_explained_at_once() -> None:
    fleet, queue = a_fleet(1000), a_queue(500)
    room = decide(queue, fleet, {}, now_s=1000.0)
    assert len(room.matches) > 400
    began = time.process_time()
    full = decide(queue, [replace(view, slots_free=0) for view in fleet], {}, now_s=1000.0)
    assert time.process_time() - began < 5
    assert not full.matches
    for reasons in full.waiting.values():
        assert sum(len(reason.agents) + reason.more for reason in reasons) == 1000


def test_a_thousand_jobs_and_a_hundred_agents_are_decided_in_one_go() -> None:
    fleet = [agent(f"{n:03}") for n in range(100)]
    queue = [job(f"{n:04}", f"u{n % 7}", created_at=float(n), cpu_cores=1) for n in range(1000)]
    found = decide(queue, fleet, {})
    assert len(found.matches) == 200
    assert len(found.waiting) == 800
    by_user = {f"u{n}": 0 for n in range(7)}
    for match in found.matches:
        by_user[f"u{int(match.job_id) % 7}"] += 1
    assert max(by_user.values()) - min(by_user.values()) <= 1


def test_what_is_known_of_agents_saves_time_and_changes_nothing() -> None:
    known = KnownFleet()
    lab = agent("lab", targets=frozenset({"esp32"}))
    asked = job(target="esp32")
    for views in (
        [lab],
        [lab],
        [replace(lab, slots_free=0)],
        [replace(lab, targets=frozenset({"esp32c3"}))],
        [replace(lab, state=AgentState.PAUSED, reason="full")],
        [lab, agent("other", targets=frozenset({"esp32"}))],
    ):
        assert decide([asked], views, {}, known=known) == decide([asked], views, {})
