"""What a checkpoint of the reference holds, told without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_adapters.convert import inspect_official_checkpoint
from aim_adapters.errors import CheckpointError
from tests.convert.cases import FRAMES, clip_file, small_swin_file


def test_settings_follow_from_the_shapes(tmp_path: Path) -> None:
    for state, kind in ((clip_file(), "CLIP ViT"), (small_swin_file(FRAMES), "Swin")):
        torch.save({"state_dict": state}, tmp_path / "a.pth")
        found = inspect_official_checkpoint(tmp_path / "a.pth")
        assert found.kind.startswith(kind)
        assert (found.settings["num_frames"], found.problems) == (FRAMES, ())
        assert found.base["tensors in the file"] > 0
        assert json.dumps(found.to_dict())


def test_nothing_is_run(tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'was run'}",)

    torch.save({"state_dict": Command()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"objects besides its tensors \((posix|nt)\.system\)"):
        inspect_official_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "was run").exists()


def test_nan_is_a_problem(tmp_path: Path) -> None:
    state = clip_file()
    state["backbone.ln_post.bias"] = torch.full_like(state["backbone.ln_post.bias"], torch.nan)
    torch.save(state, tmp_path / "a.pth")
    assert inspect_official_checkpoint(tmp_path / "a.pth").problems == ("NaN or infinities in norm.bias",)
