"""Whole clips are mixed, all their frames alike, and their labels in the same shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aim_adapters as aim
from aim_adapters.video import cutmix, mixup

LABELS = torch.tensor([0, 1, 2, 4])


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a batch whose clips are of one value each: 0, 50, 100, 150."""
    return (50 * torch.arange(4)).to(dtype).view(4, 1, 1, 1, 1).expand(4, 3, 3, 16, 16).contiguous()


@pytest.mark.parametrize("seed", range(4))
def test_mixup_blends_clips_and_labels_alike(seed: int) -> None:
    torch.manual_seed(seed)
    clips, labels = mixup(batch(), LABELS, num_classes=5)
    share = labels[1, 1]  # of the clip itself; the rest is of its neighbor
    assert type(clips) is Tensor and labels.shape == (4, 5)
    torch.testing.assert_close(clips, share * batch() + (1 - share) * batch().roll(1, 0))
    own, neighbors = (functional.one_hot(which, 5) for which in (LABELS, LABELS.roll(1)))
    torch.testing.assert_close(labels, share * own + (1 - share) * neighbors)
    assert functional.cross_entropy(torch.zeros(4, 5), labels, label_smoothing=0.1).isfinite()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_cuts_one_box_out_of_all_frames(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    clips, labels = cutmix(batch(dtype), LABELS, num_classes=5)
    cut = clips != batch(dtype)
    assert type(clips) is Tensor and clips.dtype == dtype and torch.equal(cut, cut[:1, :1, :1].expand_as(cut))
    assert torch.equal(clips, torch.where(cut, batch(dtype).roll(1, 0), batch(dtype)))
    torch.testing.assert_close(labels[1, 0], cut.float().mean())


def test_mixed_labels_can_be_mixed_again() -> None:
    clips, labels = mixup(*cutmix(batch(), LABELS, num_classes=5), num_classes=5)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    assert clips.shape == (4, 3, 3, 16, 16)


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize(
    ("clips", "labels", "settings", "error", "named"),
    [
        (torch.zeros(4, 3, 8, 8), LABELS, {}, aim.InputError, "B, T, C, H, W"),
        ([1], LABELS, {}, aim.InputError, "list"),
        (batch(), LABELS[:3], {}, aim.InputError, "labels"),
        (batch(), LABELS.float(), {}, aim.InputError, "int64"),
        (batch(), [0, 1, 2, 4], {}, aim.InputError, "list"),
        (batch(), LABELS, {"num_classes": 4}, aim.InputError, "0 to 4"),
        (batch(), LABELS - 1, {}, aim.InputError, "-1 to 3"),
        (batch(), torch.zeros(4, 3), {}, aim.InputError, "num_classes"),
        (batch(), LABELS, {"num_classes": 0}, aim.ConfigError, "num_classes"),
        (batch(), LABELS, {"alpha": 0}, aim.ConfigError, "alpha"),
        (batch(), LABELS, {"alpha": float("nan")}, aim.ConfigError, "alpha"),
    ],
)
def test_wrong_batches_are_refused(
    mix: Callable[..., Any], clips: Any, labels: Any, settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        mix(clips, labels, **{"num_classes": 5, **settings})


def test_uint8_is_not_blended() -> None:
    with pytest.raises(aim.InputError, match="after Normalize"):
        mixup(batch(torch.uint8), LABELS, num_classes=5)
