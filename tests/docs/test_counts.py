"""Hold the tables of parameters and of gradients to the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import aim_adapters as aim
from aim_adapters.training import build_baseline, gradient_bytes

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = re.compile(r"^\| `(\w+)` \| (?:`(\w+)=([^`]+)`[^|]*)?\s*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) % \|$", re.MULTILINE)
PAGE = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
ROWS = ROW.findall(PAGE)


def test_the_table_is_found() -> None:
    assert len(ROWS) == 6


@pytest.mark.parametrize(("name", "setting", "value", "trainable", "total", "share"), ROWS)
def test_row(name: str, setting: str, value: str, trainable: str, total: str, share: str) -> None:
    settings: dict[str, Any] = {setting: ast.literal_eval(value)} if setting else {}
    model = timm.create_model(name, weight_init="skip")
    aim.wrap_image_model(model, num_frames=8, num_classes=400, **settings)
    count = aim.count_parameters(model)
    assert (f"{count.trainable:,}", f"{count.total:,}") == (trainable, total)
    assert f"{100 * count.trainable / count.total:.1f}" == share


@pytest.mark.parametrize("temporal", ["attention", "conv", "both"])
def test_ways_to_see_time(temporal: Any) -> None:
    with torch.device("meta"):
        model = timm.create_model(MODELS["ViT-B/16"])
        aim.wrap_image_model(model, num_frames=8, num_classes=400, temporal=temporal)
    trained, gmacs = aim.count_parameters(model).trainable, aim.count_flops(model).gmacs
    assert f'| `"{temporal}"` | {trained:,} | {gmacs:.1f} |' in PAGE


DISTRIBUTED = (DOCS / "distributed.md").read_text(encoding="utf-8")
MODELS = {
    "ViT-S/14": "vit_small_patch14_dinov2",
    "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
}


@pytest.mark.parametrize("model", MODELS)
def test_bytes_of_gradients(model: str) -> None:
    with torch.device("meta"):
        sent = [
            gradient_bytes(build_baseline(name, model=timm.create_model(MODELS[model]), num_classes=400)) / 1e6
            for name in ("joint", "full")
        ]
    assert f"| {model} | {sent[0]:,.1f} MB | {sent[1]:,.1f} MB |" in DISTRIBUTED
