"""The tables of states: complete, all of it reachable, and ends are ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from aegis_protocol.states import (
    JOB_MOVES,
    TASK_MOVES,
    IllegalMove,
    JobState,
    TaskState,
    diagram,
    ended,
    move,
    sources,
)

TABLES = pytest.mark.parametrize(
    ("states", "moves"), [(JobState, JOB_MOVES), (TaskState, TASK_MOVES)], ids=["job", "task"]
)
Moves = Mapping[Any, frozenset[Any]]


@TABLES
def test_every_state_has_a_row_and_moves_lead_to_states(states: Any, moves: Moves) -> None:
    assert moves.keys() == set(states)
    assert set().union(*moves.values()) <= set(states)


@TABLES
def test_every_state_is_reached_from_pending(states: Any, moves: Moves) -> None:
    reached = {states.PENDING}
    while more := {to for state in reached for to in moves[state]} - reached:
        reached |= more
    assert reached == set(states)


@TABLES
def test_no_end_moves_and_every_other_state_can_come_to_an_end(states: Any, moves: Moves) -> None:
    ends = {state for state in states if ended(state)}
    assert {str(state) for state in ends} >= {"succeeded", "failed", "canceled"}
    for state in states:
        assert (not moves[state]) == (state in ends)
        assert state in ends or moves[state] & ends


@TABLES
def test_no_state_moves_to_itself(states: Any, moves: Moves) -> None:
    assert not [state for state in states if state in moves[state]]


@TABLES
def test_a_move_is_made_exactly_where_the_table_has_it(states: Any, moves: Moves) -> None:
    for now in states:
        for to in states:
            if to in moves[now]:
                assert move(now, to) is to
            else:
                with pytest.raises(IllegalMove) as refused:
                    move(now, to)
                assert refused.value.facts == {"now": str(now), "to": str(to)}


def test_the_sources_of_a_move_are_the_table_read_backwards() -> None:
    for to in JobState:
        assert set(sources(to)) == {now for now in JobState if to in JOB_MOVES[now]}


@TABLES
def test_a_diagram_has_one_arrow_for_each_move_and_each_end(states: Any, moves: Moves) -> None:
    first, start, *arrows = diagram(moves).splitlines()
    assert (first, start) == ("stateDiagram-v2", "    [*] --> pending")
    expected = [f"    {now} --> {to}" for now in states for to in moves[now]]
    expected += [f"    {now} --> [*]" for now in states if ended(now)]
    assert sorted(arrows) == sorted(expected)
