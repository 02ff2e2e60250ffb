"""Accelerate's wrappers around a wrapped model: prepared, unwrapped, offloaded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import aim_adapters as aim
from tests import tiny
from tests.backbones.cases import scramble, wake

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def no_state_of_other_tests() -> Iterator[None]:
    """Accelerate keeps one state for a process, which the first accelerator or Trainer in it makes."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def torchvision_vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    return wake(aim.wrap_image_model(scramble(model).eval(), tiny.FRAMES))


@pytest.mark.parametrize("num_classes", [None, 0])
def test_a_prepared_model_is_a_video_model_again_when_it_is_unwrapped(num_classes: int | None) -> None:
    model = tiny.trained(num_classes=num_classes)
    expected, signature = tiny.run(model), inspect.signature(model.forward)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(model)
    torch.testing.assert_close(tiny.run(prepared), expected, rtol=0.02, atol=0.02)
    assert inspect.signature(prepared.forward) == signature
    with pytest.raises(aim.StateError, match="given a forward of its own"):
        aim.unwrap_image_model(prepared)
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert torch.equal(tiny.run(unwrapped), expected)
    assert torch.equal(tiny.run(copy.deepcopy(unwrapped)), expected)
    unwrapped.train()  # which looks for what other tools have changed
    aim.unwrap_image_model(unwrapped)
    assert vars(unwrapped).keys() - {"_is_accelerate_prepared"} == vars(tiny.base()).keys()


@pytest.mark.parametrize("family", [tiny.trained, torchvision_vit])
def test_offloading_part_by_part_is_refused_and_offloading_as_a_whole_runs(family: Callable[[], nn.Module]) -> None:
    model = family()
    expected = tiny.run(model)
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(aim.StateError, match=r"on the meta device.*cpu_offload_with_hook\(model\), after"):
        tiny.run(model)
    with pytest.raises(aim.StateError, match="take it back from accelerate's offloading"):
        aim.save_adapters(model, "never")
    accelerate.hooks.remove_hook_from_submodules(model)
    accelerate.cpu_offload_with_hook(model, execution_device="cpu")
    torch.testing.assert_close(tiny.run(model), expected)
