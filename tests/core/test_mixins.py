"""What lies around the blocks: averaged frames in front of the head, the trained norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core.mixins import PatchProduct
from aim_adapters.core.patching import patch
from tests.core.cases import block_of
from tests.tiny import FRAMES as T
from tests.tiny import base, video, wrapped


def test_features_are_those_the_image_model_pools() -> None:
    model = base().eval()
    with torch.no_grad():
        frames = model.forward_head(model.forward_features(video().flatten(0, 1)), pre_logits=True)
        aim.wrap_image_model(model, T, num_classes=0)
        torch.testing.assert_close(model(video()), frames.unflatten(0, (2, T)).mean(1), rtol=1e-5, atol=1e-6)


def test_head_dropout_acts_in_training_only() -> None:
    model, clips = wrapped(head_dropout=0.5), video()
    assert not torch.equal(model.train()(clips), model(clips))
    assert torch.equal(model.eval()(clips), model(clips))


def test_hooks_of_norm_and_head_fire_once() -> None:
    model, seen = base(), []
    for module in (model.norm, model.head):
        module.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    aim.wrap_image_model(model, T)(video())
    assert seen == [(2 * T, 5, 32), (2, 5)]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_patches_are_embedded_as_by_the_convolution(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    proj = nn.Conv2d(3, 8, (2, 4), (2, 4), bias=bias, dtype=torch.float64).requires_grad_(False)
    convolve, x = copy.deepcopy(proj), torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    proj.aim_shared = (block_of().aim.root_state,)  # type: ignore[assignment]
    patch(proj, PatchProduct)

    def compare(x: Tensor) -> None:
        ours, theirs = proj(x), convolve(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(ours)
        (one,), (other,) = (torch.autograd.grad(out, x, weights) for out in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    compare(x.to(memory_format=memory_format))
    compare(x[:, :, :5, :7])  # what is left over is cut off
    if bias:
        for each in (proj, convolve):
            nn.utils.parametrize.register_parametrization(each, "bias", Doubled())
        compare(x)
