"""Draws the quickstart's picture: film strips with each model's answers, the training curve, and the accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["Answer", "Strip", "draw"]

INK, QUIET, RIGHT, WRONG = "#1d2433", "#7a8194", "#1a7f4b", "#c2412d"
COLORS = ("#9aa3b5", "#d9a441", "#2563c9", "#7b4fb5")


@dataclass(frozen=True)
class Answer:
    """Holds what one model says of a clip, how sure it is (0 to 1), and whether that is right."""

    text: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Strip:
    """Holds a clip to show.

    Attributes:
        frames: `[T, 3, H, W]`, uint8, RGB.
        truth: the clip's class.
        answers: one per model, by its name.
    """

    frames: Tensor
    truth: str
    answers: Mapping[str, Answer]


def draw(
    path: Path,
    *,
    strips: Sequence[Strip],
    losses: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, float],
    chance: float,
    subtitle: str,
) -> None:
    """Write the picture as a PNG file.

    Args:
        path: file to write.
        strips: clips, one under the other.
        losses: of each training step, by model; the last model is the one the picture is about.
        accuracies: on the test clips, 0 to 1, by model.
        chance: accuracy of guessing.
        subtitle: one line under the title.
    """
    figure = Figure(figsize=(15, 8.6), dpi=150, facecolor="white")
    figure.text(0.03, 0.945, "A frozen image model learns what happens in time", size=22, weight="bold", color=INK)
    figure.text(0.03, 0.908, subtitle, size=12.5, color=QUIET)
    colors = dict(zip(accuracies, (*COLORS[: len(accuracies) - 1], COLORS[2]), strict=True))

    height = 0.845 / len(strips)
    for row, strip in enumerate(strips):
        bottom = 0.04 + (len(strips) - 1 - row) * height
        axes = figure.add_axes((0.03, bottom, 0.475, 0.92 * height))
        axes.imshow(_film(strip.frames), interpolation="lanczos", aspect="equal")
        axes.set_anchor("W")
        axes.set_axis_off()
        _write_answers(figure, strip, left=0.52, bottom=bottom, height=0.92 * height)
    figure.text(0.03, 0.018, "time  →", size=11, color=QUIET)

    _draw_accuracies(figure.add_axes((0.735, 0.5, 0.24, 0.335)), accuracies, colors, chance)
    _draw_losses(figure.add_axes((0.735, 0.075, 0.24, 0.31)), losses, colors)
    figure.savefig(path)


def _film(frames: Tensor) -> np.ndarray:
    """Lay frames side by side on a black film with holes; `[height, width, 3]`, uint8."""
    count, _, height, width = frames.shape
    gap, edge = max(width // 28, 1), max(height // 8, 3)
    film = np.full((height + 2 * edge, count * (width + gap) + gap, 3), 24, dtype=np.uint8)
    for index, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):  # [H, W, 3]
        left = gap + index * (width + gap)
        film[edge : edge + height, left : left + width] = frame
    hole, pitch = max(edge // 2, 1), max((width + gap) // 4, 4)
    for left in range(pitch // 2 - hole // 2, film.shape[1] - hole, pitch):
        for top in (edge // 4, height + edge + edge // 4):
            film[top : top + hole, left : left + hole] = 235
    return film


def _write_answers(figure: Figure, strip: Strip, *, left: float, bottom: float, height: float) -> None:
    lines = len(strip.answers) + 1
    step = height / (lines + 0.6)
    top = bottom + height - 0.9 * step
    figure.text(left, top, strip.truth, size=13, weight="bold", color=INK, va="center")
    for line, (name, answer) in enumerate(strip.answers.items(), start=1):
        color = RIGHT if answer.right else WRONG
        y = top - line * step
        figure.text(left, y, name, size=9.5, color=QUIET, va="center")
        text = f"{'✓' if answer.right else '✗'} {answer.text}  {answer.confidence:.0%}"
        figure.text(left + 0.045, y, text, size=10.5, color=color, va="center", weight="bold")


def _draw_accuracies(axes: Axes, accuracies: Mapping[str, float], colors: Mapping[str, str], chance: float) -> None:
    names = list(accuracies)
    places = np.arange(len(names))[::-1]
    axes.barh(places, [100 * accuracies[name] for name in names], color=[colors[name] for name in names], height=0.55)
    for place, name in zip(places, names, strict=True):
        axes.text(0, place + 0.33, name, size=11, color=INK, va="bottom")
        axes.text(
            100 * accuracies[name] + 1.5,
            place,
            f"{accuracies[name]:.0%}",
            size=15,
            weight="bold",
            color=INK,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    for value, text in ((100 * chance, "chance"), (50, "best without order")):
        axes.axvline(value, color=QUIET, lw=1, ls=(0, (3, 3)), zorder=0)
        axes.text(value, -0.62, text, size=9, color=QUIET, ha="center", va="top")
    axes.set(xlim=(0, 112), ylim=(-0.6, len(names) - 0.3), xticks=[], yticks=[])
    axes.set_title("Right answers on unseen photographs", size=12, color=INK, loc="left", weight="bold", pad=12)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(QUIET)


def _draw_losses(axes: Axes, losses: Mapping[str, Sequence[float]], colors: Mapping[str, str]) -> None:
    for name, values in losses.items():
        window = max(len(values) // 30, 1)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        steps = np.arange(len(smooth)) + window
        axes.plot(np.arange(1, len(values) + 1), values, color=colors[name], lw=0.5, alpha=0.18)
        axes.plot(steps, smooth, color=colors[name], lw=2.2)
        axes.annotate(
            name, (steps[-1], smooth[-1]), xytext=(-4, 7), textcoords="offset points", ha="right", size=10,
            color=colors[name], weight="bold",
        )  # fmt: skip
    axes.set_title("Training loss", size=12.5, color=INK, loc="left", weight="bold")
    axes.set_xlabel("step", color=QUIET)
    axes.set_ylim(0, 1.15 * max(max(np.median(values), values[0]) for values in losses.values()))
    axes.set_xlim(0, max(len(values) for values in losses.values()))
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9cdd8")
