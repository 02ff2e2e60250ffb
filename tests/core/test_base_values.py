"""Samples tell an untrained base, and one that changed after it was wrapped, whatever holds it since."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

import aim_adapters as aim
from aim_adapters.core.base_values import find_changes
from tests.backbones.cases import scramble
from tests.tiny import FRAMES, SIZE, base, trained, wrapped


def changes(model: Any) -> list[str]:
    return find_changes(model.aim.record.samples, model)


@pytest.mark.parametrize(
    "build",
    [
        lambda: type(base())(**SIZE),
        lambda: SwinTransformerV2(
            img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4
        ),
    ],
    ids=["ViT", "Swin v2"],
)
def test_untrained_base_is_warned_about_when_it_is_wrapped(build: Callable[[], nn.Module]) -> None:
    with pytest.warns(UserWarning, match=r"looks untrained: .* pretrained=True, or load its weights") as caught:
        aim.wrap_image_model(build(), FRAMES)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_trained_base_is_not() -> None:
    wrapped()
    aim.wrap_image_model(base(norm_layer=partial(nn.LayerNorm, elementwise_affine=False)), FRAMES)


def test_warning_made_an_error_changes_nothing() -> None:
    model = type(base())(**SIZE)
    with pytest.warns(UserWarning):
        aim.wrap_image_model(copy.deepcopy(model), FRAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="looks untrained"):
            aim.wrap_image_model(model, FRAMES)
    assert not aim.is_wrapped(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def ema(model: Any) -> Any:
    """Return what timm's moving average makes of a copy in some steps: frozen values drift by rounding."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for mean, value in zip(other.parameters(), model.parameters(), strict=True):
            for _ in range(200):
                mean.copy_(0.9998 * mean + 0.0002 * value)
    return other


def loaded(model: Any) -> Any:
    model.load_state_dict(scramble(base()).state_dict())
    return model


def to_dtypes(*dtypes: torch.dtype) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        for dtype in dtypes:
            aim.set_base_dtype(model, dtype)
        return model

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model,
        lambda model: model.half(),
        lambda model: model.double(),
        to_dtypes(torch.float16, torch.bfloat16, torch.float32),
        to_dtypes(torch.bfloat16, torch.float16),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        ema,
        loaded,
        lambda model: loaded(nn.ModuleDict({"net": model}).net),
        lambda model: (aim.set_num_frames(model, 2 * FRAMES), model)[1],
    ],
)
@pytest.mark.filterwarnings("ignore:temporal embedding interpolated")
def test_ordinary_use_changes_nothing(change: Callable[[Any], Any]) -> None:
    assert changes(change(trained())) == []


def test_base_that_is_loaded_inside_of_another_module_is_the_new_one() -> None:
    model, net = trained(), nn.ModuleDict()
    net["net"] = model
    state = {f"net.{name}": tensor for name, tensor in scramble(base()).state_dict().items()}
    net.load_state_dict(state)
    assert changes(model) == []
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.mul_(1.01)
    assert changes(model) == ["blocks.0.attn.qkv.weight"]


@pytest.mark.parametrize(
    "name", ["pos_embed", "patch_embed.proj.weight", "blocks.2.norm1.bias", "blocks.0.attn.qkv.weight"]
)
def test_every_parameter_is_watched(name: str) -> None:
    model = trained()
    with torch.no_grad():
        model.get_parameter(name).add_(0.01)
    assert changes(model) == [name]


def test_parameter_that_is_gone_is_a_change() -> None:
    model = trained()
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    assert changes(model) == ["blocks.1.attn.qkv.weight", "blocks.1.attn.qkv.bias"]
