"""One tick of the scheduler, by itself: a thousand agents, five hundred waiting jobs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from aegis_control.scheduler import AgentView, KnownFleet, WaitingJob, decide
from aegis_protocol.board import Board, BoardWish
from aegis_protocol.http_api.toolchains import Toolchain, ToolchainWish
from aegis_protocol.states import AgentState

AGENTS: Final = 1000
JOBS: Final = 500
CHIPS: Final = ("esp32", "esp32c3", "esp32c6", "esp32p4", "esp32s3", "esp8266")
_TURNS: Final = 7


def decision_ms() -> dict[str, float]:
    """
    Return how long one decision takes, the best of seven: processor time, as it waits for nothing.

    with room  most jobs are placed
    all full   none is, and each is told why, agent by agent
    """
    fleet, queue = a_fleet(), a_queue()
    full = [replace(view, slots_free=0) for view in fleet]
    return {"tick ms with room": _best_ms(queue, fleet), "tick ms all full": _best_ms(queue, full)}


def a_fleet() -> list[AgentView]:
    """Agents of many kinds: three chips each, two toolchains, labels, boards; some are paused."""
    fleet = []
    for n in range(AGENTS):
        targets = tuple(sorted({CHIPS[n % 6], CHIPS[(n // 6) % 6], CHIPS[(n // 36) % 6]}))
        state = (AgentState.PAUSED, AgentState.DISCONNECTED)[n % 2] if n % 9 == 0 else None
        fleet.append(
            AgentView(
                id=f"ag-{n:04}",
                name=f"rack-{n:04}",
                state=state or AgentState.ONLINE,
                reason=f"disk 9{n % 10} %" if state is AgentState.PAUSED else "",
                targets=frozenset(targets),
                toolchains=(
                    Toolchain(kind="platformio", version=f"6.1.{16 + n % 3}", targets=targets),
                    Toolchain(kind="esp-idf", version=f"5.{3 + n % 2}", targets=targets),
                ),
                labels={"site": f"lab{n % 7}", "rack": str(n % 40)},
                boards=tuple(Board(id=f"b{n}-{k}", chip=CHIPS[(n + k) % 6]) for k in range(2)),
                slots=4,
                slots_free=n % 5,
                cpu_cores=8,
                cpu_free=float(n % 9),
                memory_mb=16_000,
                memory_free_mb=(1000, 4000, 16_000)[n % 3],
                warm=frozenset({f"p{n % 300}", f"p{n % 100}"}),
            )
        )
    return fleet


def a_queue() -> list[WaitingJob]:
    """Jobs of twenty identities with every kind of wish."""
    toolchains = (
        None,
        ToolchainWish(kind="platformio", version=">=6.1.17"),
        ToolchainWish(kind="esp-idf"),
    )
    return [
        WaitingJob(
            id=f"job-{n:04}",
            identity=f"key-{n % 20}",
            created_at=float(n),
            target=CHIPS[n % 6],
            toolchain=toolchains[n % 3],
            labels={"site": f"lab{n % 7}"} if n % 4 == 0 else {},
            boards=(BoardWish(chip=CHIPS[n % 6]),) if n % 5 == 0 else (),
            cpu_cores=float(1 << n % 3),
            memory_mb=1024 << n % 2,
            project_key=f"p{n % 300}",
        )
        for n in range(JOBS)
    ]


def _best_ms(queue: list[WaitingJob], fleet: list[AgentView]) -> float:
    took, known = [], KnownFleet()  # kept from tick to tick, as control does
    for _ in range(_TURNS):
        began = time.thread_time()
        decide(queue, fleet, {}, now_s=600.0, known=known)
        took.append((time.thread_time() - began) * 1000)
    return min(took)
