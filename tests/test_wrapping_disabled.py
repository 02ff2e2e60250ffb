"""Adapters are disabled inside of a ``with`` block, however that is written, and a warning says where there is none."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import aim_adapters as aim
from aim_adapters.errors import StateError
from tests.tiny import base, trained, video


@pytest.fixture
def model() -> VisionTransformer:
    return trained()


def test_nests_and_survives_errors(model: VisionTransformer) -> None:
    clips = video()
    adapted = model(clips)
    with pytest.raises(RuntimeError, match="inside"), aim.disable_adapters(model), aim.disable_adapters(model):
        frozen = model(clips)
        raise RuntimeError("inside")
    assert torch.equal(model(clips), adapted)
    assert not torch.allclose(frozen, adapted)


def test_leaving_an_inner_block_leaves_the_outer_one_alone(model: VisionTransformer) -> None:
    with aim.disable_adapters(model):
        with aim.disable_adapters(model):
            pass
        assert not model.aim.enabled
    assert model.aim.enabled


def test_one_manager_may_be_used_again_also_inside_of_itself(model: VisionTransformer) -> None:
    disabled = aim.disable_adapters(model)
    for _ in range(2):
        with disabled:
            with disabled:
                assert not model.aim.enabled
            assert not model.aim.enabled
        assert model.aim.enabled


def test_decorates_a_function(model: VisionTransformer) -> None:
    clips, calls = video(), []

    @aim.disable_adapters(model)
    def run(inner: bool = False) -> Tensor:
        """Run the image model."""
        calls.append(run(inner=False) if inner else model.aim.enabled)
        return model(clips)

    assert run.__doc__ == "Run the image model."
    with aim.disable_adapters(model):
        expected = model(clips)
    for inner in (False, True):
        assert torch.equal(run(inner), expected)
        assert model.aim.enabled
    assert calls[0] is calls[1] is False


@pytest.mark.parametrize("keep", [False, True])
def test_without_a_block_it_does_nothing_and_says_so(model: VisionTransformer, keep: bool) -> None:
    with pytest.warns(UserWarning, match=r"disable_adapters\(model\) did nothing: write `with") as caught:
        if keep:
            disabled = aim.disable_adapters(model)
            assert model.aim.enabled
            del disabled
        else:
            aim.disable_adapters(model)
        gc.collect()
    assert [warning.filename for warning in caught] == [__file__]
    assert model.aim.enabled


def test_one_that_was_used_never_warns(model: VisionTransformer) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disabled = aim.disable_adapters(model)
        with disabled:
            pass
        with pytest.raises(KeyError), aim.disable_adapters(model):
            raise KeyError
        aim.disable_adapters(model)(lambda: None)()
        aim.disable_adapters(model)(lambda: None)  # a function that was not called yet
        with pytest.raises(StateError, match="not wrapped"):
            aim.disable_adapters(base())
        del disabled
        gc.collect()
    assert not caught
