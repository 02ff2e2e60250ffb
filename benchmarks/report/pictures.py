"""Draw results as SVG; each picture holds its numbers as its description too."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import PARTS, ROOT
from benchmarks.report.pages import ATTENTION_PEERS, MODELS, Results, measured
from benchmarks.report.step_tables import FRAMES, profiles, tables

ASSETS = ROOT / "docs" / "assets"
FLOOR = "copy of the same bytes"
# Color, marker, and by how many points the name at the end of a line is moved to keep clear of its neighbor.
STYLES = {
    "triton": ("#c2410c", "o", 0),
    "sdpa": ("#1d4ed8", "s", 0),
    "sdpa compiled": ("#0284c7", "D", -5),
    "eager": ("#6b7280", "^", 0),
    "flex": ("#047857", "v", 5),
}
MODEL_STYLES = {
    "aim": ("#c2410c", "o"),
    "aim-balanced": ("#d97706", "D"),
    "aim-low": ("#047857", "v"),
    "plain": ("#1d4ed8", "s"),
}
OTHER_STYLE = ("#6b7280", "^")
LEARNING_COLORS = {
    "modules": "#1d4ed8", "fused": "#c2410c", "held": "#d97706", "balanced": "#0284c7", "low": "#047857",
    "fp8": "#7c3aed",
}  # fmt: skip
PART_COLORS = (
    "#1d4ed8", "#c2410c", "#f97316", "#047857", "#10b981", "#7c3aed", "#9ca3af", "#facc15", "#4b5563",
)  # fmt: skip
# Colors keep their hue where the reader's page is dark.
DARK = "<style>@media (prefers-color-scheme: dark) {#figure_1 {filter: invert(0.88) hue-rotate(180deg)}}</style>"
Points = Any


@contextmanager
def figure(path: Path, points: Points, *, height: float, panels: int = 1) -> Iterator[Any]:
    """Yield the axes of a white figure, dark on dark pages, and save it when they are drawn: narrow, for phones."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "aim", "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(5.6, height), layout="constrained", facecolor="white")
        axes = [drawn.add_subplot(panels, 1, number + 1, facecolor="white") for number in range(panels)]
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
        yield axes[0] if panels == 1 else axes
        drawn.savefig(path, format="svg", metadata={"Date": None, "Description": json.dumps(points)})
        svg = path.read_text(encoding="utf-8")
        path.write_text(svg.replace(' <g id="figure_1">', f' {DARK}\n <g id="figure_1">', 1), encoding="utf-8")


def name_at(axes: Any, text: str, end: tuple[float, float], *, color: str, offset: int = 0) -> None:
    """Write the name of a line at its end."""
    axes.annotate(text, end, (8, offset), textcoords="offset points", color=color, va="center", annotation_clip=False)


def ticks_of(axes: Any, values: list[int]) -> None:
    """Mark powers of two."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.grid(color="#e5e7eb", linewidth=0.8)


# Attention over time


def attention_points(results: Results) -> Points:
    """Return frames and milliseconds of each peer in the main case, and of a copy of the bytes."""
    if "temporal_attention" not in results:
        return {}
    result = results["temporal_attention"]
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in (*ATTENTION_PEERS, "copy")}
    for row in measured(result, "main"):
        frames = row["case"]["num_frames"]
        found["copy"].append((frames, 1e3 * row["bytes"] / result["ceilings"]["copy_bytes_per_second"]))
        for peer, entry in row["peers"].items():
            if "median" in entry:
                found[peer].append((frames, 1e3 * entry["median"]))
    return found


def draw_attention(results: Results, points: Points, path: Path) -> None:
    """Draw milliseconds against frames."""
    with figure(path, points, height=4.6) as axes:
        for peer, (color, marker, offset) in STYLES.items():
            frames, times = zip(*points[peer], strict=True)
            width = 2.4 if peer == "triton" else 1.5
            axes.plot(frames, times, color=color, marker=marker, markersize=5, linewidth=width)
            name_at(axes, ATTENTION_PEERS[peer], (frames[-1], times[-1]), color=color, offset=offset)
        frames, floor = zip(*points["copy"], strict=True)
        axes.plot(frames, floor, color="black", linestyle="--", linewidth=1.2)
        name_at(axes, FLOOR, (frames[-1], floor[-1]), color="black")
        axes.set_yscale("log")
        ticks_of(axes, list(frames))
        axes.set_yticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
        axes.set_yticks((), minor=True)
        axes.set_ylim(0.15, 6)
        axes.set_xlabel("frames in a clip, T (256 frames in all)")
        axes.set_ylabel("milliseconds")
        words = "Attention over time in one layer"
        axes.set_title(_title(words, [results["temporal_attention"]]))


# The step


def frames_points(results: Results) -> Points:
    """Return frames in a clip and microseconds of a step per frame, of each peer."""
    found: dict[str, list[tuple[int, float]]] = {}
    for key, each in tables(results, "train_step"):
        for label, entry in each["peers"].items() if key.endswith(FRAMES) else ():
            if "median" in entry:
                per_frame = 1e6 * entry["median"] / entry["clips"] / entry["frames"]
                found.setdefault(label.split(",")[0], []).append((entry["frames"], per_frame))
    return found


def draw_frames(results: Results, points: Points, path: Path) -> None:
    """Draw the time of a frame against the frames in a clip."""
    with figure(path, points, height=4.2) as axes:
        for peer, line in points.items():
            _line(axes, peer, line)
            name_at(axes, _words(peer), line[-1], color=axes.lines[-1].get_color())
        ticks_of(axes, sorted({frames for line in points.values() for frames, _ in line}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("frames in a clip, T (the same number of frames in all)")
        axes.set_ylabel("microseconds of a training step per frame")
        axes.set_title(_title("ViT-B/16: what a frame costs", _steps(results)))


def batch_points(results: Results) -> Points:
    """Return clips, clips a second and GiB of each peer of the first sweep."""
    for _, each in tables(results, "train_step", "sweeps"):
        return {
            peer: [
                (row["clips"], row["clips_per_second"], row["peak_bytes"] / 2**30) for row in rows if "median" in row
            ]
            for peer, rows in each["peers"].items()
        }
    return {}


def draw_batch(results: Results, points: Points, path: Path) -> None:
    """Draw throughput and memory against the number of clips."""
    with figure(path, points, height=7.4, panels=2) as panels:
        for column, (axes, label) in enumerate(zip(panels, ("clips a second", "peak memory, GiB"), strict=True), 1):
            for peer, line in points.items():
                if line:
                    _line(axes, peer, [(row[0], row[column]) for row in line], label=_words(peer))
            ticks_of(axes, sorted({row[0] for line in points.values() for row in line}))
            axes.set_xlabel("clips in a batch, 8 frames each")
            axes.set_ylabel(label)
            axes.set_title(_title("ViT-B/16: a training step", _steps(results)) if column == 1 else "")
        panels[0].set_ylim(bottom=0)
        panels[0].legend(frameon=False)
        panels[1].set_yscale("log", base=2)
        panels[1].yaxis.set_major_formatter("{x:g}")


def parts_points(results: Results) -> Points:
    """Return milliseconds of each part of a step, of each peer of the first size."""
    for _, found in profiles(results):
        return {
            label: {part: 1e3 * seconds for part, seconds in each["seconds"].items()} for label, each in found.items()
        }
    return {}


def draw_parts(results: Results, points: Points, path: Path) -> None:
    """Draw a bar for each peer, made of its parts."""
    with figure(path, points, height=2.4 + 0.6 * len(points)) as axes:
        labels = list(points)
        left = [0.0] * len(labels)
        for part, color in zip(PARTS, PART_COLORS, strict=True):
            widths = [points[label][part] for label in labels]
            axes.barh(range(len(labels)), widths, left=left, color=color, label=part, height=0.6)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(labels)), [_words(label) for label in labels])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds of kernels in a step")
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False)
        axes.set_title(_title("ViT-B/16, 8 frames, 32 clips", _steps(results)))


# What is learned


def learning_points(results: Results) -> Points:
    """Return steps, mean loss of seeds and their standard deviation of each way, for each window of steps."""
    if "learning" not in results:
        return {}
    result = results["learning"]
    steps, window = result["settings"]["steps"], result["settings"]["window"]
    ends = [min(start + window, steps) for start in range(0, steps, window)]
    found = {}
    for name, way in result["ways"].items():
        runs = [run["mean_losses"] for run in way["runs"].values() if "mean_losses" in run]
        if len(runs) > 1:
            found[name] = [
                (end, round(statistics.fmean(means), 4), round(statistics.stdev(means), 4))
                for end, *means in zip(ends, *runs, strict=True)
            ]
    return found


def draw_learning(results: Results, points: Points, path: Path) -> None:
    """Draw the loss against steps, with a band of one standard deviation to either side."""
    result = results["learning"]
    with figure(path, points, height=4.2) as axes:
        for name, line in points.items():
            steps, means, deviations = zip(*line, strict=True)
            low, high = ([m + sign * sd for m, sd in zip(means, deviations, strict=True)] for sign in (-1, 1))
            color, label = LEARNING_COLORS[name], result["ways"][name]["words"].replace("`", "")
            axes.plot(steps, means, color=color, linewidth=1.6, label=label)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_xlabel("training steps")
        axes.set_ylabel(f"loss, mean of {result['settings']['window']} steps and all seeds")
        axes.legend(frameon=False)
        axes.set_title(_title("DINOv2 ViT-S/14: what is learned", [result]))


def _line(axes: Any, peer: str, line: list[tuple[float, float]], label: str | None = None) -> None:
    color, marker = MODEL_STYLES.get(peer.split("/")[0], OTHER_STYLE)
    x, y = zip(*line, strict=True)
    width = 2.4 if peer.startswith("aim/") else 1.5
    axes.plot(x, y, color=color, marker=marker, markersize=5, linewidth=width, label=label)


def _words(peer: str) -> str:
    model, mode = peer.split("/")
    words = MODELS[model].replace("`", "").replace("layer by layer, ", "layer\nby layer, ")
    return words + ("" if mode == "eager" else ", compiled")


def _title(words: str, ran: Iterable[dict[str, Any]]) -> str:
    """Return words and the GPUs of results."""
    return ", ".join((words, *sorted({gpu for each in ran for gpu in each["ran_on"]["gpus"]})))


def _steps(results: Results) -> Iterator[dict[str, Any]]:
    return (each for kind in ("tables", "sweeps") for _, each in tables(results, "train_step", kind))


PICTURES: dict[str, tuple[Callable[[Results], Points], Callable[[Results, Points, Path], None]]] = {
    "temporal-attention.svg": (attention_points, draw_attention),
    "train-step-frames.svg": (frames_points, draw_frames),
    "train-step-batch.svg": (batch_points, draw_batch),
    "train-step-parts.svg": (parts_points, draw_parts),
    "learning.svg": (learning_points, draw_learning),
}
