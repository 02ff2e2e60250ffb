"""Hold the README's table of parameters to the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import timm

import aim_adapters as aim

README = Path(__file__).resolve().parents[2] / "README.md"
ROW = re.compile(r"^\| `(\w+)` \| (?:`(\w+)=([^`]+)`[^|]*)?\s*\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) % \|$", re.MULTILINE)
ROWS = ROW.findall(README.read_text(encoding="utf-8"))


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
