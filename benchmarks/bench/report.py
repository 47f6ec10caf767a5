"""What a benchmark found: as a table, as JSON and as a plot, all of it below build/benchmarks."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final, Literal

FOLDER: Final = Path(__file__).parents[2] / "build" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """`value` is the median of `runs`; bar None: for information."""

    name: str
    value: float
    unit: str
    better: Literal["higher", "lower"]
    bar: float | None
    min: float
    max: float
    runs: list[float]

    @property
    def holds(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar


def row(
    name: str,
    runs: Sequence[float],
    unit: str,
    better: Literal["higher", "lower"],
    bar: float | None = None,
) -> Row:
    kept = [float(f"{run:.4g}") for run in runs]
    return Row(name, median(kept), unit, better, bar, min(kept), max(kept), kept)


def publish(name: str, rows: Sequence[Row]) -> None:
    """Print the table and write NAME.json and, where matplotlib is installed, NAME.png."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    words = {"machine": _machine(), "rows": [asdict(found) for found in rows]}
    target = FOLDER / f"{name}.json"
    partial = target.with_suffix(".json.new")
    partial.write_text(json.dumps(words, indent=1) + "\n")
    partial.replace(target)
    sys.stdout.write(table(rows) + f"\n{target}\n")
    if plot := _plot(name, rows):
        sys.stdout.write(f"{plot}\n")


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'what':<58} {'median':>9} {'range':>19}  {'bar':>8}  unit"]
    for found in rows:
        bar = (
            "" if found.bar is None else f"{'≥' if found.better == 'higher' else '≤'} {found.bar:g}"
        )
        verdict = {True: "", False: "  missed", None: ""}[found.holds]
        spread = f"{found.min:g}-{found.max:g}"
        lines.append(
            f"{found.name:<58} {found.value:>9g} {spread:>19}  {bar:>8}  {found.unit}{verdict}"
        )
    return "\n".join(lines)


def _machine() -> dict[str, str | int]:
    return {
        "cpus": os.cpu_count() or 0,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _plot(name: str, rows: Sequence[Row]) -> Path | None:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = [found for found in rows if found.bar is not None]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * len(judged)), layout="constrained")
    for place, found in enumerate(judged):
        assert found.bar is not None
        colour = "tab:green" if found.holds else "tab:red"
        low, high = found.min / found.bar, found.max / found.bar
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(found.value / found.bar, place, "o", color=colour)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("measured over the bar (median and range)")
    names = [f"{found.name} ({found.better} is better)" for found in judged]
    axes.set_yticks(range(len(judged)), names, fontsize=8)
    axes.invert_yaxis()
    target = FOLDER / f"{name}.png"
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target
