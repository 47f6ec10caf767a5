"""What holds of every decision, whatever the jobs and the agents: found by hypothesis."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import permutations
from typing import Any

from aegis_control.scheduler import (
    AgentView,
    Decision,
    KnownFleet,
    Leased,
    WaitingJob,
    decide,
    satisfies,
)
from aegis_control.scheduler.decide import KEEP_AFTER_S
from aegis_control.scheduler.order import AGING_S
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.http_api.toolchains import Toolchain, ToolchainWish
from aegis_protocol.states import AgentState, BoardState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHIPS = ("esp32", "esp32p4")
PEOPLE = ("ann", "bob", "cyd")
quickly = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def agents(draw: st.DrawFn, *, most: int = 6) -> list[AgentView]:
    return [draw(agent(n)) for n in range(draw(st.integers(0, most)))]


@st.composite
def agent(draw: st.DrawFn, number: int) -> AgentView:
    boards = tuple(
        Board(
            id=f"b{number}-{n}",
            chip=draw(st.sampled_from(CHIPS)),
            labels=draw(st.sampled_from([{}, {"lcd": "yes"}])),
            state=draw(st.sampled_from([BoardState.FREE, BoardState.FREE, BoardState.GONE])),
        )
        for n in range(draw(st.integers(0, 3)))
    )
    some = st.sets(st.sampled_from([b.id for b in boards])) if boards else st.just(set[str]())
    slots = draw(st.integers(0, 3))
    return AgentView(
        id=f"ag-{number}",
        name=draw(st.sampled_from(["x", "y", "z"])) + str(number),
        state=draw(st.sampled_from([AgentState.ONLINE] * 4 + list(AgentState))),
        targets=frozenset(draw(st.sets(st.sampled_from(CHIPS)))),
        toolchains=tuple(
            Toolchain(kind=kind, version=draw(st.sampled_from(["5.1", "6.1"])), targets=CHIPS)
            for kind in draw(st.sets(st.sampled_from(["platformio", "esp-idf"])))
        ),
        labels=draw(st.sampled_from([{}, {"site": "lab1"}, {"site": "lab2"}])),
        boards=boards,
        held=frozenset(draw(some)),
        leased={b: Leased(draw(st.sampled_from(PEOPLE)), 1000.0) for b in draw(some)},
        slots=slots,
        slots_free=draw(st.integers(-1, slots)),
        cpu_cores=4.0,
        cpu_free=draw(st.sampled_from([-1.0, 0.5, 2.0, 4.0])),
        memory_mb=4096,
        memory_free_mb=draw(st.sampled_from([0, 1024, 4096])),
        warm=frozenset(draw(st.sets(st.sampled_from(["p1", "p2"])))),
    )


@st.composite
def jobs(draw: st.DrawFn, *, most: int = 10) -> list[WaitingJob]:
    return [draw(job(n)) for n in range(draw(st.integers(0, most)))]


@st.composite
def job(draw: st.DrawFn, number: int) -> WaitingJob:
    wish = st.builds(
        BoardWish,
        chip=st.sampled_from([None, *CHIPS]),
        labels=st.sampled_from([{}, {"lcd": "yes"}]),
    )
    maybe = st.sampled_from
    return WaitingJob(
        id=f"j{number:02}",
        identity=draw(st.sampled_from(PEOPLE)),
        created_at=float(draw(st.integers(0, 5))),
        target=draw(maybe([None, *CHIPS])),
        toolchain=draw(maybe([None, None, ToolchainWish(kind="platformio", version=">=6")])),
        agent=draw(maybe([None] * 6 + ["ag-0", "x1"])),
        labels=draw(maybe([{}, {}, {"site": "lab1"}])),
        boards=tuple(draw(st.lists(wish, max_size=2))),
        cpu_cores=draw(maybe([0.5, 2.0, 5.0])),
        memory_mb=draw(maybe([512, 2048])),
        project_key=draw(maybe([None, "p1"])),
        priority=draw(st.integers(-1, 2)),
        among=draw(maybe([(), (), (("site=lab1", "site=lab2"),), (("ag-1",), ("y1", "x"))])),
        board_limits=draw(maybe([None, None, ("b0-0", "b1-1")])),
        most_jobs=draw(maybe([None, None, 1, 2])),
    )


loads = st.dictionaries(st.sampled_from(PEOPLE), st.integers(0, 3))
ages = st.sampled_from([0.0, KEEP_AFTER_S + 5, 4 * AGING_S])


def suits(want: WaitingJob, view: AgentView) -> bool:
    """Whether the agent may have the job at all, said a second time in the plainest words."""
    chains = [c for c in view.toolchains if want.toolchain and c.kind == want.toolchain.kind]
    wanted = "" if want.toolchain is None else want.toolchain.version
    builds = set(view.targets).union(*(c.targets for c in view.toolchains))
    words = {view.id, view.name, *(f"{key}={value}" for key, value in view.labels.items())}
    return (
        view.state is AgentState.ONLINE
        and want.agent in (None, view.id, view.name)
        and all(view.labels.get(key) == value for key, value in want.labels.items())
        and all(words & set(allowed) for allowed in want.among)
        and (want.target is None or want.target in builds)
        and (want.toolchain is None or any(satisfies(c.version, wanted) for c in chains))
    )


def may_use(want: WaitingJob, view: AgentView, board: Board) -> bool:
    lease = view.leased.get(board.id)
    return (
        board.state is not BoardState.GONE
        and board.id not in view.held
        and (lease is None or lease.identity == want.identity)
        and (want.board_limits is None or board.id in want.board_limits)
    )


def fulfils(wish: BoardWish, board: Board) -> bool:
    return wish.chip in (None, board.chip) and set(wish.labels.items()) <= set(board.labels.items())


def has_room(want: WaitingJob, view: AgentView) -> bool:
    usable = [board for board in view.boards if may_use(want, view, board)]
    return (
        view.slots_free >= 1
        and view.cpu_free >= want.cpu_cores
        and view.memory_free_mb >= want.memory_mb
        and any(
            all(map(fulfils, want.boards, choice))
            for choice in permutations(usable, len(want.boards))
        )
    )


def afterwards(queue: list[WaitingJob], fleet: list[AgentView], found: Decision) -> list[AgentView]:
    """The agents as they are once the decision is carried out."""
    wanted = {want.id: want for want in queue}
    views = {view.id: view for view in fleet}
    for match in found.matches:
        want, view = wanted[match.job_id], views[match.agent_id]
        views[view.id] = replace(
            view,
            held=view.held | set(match.boards),
            slots_free=view.slots_free - 1,
            cpu_free=view.cpu_free - want.cpu_cores,
            memory_free_mb=view.memory_free_mb - want.memory_mb,
        )
    return list(views.values())


@quickly
@given(jobs(), agents(), loads, ages)
def test_every_match_suits_and_none_takes_more_than_there_is(
    queue: list[WaitingJob], fleet: list[AgentView], load: dict[str, int], now_s: float
) -> None:
    found = decide(queue, fleet, load, now_s=now_s)
    wanted = {want.id: want for want in queue}
    assert {m.job_id for m in found.matches} | set(found.waiting) == set(wanted)
    assert len(found.matches) + len(found.waiting) == len(queue)
    views = {view.id: view for view in fleet}
    counts = Counter(load)
    for match in found.matches:
        want, view = wanted[match.job_id], views[match.agent_id]
        assert suits(want, view) and view.slots_free >= 1
        assert view.cpu_free >= want.cpu_cores and view.memory_free_mb >= want.memory_mb
        boards = {board.id: board for board in view.boards}
        assert len(set(match.boards)) == len(match.boards) == len(want.boards)
        for wish, board_id in zip(want.boards, match.boards, strict=True):
            assert fulfils(wish, boards[board_id]) and may_use(want, view, boards[board_id])
        for other in match.candidates:
            assert other != match.agent_id and suits(want, views[other])
        counts[want.identity] += 1
        assert want.most_jobs is None or counts[want.identity] <= want.most_jobs
        (views[view.id],) = afterwards([want], [view], Decision((match,), {}))


@quickly
@given(jobs(), agents(), loads)
def test_who_waits_has_no_agent_that_fits_and_a_reason_for_each(
    queue: list[WaitingJob], fleet: list[AgentView], load: dict[str, int]
) -> None:
    found = decide(queue, fleet, load)
    counts = Counter(load)
    counts.update(want.identity for want in queue if want.id not in found.waiting)
    after = afterwards(queue, fleet, found)
    for want in queue:
        reasons = found.waiting.get(want.id)
        if reasons is None:
            continue
        codes = {reason.code for reason in reasons}
        if codes == {"jobs.at_limit"}:
            assert want.most_jobs is not None and counts[want.identity] >= want.most_jobs
        elif codes == {"agent.none"}:
            assert not fleet
        else:
            assert not any(suits(want, view) and has_room(want, view) for view in after)
            named = Counter(name for reason in reasons for name in reason.agents)
            assert named == Counter(view.name for view in fleet)


@quickly
@given(jobs(), agents(), loads, ages, st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_told_changes_nothing(
    queue: list[WaitingJob],
    fleet: list[AgentView],
    load: dict[str, int],
    now_s: float,
    chance: random.Random,
) -> None:
    found = decide(queue, fleet, load, now_s=now_s)
    chance.shuffle(queue)
    chance.shuffle(fleet)
    assert decide(queue, fleet, load, now_s=now_s) == found


@quickly
@given(st.data())
def test_what_is_kept_from_decision_to_decision_changes_none(data: st.DataObject) -> None:
    known = KnownFleet()
    free: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {
            "slots_free": st.integers(0, 3),
            "cpu_free": st.sampled_from([0.5, 2.0, 4.0]),
            "memory_free_mb": st.sampled_from([512, 2048, 4096]),
            "warm": st.sampled_from([frozenset[str](), frozenset({"p1"})]),
        }
    )
    queue = [
        WaitingJob(id=f"j{n}", identity="ann", created_at=n, cpu_cores=cpu, memory_mb=mb)
        for n, (cpu, mb) in enumerate([(0.5, 512), (2.0, 512), (0.5, 2048), (4.0, 4096)])
    ]
    queue.append(replace(queue[0], id="warm", project_key="p1"))
    others: list[dict[str, Any]] = [
        {"state": AgentState.PAUSED},
        {"name": "y"},
        {"slots": 4},
        {"cpu_cores": 1.0},
    ]
    idle = AgentView("", "", AgentState.ONLINE, slots=3, cpu_cores=4.0, memory_mb=4096)
    fleet = [
        replace(idle, id=f"ag-{n}", name=f"x{n}", **data.draw(free))
        for n in range(data.draw(st.integers(2, 5)))
    ]
    for _ in range(5):
        for asked in (queue, queue[:2], queue[2:]):
            assert decide(asked, fleet, {}, known=known) == decide(asked, fleet, {})
        for place in data.draw(st.sets(st.integers(0, len(fleet) - 1), max_size=2)):
            fleet[place] = replace(fleet[place], **data.draw(free))
        if data.draw(st.integers(0, 3)) == 0:
            fleet[0] = replace(fleet[0], **data.draw(st.sampled_from(others)))


@quickly
@given(st.data())
def test_nobody_waits_for_ever_while_others_come_and_go(data: st.DataObject) -> None:
    """
    The machines are kept busy by small jobs of everybody, of a higher priority even; a job that
    some machine could hold when it is idle is placed all the same.
    """
    fleet = [
        AgentView(
            id=f"ag-{n}",
            name=f"n{n}",
            state=AgentState.ONLINE,
            boards=(Board(id=f"b{n}", chip="esp32"),),
            slots=2,
            slots_free=2,
            cpu_cores=4.0,
            cpu_free=4.0,
            memory_mb=4096,
            memory_free_mb=4096,
        )
        for n in range(data.draw(st.integers(1, 3)))
    ]
    patient = WaitingJob(
        id="patient",
        identity="ann",
        created_at=0.0,
        cpu_cores=data.draw(st.sampled_from([1.0, 4.0])),
        memory_mb=data.draw(st.sampled_from([512, 4096])),
        boards=data.draw(st.sampled_from([(), (BoardWish(chip="esp32"),)])),
    )
    busy: dict[str, list[tuple[int, WaitingJob, tuple[str, ...]]]] = defaultdict(list)
    queue, tick_s = [patient], 30.0
    for tick in range(200):
        for view in fleet:  # each small job lasts for one to three ticks
            busy[view.id] = [entry for entry in busy[view.id] if entry[0] > tick]
        for n in range(2 * len(fleet) + 1):
            small = WaitingJob(
                id=f"s{tick:03}-{n}",
                identity=data.draw(st.sampled_from(PEOPLE)),
                created_at=tick * tick_s,
                cpu_cores=2.0,
                boards=data.draw(st.sampled_from([(), (BoardWish(),)])),
                priority=data.draw(st.integers(0, 2)),
            )
            queue.append(small)
        queue = queue[-40:] if patient not in queue else [patient, *queue[1:][-40:]]
        now = [
            replace(
                view,
                held=frozenset(b for _, _, boards in busy[view.id] for b in boards),
                slots_free=view.slots - len(busy[view.id]),
                cpu_free=view.cpu_cores - sum(j.cpu_cores for _, j, _ in busy[view.id]),
                memory_free_mb=view.memory_mb - sum(j.memory_mb for _, j, _ in busy[view.id]),
            )
            for view in fleet
        ]
        load = Counter(j.identity for entries in busy.values() for _, j, _ in entries)
        found = decide(queue, now, load, now_s=tick * tick_s)
        if any(match.job_id == "patient" for match in found.matches):
            return
        wanted = {want.id: want for want in queue}
        for match in found.matches:
            ends = tick + data.draw(st.integers(1, 3))
            busy[match.agent_id].append((ends, wanted[match.job_id], match.boards))
            queue.remove(wanted[match.job_id])
    raise AssertionError("it waits still")
