"""Attention maps made small: eight bits a value, compressed, and what does not fit left out by name."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aim_adapters.analysis.maps import AttentionMaps

# What a page can do without, the first first; `heads` are the maps of each head, `grid` those over time of each patch.
_DISPENSABLE = (("grid", False), ("heads", False), ("time_heads", False), ("grid", True), ("heads", True))
_SAID = {
    "grid": "attention over time of each patch (the mean over patches is there)",
    "heads": "maps of each head (the mean over heads is there)",
    "time_heads": "attention over time of each head (the mean over heads is there)",
}


@dataclass(frozen=True)
class PackedMaps:
    """Maps of one kind of one variant, all blocks behind one another.

    Attributes:
        kind: ``"mean"`` and ``"heads"`` over the patches, ``"time"``, ``"time_heads"`` and ``"grid"`` over frames,
            ``"rollout"`` and ``"relevance"`` of all blocks.
        index: For each map its block (None: of all), shape, scale or scales, and offset into the content.
        content: The bytes, compressed by zlib: 255 times the square root of a value as a share of its scale.
    """

    kind: str
    index: tuple[dict[str, Any], ...]
    content: bytes


def pack_maps(maps: AttentionMaps, *, relevance: bool) -> list[PackedMaps]:
    """Return the maps of the first clip, packed.

    Args:
        maps: The maps.
        relevance: Whether they were made for a class.
    """
    kinds: dict[str, list[tuple[int | None, Tensor]]] = {"mean": [], "heads": [], "time": [], "time_heads": []}
    kinds["grid"] = []
    for block in maps.blocks:
        heads = torch.stack([maps.spatial(block, head=head)[0] for head in range(maps.heads[block])])
        kinds["mean"].append((block, heads.mean(0)))  # [T, rows, columns]
        kinds["heads"].append((block, heads))  # [H, T, rows, columns]
    for block in maps.temporal_blocks:
        heads = torch.stack([maps.temporal(block, head=head)[0] for head in range(maps.heads[block])])
        kinds["time"].append((block, heads.mean(0)))  # [T, T]
        kinds["time_heads"].append((block, heads))  # [H, T, T]
        kinds["grid"].append((block, maps.temporal_grid(block)[0]))  # [rows, columns, T, T]
    kinds["rollout"] = [(None, maps.rollout()[0])]
    kinds["relevance"] = [(None, maps.relevance()[0])] if relevance else []
    return [_pack(kind, entries) for kind, entries in kinds.items() if entries]


def fit_budget(variants: Sequence[list[PackedMaps]], budget: int) -> tuple[list[list[PackedMaps]], list[str]]:
    """Leave out what does not fit.

    Args:
        variants: Packed maps of each variant, the most important variant last.
        budget: Bytes that all of them may take.

    Returns:
        What is left, and what was left out, in words.
    """
    left = [list(packed) for packed in variants]
    said = []
    for kind, last in _DISPENSABLE:
        if sum(len(maps.content) for packed in left for maps in packed) <= budget:
            break
        chosen = left[-1:] if last else left[:-1]
        if any(maps.kind == kind for packed in chosen for maps in packed):
            said.append(f"{_SAID[kind]}, {'' if last else 'but for the last variant'}".rstrip(", "))
            for packed in chosen:
                packed[:] = [maps for maps in packed if maps.kind != kind]
    return left, said


def _pack(kind: str, entries: Sequence[tuple[int | None, Tensor]]) -> PackedMaps:
    by_head = kind in ("heads", "time_heads")
    content, index, offset = [], [], 0
    for block, values in entries:
        rows = values if by_head else values[None]
        scales = rows.flatten(1).amax(1).clamp(min=1e-12)
        shares = rows.flatten(1) / scales[:, None]
        data = shares.clamp(0, 1).sqrt().mul(255).round().to(torch.uint8).numpy().tobytes()
        index.append(
            {"block": block, "shape": list(values.shape), "scale": [round_to(s) for s in scales.tolist()]}
            | {"offset": offset}
        )
        content.append(data)
        offset += len(data)
    return PackedMaps(kind, tuple(index), zlib.compress(b"".join(content), 9))


def round_to(value: float, digits: int = 4) -> float:
    """Return a number with a few significant digits, which are short in JSON.

    Args:
        value: The number.
        digits: How many.
    """
    return float(f"{value:.{digits}g}")
