"""Hold the accuracy that docs/choosing.md tells of the paper to the recipes, and what trains to the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import aim_adapters as aim
from aim_adapters.recipes import list_recipes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
PAPER = {row.name: row.paper for row in list_recipes()}
SETTINGS = re.findall(r'^\| `(0\.\d+|"\w+")`[^|]*\| ([\d.]+) M \|', PAGE, re.MULTILINE)
RUNGS = re.findall(r"^\| `(\([^`]*\))`[^|]*\| ([\d.]+) M \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_accuracy_by_frames(frames: int) -> None:
    names = [f"{data}-clip-vit-{size}-{frames}f" for size in ("b16", "l14") for data in ("k400", "ssv2")]
    row = re.search(
        rf"^\| {frames} \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \| [\d,]+ \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M
    )
    assert row is not None
    assert [float(number) for number in row.groups()] == [PAPER[name] for name in names]


def trained(text: str, classes: int, **settings: Any) -> None:
    """Hold a number of millions, to as many digits as it has, to what a model of this library trains."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_clip_quickgelu_224")
        aim.wrap_image_model(model, num_frames=8, num_classes=classes, **settings)
    digits = len(text.partition(".")[2])
    # Half a unit of the last digit, and a little more: the paper rounds sums of rounded numbers.
    assert aim.count_parameters(model).trainable / 1e6 == pytest.approx(float(text), abs=0.6 * 10**-digits)


@pytest.mark.parametrize(("value", "millions"), SETTINGS)
def test_what_a_layer_or_ratio_trains(value: str, millions: str) -> None:
    if value.startswith('"'):
        trained(millions, 400, layers=value.strip('"'))
    else:
        trained(millions, 400, bottleneck=float(value))


@pytest.mark.parametrize(("value", "millions"), RUNGS)
def test_what_components_train(value: str, millions: str) -> None:
    components = tuple(re.findall(r'"(\w+)"', value))
    trained(millions, 174, components=components, temporal_input_adapter="temporal" in components)


def test_the_rows_are_found() -> None:
    assert (len(SETTINGS), len(RUNGS)) == (8, 4)
