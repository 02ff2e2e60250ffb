"""Accelerate's wrappers around a wrapped model: prepared, unwrapped, offloaded."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

import aim_adapters as aim
from tests import tiny

accelerate = pytest.importorskip("accelerate")


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
