"""Short tables for readers: what was measured as ratios, and what a choice costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report.pages import Results, gib, measured, ms, table
from benchmarks.report.step_tables import FEW, FRAMES, tables

NAMES = {
    "vit_base_patch16_clip_224": "ViT-B/16",
    "vit_large_patch14_clip_224": "ViT-L/14",
    "swin_base_patch4_window7_224": "Swin-B",
}
OURS = {"aim": "", "aim-low": ', `memory="low"`'}
PEERS = {
    "plain": "layer by layer, compiled",
    "reference": "layer by layer, eager",
    "timesformer": "TimeSformer, compiled",
    "swin3d": "Video Swin, compiled",
}
PAIRS = (
    ("train_step", "vit_base_patch16_clip_224, 8 frames, 32 clips", "aim/graph", "plain/blocks"),
    ("train_step", "vit_base_patch16_clip_224, 8 frames, 32 clips", "aim/graph", "timesformer/blocks"),
    ("train_step", "vit_base_patch16_clip_224, 8 frames, 32 clips", "aim-low/graph", "timesformer/blocks"),
    ("train_step", "vit_large_patch14_clip_224, 8 frames, 16 clips", "aim/graph", "plain/blocks"),
    ("train_step", "swin_base_patch4_window7_224, 32 frames, 8 clips", "aim/graph", "swin3d/blocks"),
    ("train_step", "vit_base_patch16_clip_224, 8 frames, 1 clip", "aim/graph", "reference/eager"),
    ("inference", "vit_base_patch16_clip_224, 8 frames, 32 clips", "aim/graph", "plain/blocks"),
    ("inference", "vit_base_patch16_clip_224, 8 frames, 1 clip", "aim/graph", "reference/eager"),
)
KEEPING = {"plain": "layer by layer", "aim": '`"fast"`', "aim-balanced": '`"balanced"`', "aim-low": '`"low"`'}
PRECISIONS = (
    ("float32, autocast to bfloat16", "fused", ""),
    ("bfloat16: `set_base_dtype`", "held", "aim/graph"),
    ('bfloat16, products in fp8: `frozen_precision="fp8"`', "fp8", "aim-fp8/graph"),
)
WORDS = {"train_step": "training step", "inference": "inference"}


# A number stays in one line with its unit.


def _time(seconds: float) -> str:
    return f"{ms(seconds)}\u00a0ms"


def _size(entry: dict[str, Any]) -> str:
    return f"{gib(entry['peak_bytes'])}\u00a0GiB"


def _pairs(results: Results) -> Iterator[tuple[str, ...]]:
    for name, key, our, peer in PAIRS:
        each = results.get(name, {}).get("tables", {}).get(key, {"peers": {}})
        if "median" not in each["peers"].get(our, {}):  # a run that left compilers out
            our = our.replace("/graph", "/recorded")
        mine, other = (each["peers"].get(label, {}) for label in (our, peer))
        # A call of few clips is timed as it is made: one that finds an idle GPU.
        by = (
            "latency_seconds" if name == "inference" and each.get("size", {}).get("clips", FEW + 1) <= FEW else "median"
        )
        if by in mine and by in other:
            model, rest = key.split(", ", 1)
            yield (
                f"{WORDS[name]}, {NAMES[model]}, {rest}{OURS[our.split('/')[0]]}",
                f"{_time(mine[by])}, {_size(mine)}",
                f"{PEERS[peer.split('/')[0]]}: {_time(other[by])}, {_size(other)}",
                f"{other[by] / mine[by]:.1f}×",
            )


def ratios(results: Results) -> str:
    """Return what was measured on a GPU, each beside a peer."""
    rows = list(_pairs(results))
    for row in measured(results.get("temporal_attention", {"rows": []}), "main"):
        frames, peers = row["case"]["num_frames"], row["peers"]
        if frames in (8, 32):
            mine, other = peers["triton"]["median"], peers["sdpa"]["median"]
            what = f"attention over {frames} frames, one layer of ViT-B/16"
            rows.append((what, _time(mine), f"SDPA: {_time(other)}", f"{other / mine:.1f}×"))
    return table(" what| this library| compared with|times as fast", rows)


def keeping(results: Results) -> str:
    """Return what a training step takes by what it keeps."""
    rows = []
    for key in dict.fromkeys(key for name, key, *_ in PAIRS if name == "train_step"):
        each = results.get("train_step", {}).get("tables", {}).get(key, {"peers": {}})
        found = {label.split("/")[0]: entry for label, entry in each["peers"].items() if not label.endswith("eager")}
        if "aim-balanced" in found:
            model, rest = key.split(", ", 1)
            for peer in ("plain", "aim", "aim-balanced", "aim-low"):
                if "median" in found.get(peer, {}):
                    entry = found[peer]
                    rows.append(
                        (f"{NAMES[model]}, {rest}", KEEPING[peer], ms(entry["median"]), gib(entry["peak_bytes"]))
                    )
    return table(" model| `memory`|ms|GiB", rows)


def longer(results: Results) -> str:
    """Return what a clip costs by its frames, of steps with the same number of frames in all."""
    rows: list[tuple[Any, ...]] = []
    for key, each in tables(results, "train_step"):
        for label, entry in each["peers"].items() if key.endswith(FRAMES) else ():
            if label.startswith("aim/") and "median" in entry:
                rows.append(
                    (entry["frames"], entry["clips"], ms(entry["median"]), ms(entry["median"] / entry["clips"]))
                )
    return table("frames|clips|ms of a step|ms a clip", rows)


def precision(results: Results) -> str:
    """Return speed and what is learned by the dtype of frozen products."""
    each = results.get("train_step", {}).get("tables", {}).get(PAIRS[0][1], {"peers": {}})["peers"]
    ways = results.get("learning", {"ways": {}})["ways"]
    rows = []
    for words, way, peer in PRECISIONS:
        accuracy, entry = ways.get(way, {}).get("accuracy"), each.get(peer, {})
        if accuracy is not None:
            step = ms(entry["median"]) if "median" in entry else ""
            rows.append((words, step, f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f}"))
    return table(" frozen weights|ms of a step|test accuracy, %", rows)


TABLES = (ratios, keeping, longer, precision)
