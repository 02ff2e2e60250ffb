"""Normalization is exact, wherever and in whatever precision a model runs, and leaves no trace in its state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.video import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def expected(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 3, 5, 7), (2, 4, 3, 5, 7), (2, 3, 4, 3, 5, 7), (0, 3, 5, 7)])
def test_normalization_is_exact_for_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    pixels = frames(*shape)
    kept = pixels.clone()
    assert torch.equal(Normalize(MEAN, STD)(pixels), expected(pixels)) and torch.equal(pixels, kept)


def test_every_pixel_value_is_exact() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(3, -1, -1)
    assert torch.equal(Normalize(MEAN, STD)(pixels), expected(pixels))


def test_other_precisions_are_rounded_once() -> None:
    pixels = frames(2, 4, 3, 5, 7)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(Normalize(MEAN, STD, dtype)(pixels), expected(pixels).to(dtype))
        model = nn.Sequential(Normalize(MEAN, STD)).to(dtype)
        assert torch.equal(model(pixels), expected(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Normalize(MEAN, STD)(pixels), expected(pixels))


def test_channels_come_first_in_memory_as_models_read_them() -> None:
    pixels = frames(4, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    result = Normalize(MEAN, STD)(pixels)
    assert torch.equal(result, expected(pixels)) and result.is_contiguous()


def test_nothing_of_it_is_in_a_state_or_trained() -> None:
    normalize = Normalize(MEAN, STD)
    assert not normalize.state_dict() and not list(normalize.parameters())
    pixels = frames(3, 5, 7)
    moved = copy.deepcopy(normalize).to("meta").to_empty(device="cpu")
    for other in (copy.deepcopy(normalize), pickle.loads(pickle.dumps(normalize)), moved):
        assert torch.equal(other(pixels), expected(pixels))
    assert "mean=[0.485" in repr(normalize)


def test_it_compiles_and_exports_whole() -> None:
    normalize, pixels = Normalize(MEAN, STD), frames(2, 4, 3, 5, 7)
    compiled = torch.compile(normalize, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pixels), expected(pixels))
    assert torch.equal(torch.export.export(normalize, (pixels,)).module()(pixels), expected(pixels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_runs_where_the_frames_are() -> None:
    pixels = frames(2, 4, 3, 5, 7)
    for normalize in (Normalize(MEAN, STD), Normalize(MEAN, STD).cuda()):
        there = normalize(pixels.cuda())
        assert torch.equal(there, expected(pixels.cuda())) and normalize(pixels).is_cpu
        torch.testing.assert_close(there.cpu(), expected(pixels))  # a GPU divides by 255 otherwise, to rounding


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (torch.zeros(4, 3, 8, 8), "must be uint8.*float32"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"movedim\(-1, -3\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), r"\[\.\.\., 3, H, W\]"),
        (torch.zeros(3, 8, dtype=torch.uint8), r"\[\.\.\., 3, H, W\]"),
        (None, "torch.Tensor"),
    ],
)
def test_wrong_frames_are_refused(wrong: Any, advice: str) -> None:
    with pytest.raises(aim.InputError, match=advice):
        Normalize(MEAN, STD)(wrong)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.5, STD), "mean"), ((MEAN, 0.2), "std"), ((MEAN, STD[:2]), "std"), ((MEAN, (0.1, 0.0, 0.1)), "std"),
        (((), ()), "mean"), ((("x",) * 3, STD), "mean"), ((MEAN, STD, torch.uint8), "dtype"),
        ((MEAN, STD, "half"), "dtype"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(aim.ConfigError, match=named):
        Normalize(*arguments)
