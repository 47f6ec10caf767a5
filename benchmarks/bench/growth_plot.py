"""How control's memory and CPU grow with its agents, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median


def draw(found: Mapping[str, Sequence[float]], fleets: Sequence[int], target: Path) -> Path | None:
    """Write the plot to `target`; None without matplotlib or without two sizes to draw."""
    measured = [count for count in fleets if f"KiB with {count} agents" in found]
    if len(measured) < 2:
        return None
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, cpu) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, name, unit, scale in (
        (memory, "KiB with {} agents", "resident memory, MiB", 1024),
        (cpu, "CPU % of {} idle agents", "CPU, % of a core", 1),
    ):
        counts = [0, *measured] if name.format(0) in found else measured
        for place in counts:
            for run in found[name.format(place)]:
                axes.plot(place, run / scale, ".", color="tab:gray")
        axes.plot(counts, [median(found[name.format(c)]) / scale for c in counts], marker="o")
        axes.set_xlabel("agents linked, idle")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target
