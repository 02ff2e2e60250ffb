"""Pictures of the benchmark of motion: the ladder, accuracy by clips, and accuracy by the time of a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.motion.claims import BOUNDS, NAMES
from benchmarks.motion.experiments import EXPERIMENTS, LADDER, VARIANTS
from benchmarks.motion.judging import Cell, Evidence
from benchmarks.motion.results import Results, spread
from benchmarks.report.pages import Results as AllResults
from benchmarks.report.pictures import Points, figure

COLORS = {
    "joint": "#c2410c", "conv": "#047857", "full-space-time": "#1d4ed8", "full": "#1d4ed8", "lora": "#7c3aed",
    "lora-temporal": "#7c3aed", "probe": "#6b7280", "attentive": "#6b7280", "frozen": "#6b7280",
    "conv-alone": "#047857", "both": "#047857",
}  # fmt: skip
COLOR = "#d97706"  # of other adapters
TIMED = (
    "joint", "input", "temporal", "spatial", "top", "third", "conv", "conv-alone", "both", "linear", "lora",
    "lora-temporal", "probe", "attentive", "full", "full-space-time",
)  # fmt: skip


def _evidence(results: AllResults) -> Evidence:
    return Evidence(results.get("motion", Results()))


def _found(evidence: Evidence, cell: Cell) -> tuple[float, float] | None:
    """Return mean and standard deviation over seeds in percent."""
    values = [*evidence.values(cell).values()]
    return (round(spread(values).mean, 4), round(spread(values).sd or 0.0, 4)) if values else None


def ladder_points(results: AllResults) -> Points:
    """Return mean and standard deviation of each rung by variant."""
    evidence = _evidence(results)
    found = {
        variant: {NAMES[way]: each for way in LADDER if (each := _found(evidence, Cell(way, variant)))}
        for variant in VARIANTS
    }
    return found if all(found.values()) else {}


def draw_ladder(results: AllResults, points: Points, path: Path) -> None:
    """Draw a bar for each rung, and what is right at most without the order of frames."""
    with figure(path, points, height=5.6, panels=len(points)) as panels:
        for axes, (variant, rungs) in zip(panels, points.items(), strict=True):
            places, colors = range(len(rungs)), {NAMES[way]: COLORS.get(way, COLOR) for way in LADDER}
            means, deviations = zip(*rungs.values(), strict=True)
            axes.barh(places, means, xerr=deviations, color=[colors[name] for name in rungs], height=0.7)
            axes.set_yticks(places, list(rungs))
            axes.invert_yaxis()
            axes.set_xlim(0, 100)
            bound = axes.axvline(BOUNDS[variant], color="black", linestyle="--", linewidth=1.2)
            axes.set_title(f"“{variant}”: test accuracy, %")
        axes.figure.legend([bound], ["best without the order of frames"], loc="outside lower center", frameon=False)


def data_points(results: AllResults) -> Points:
    """Return clips, and mean and standard deviation of each way."""
    evidence = _evidence(results)
    numbers = (*sorted({job.clips for job in EXPERIMENTS["data"]}), Cell("").clips)
    found = {}
    for way in ("joint", "conv", "full-space-time"):
        line = [(clips, *each) for clips in numbers if (each := _found(evidence, Cell(way, clips=clips)))]
        if len(line) > 1:
            found[way] = line
    return found


def draw_data(results: AllResults, points: Points, path: Path) -> None:
    """Draw accuracy against clips, with a band of a standard deviation to either side."""
    with figure(path, points, height=4.2) as axes:
        for way, line in points.items():
            clips, means, deviations = zip(*line, strict=True)
            low, high = ([m + sign * sd for m, sd in zip(means, deviations, strict=True)] for sign in (-1, 1))
            axes.plot(clips, means, color=COLORS[way], marker="o", markersize=5, linewidth=1.8, label=NAMES[way])
            axes.fill_between(clips, low, high, color=COLORS[way], alpha=0.15, linewidth=0)
        ticks = sorted({row[0] for line in points.values() for row in line})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{clips:,}" for clips in ticks])
        axes.set_xticks((), minor=True)
        axes.set_ylim(0, 100)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_xlabel("clips that are trained on")
        axes.set_ylabel("test accuracy on “order”, %")
        axes.legend(frameon=False)


def ways_points(results: AllResults) -> Points:
    """Return milliseconds of a step, and mean and standard deviation of accuracy on "order", of each way."""
    evidence = _evidence(results)
    found = {}
    for way in TIMED:
        costs, accuracy = evidence.costs.get((way, Cell("").backbone)), _found(evidence, Cell(way))
        if costs is not None and accuracy is not None:
            found[way] = (costs.step_ms, *accuracy)
    return found


def draw_ways(results: AllResults, points: Points, path: Path) -> None:
    """Draw a numbered point for each way, accuracy against the time of a step."""
    with figure(path, points, height=6.2) as axes:
        for number, (way, (step, mean, deviation)) in enumerate(points.items(), 1):
            look = {"color": COLORS.get(way, COLOR), "marker": "o", "markersize": 12, "markeredgecolor": "white"}
            axes.errorbar(step, mean, deviation, **look, label=f"{number}  {NAMES[way]}", linestyle="", zorder=number)
            inside = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "zorder": number + 0.5}
            axes.text(step, mean, str(number), **inside)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_xlabel("milliseconds of a training step (16 clips, 8 frames, 224 pixels)")
        axes.set_ylabel("test accuracy on “order”, %")
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _ladder_words(points: Points) -> str:
    parts = (
        f"on {variant}, " + ", ".join(f"{name} {mean:.1f}" for name, (mean, _) in rungs.items())
        for variant, rungs in points.items()
    )
    return f"Bars of test accuracy in percent: {'; '.join(parts)}."


def _data_words(points: Points) -> str:
    parts = (
        f"{NAMES[way]} rises from {line[0][1]:.1f} with {line[0][0]:,} clips to {line[-1][1]:.1f} with {line[-1][0]:,}"
        for way, line in points.items()
    )
    return f"Test accuracy on order in percent against clips: {'; '.join(parts)}."


def _ways_words(points: Points) -> str:
    parts = (f"{NAMES[way]} {mean:.1f} at {step:.0f} ms" for way, (step, mean, _) in points.items())
    return f"Test accuracy on order in percent against the time of a training step: {'; '.join(parts)}."


PICTURES: dict[str, tuple[Callable[[AllResults], Points], Callable[[AllResults, Points, Path], None]]] = {
    "motion-ladder.svg": (ladder_points, draw_ladder),
    "motion-data.svg": (data_points, draw_data),
    "motion-ways.svg": (ways_points, draw_ways),
}
WORDS = {"motion-ladder.svg": _ladder_words, "motion-data.svg": _data_words, "motion-ways.svg": _ways_words}


def shown(name: str, results: AllResults) -> str:
    """Return a picture in Markdown with its words, where there is something to draw."""
    points = PICTURES[name][0](results) if name else {}
    return f"![{WORDS[name](points)}](assets/{name})" if points else ""
