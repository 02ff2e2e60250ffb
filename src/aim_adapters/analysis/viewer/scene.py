"""What a page says beside its pictures: the scene, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from aim_adapters.analysis.faithfulness import DeletionCurves
from aim_adapters.analysis.maps import AttentionMaps
from aim_adapters.analysis.ordering import FrameOrder
from aim_adapters.analysis.viewer.packing import round_to
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.core import RootState
from aim_adapters.version import __version__


def ranked(probabilities: Tensor, names: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    """Return the most probable classes with their probabilities, the most probable first.

    Args:
        probabilities: Of each class, ``[K]``.
        names: Of each class.
        top: How many.
    """
    values, indices = probabilities.sort(descending=True, stable=True)
    return tuple((names[i], value) for i, value in zip(indices[:top].tolist(), values[:top].tolist(), strict=True))


def class_rows(answers: Mapping[str, Tensor], names: Sequence[str], target: int, top: int) -> list[dict[str, Any]]:
    """Return the classes that the page lists: the target, the most probable ones, and the first of each variant.

    Args:
        answers: Probabilities of the classes ``[K]`` of each variant, the one with all adapters last.
        names: Of each class.
        target: Index of the target.
        top: How many of the last variant's.
    """
    last = list(answers.values())[-1]
    listed = {*last.argsort(descending=True, stable=True)[:top].tolist(), target}
    listed |= {int(probabilities.argmax()) for probabilities in answers.values()}
    order = sorted(listed, key=lambda index: (-float(last[index]), index))
    return [
        {"index": i, "name": names[i], "probabilities": [round_to(float(p[i])) for p in answers.values()]}
        for i in order
    ]


def build_scene(
    maps: AttentionMaps, frames: Tensor, spec: ClipSpec, state: RootState, *, target: tuple[int, str], count: int
) -> dict[str, Any]:
    """Return what the page says of a clip and of the model.

    Args:
        maps: Maps of the variant with all adapters.
        frames: The clip, uint8 ``[T, 3, H, W]``.
        spec: What the model reads.
        state: The adapters' container at the root.
        target: Index and name of the class that is explained.
        count: Number of classes.
    """
    anatomy = state.anatomy
    total, _, height, width = frames.shape
    model = anatomy.model_name or f"a model of {anatomy.library}"
    return {
        "subtitle": f"{model} · {total} frames of {width} × {height}",
        "target": {"index": target[0], "name": target[1]},
        "classToken": maps.has_class_token,
        "mapFrames": maps.num_frames,
        "answersText": _about_answers(spec, target[1], count),
        "notes": _notes(maps, frames, spec, state, model),
    }


def describe_order(order: FrameOrder) -> dict[str, Any]:
    """Return what the page says of the order of frames.

    Args:
        order: What was measured, of one clip.
    """
    rows: list[tuple[str, Tensor, str]] = [("as they are", order.original, "")]
    for name, values, label in (
        ("reversed", order.reversed, "reversed"),
        ("shuffled", order.shuffled[0], f"shuffled ({order.shuffled.shape[1]} times, mean)"),
        ("still", order.still, "the middle frame only"),
    ):
        changed = int(order.changed[name].sum())
        times = order.changed[name].numel()
        said = "changes" if changed else "stays"
        rows.append((label, values, f"changes in {changed} of {times}" if times > 1 else said))
    return {
        "text": order.verdict,
        "rows": [
            {"name": name, "probability": round_to(float(p.mean())), "prediction": said} for name, p, said in rows
        ],
    }


def describe_deletion(curves: DeletionCurves) -> dict[str, Any]:
    """Return what the page says of how fast the answer falls as patches are removed.

    Args:
        curves: What was measured, of one clip.
    """
    named = {"most first": curves.most, "random": curves.random, "least first": curves.least}
    how = "blurred" if curves.remove == "blur" else "replaced by the mean color"
    return {
        "text": f"The probability of the class as patches are {how}, in the order of the map for the class. "
        + curves.verdict,
        "shares": [round_to(share) for share in curves.fractions.tolist()],
        "curves": [
            {"name": name, "values": [round_to(value) for value in values[0].tolist()]}
            for name, values in named.items()
        ],
    }


def _about_answers(spec: ClipSpec, target: str, count: int) -> str:
    text = f"Of {count} classes. In bold, the class that the maps “For the class” explain: “{target}”."
    return text if spec.labels else f"{text} The model does not know names of its classes, so they are numbered."


def _notes(maps: AttentionMaps, frames: Tensor, spec: ClipSpec, state: RootState, model: str) -> list[str]:
    total, _, height, width = frames.shape
    adapters = ", ".join(maps.components) or "none"
    taken = (
        f"one of each of {total} equal parts of the video"
        if spec.stride is None
        else f"{spec.stride} apart from the middle of the video"
    )
    notes = [
        f"Made by aim-adapters {__version__}. Model: {model}, with these adapters: {adapters}.",
        f"The pictures are what the model sees, before normalization: {total} frames, {taken}; the center, "
        f"{width} × {height} pixels, as JPEG.",
        "“Frozen” is the image model with the trained norm and classifier, and no adapters.",
        "Blocks, heads, rows and columns count from 0, as in Python; frames count from 1.",
        "Maps are stored with eight bits a value.",
    ]
    if state.config.temporal != "attention" and "temporal" in maps.components:
        over = f"a convolution over {state.config.conv_kernel} frames"
        notes.append(f"In front of blocks {over} relates the frames, too; maps do not show it.")
    if maps.num_frames != total:
        notes.append(f"The model joins {total // maps.num_frames} frames into one before it attends.")
    if len(set(maps.grids)) > 1:
        sizes = " to ".join(f"{rows} × {columns}" for rows, columns in (maps.grids[0], maps.grids[-1]))
        notes.append(f"Patches get larger from block to block: {sizes} of them in a frame.")
    if not maps.has_class_token:
        notes.append("The model has no [class] token: maps are the mean over all patches that attend.")
    if len(maps.blocks) < len(maps.grids):
        notes.append(f"Only blocks {', '.join(map(str, maps.blocks))} of {len(maps.grids)} were asked for.")
    return notes
