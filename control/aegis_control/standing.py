"""What stands ordered of an agent, in the words of the link."""

from __future__ import annotations

from typing import assert_never

from aegis_protocol.control_link import Drain, Pause, Reset, Resume, Standing, ToAgent
from aegis_protocol.states import Order

from aegis_control.store.agents import AgentRecord


def standing(record: AgentRecord, *, now_s: float) -> Standing:
    """What `welcome` tells."""
    until_s = record.ordered_until
    return Standing(
        ordered=record.ordered,
        reason=record.ordered_reason,
        deadline_secs=None if until_s is None else max(0.0, until_s - now_s),
        resets=record.resets,
    )


def order_frame(record: AgentRecord, *, now_s: float) -> ToAgent:
    """The frame that has a linked agent do what `record` says was ordered last."""
    told = standing(record, now_s=now_s)
    match told.ordered:
        case Order.NONE:
            return Reset(resets=told.resets) if told.resets else Resume()
        case Order.PAUSED | Order.QUARANTINED:
            return Pause(reason=told.reason)
        case Order.DRAINING:
            return Drain(reason=told.reason, deadline_secs=told.deadline_secs)
        case _:
            assert_never(told.ordered)


def same_order(one: AgentRecord, other: AgentRecord) -> bool:
    """Tell whether nothing was ordered between the two."""
    return (one.ordered, one.ordered_reason, one.ordered_until, one.resets) == (
        other.ordered,
        other.ordered_reason,
        other.ordered_until,
        other.resets,
    )
