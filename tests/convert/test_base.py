"""The tensors of an image model are found by their role in every library, compared, and filled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_adapters.backbones import read_anatomy
from aim_adapters.convert.base import find_roles, require_same_values, split
from aim_adapters.errors import CheckpointError
from tests.convert.cases import VITS, clip_base, clip_file, load, small_swin_file, swin_base
from tests.oracle import holders
from tests.oracle.reference import CLIP
from tests.oracle.vit import Size, random_weights


def roles_of(model: nn.Module) -> dict[str, list[str]]:
    return find_roles(model, read_anatomy(model))


def test_roles_do_not_depend_on_the_library() -> None:
    models = {name: holder(random_weights(size), size) for name, (size, holder) in VITS.items()}
    models["clip in transformers"] = holders.hf_clip(random_weights(CLIP), CLIP)
    for kind in ("clip", "imagenet"):
        roles = [set(roles_of(model)) for name, model in models.items() if name.startswith(kind)]
        assert all(found == roles[0] for found in roles)
    assert set(roles_of(swin_base("timm"))) == set(roles_of(swin_base("torchvision")))


def test_every_parameter_but_the_trained_ones_has_a_role() -> None:
    model = swin_base("timm")
    found = {name for names in roles_of(model).values() for name in names}
    left = {name for name, _ in model.named_parameters()} - found
    assert left == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}


def test_separate_projections_are_in_the_order_of_a_packed_one() -> None:
    names = roles_of(holders.hf_clip(random_weights(CLIP), CLIP))["blocks.1.qkv.bias"]
    assert [name.split(".")[-2] for name in names] == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize(
    "extra", [{"reg_tokens": 1}, {"reg_tokens": 3}, {"qk_norm": True}, {"global_pool": "map"}, {"qkv_bias": False}]
)
def test_models_with_other_parts_are_refused(extra: dict[str, Any]) -> None:
    model = holders.TimmViT(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, pre_norm=True, act_layer="quick_gelu", **extra
    )
    with pytest.raises(CheckpointError, match=r"not built alike: only the (model|checkpoint) has"):
        load(model, clip_file(), backbone="fill")


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_worst_tensors_are_named() -> None:
    model = clip_base()
    values = values_of(model)
    values["blocks.1.mlp.fc1.weight"][3, 4] += values["blocks.1.mlp.fc1.weight"].abs().max() / 500
    values["blocks.0.attn.proj.bias"] += 1
    with pytest.raises(CheckpointError, match=r"^2 of \d+ .*: blocks\.0\.attn\.proj\.bias \(.*fc1\.weight \(0\.002\)"):
        require_same_values(model, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    model, values = clip_base(), values_of(clip_base())
    require_same_values(model, {name: value.to(dtype) for name, value in values.items()})
    require_same_values(model.to(dtype), values)
    rounded = {name: value.half().double() for name, value in values.items()}
    require_same_values(clip_base(), rounded)


def test_a_zero_tensor_equals_only_zeros() -> None:
    model = clip_base()
    values = values_of(model)
    values["cls_token"] = torch.zeros(1, 1, 32)
    with pytest.raises(CheckpointError, match=r"cls_token \(inf\)"):
        require_same_values(model, values)
    values["cls_token"] = torch.ones(1, 1, 32)
    with torch.no_grad():
        model.get_parameter("cls_token").zero_()
    with pytest.raises(CheckpointError, match=r"cls_token \(1\)"):
        require_same_values(model, values)


def test_splitting_gives_the_shapes_of_the_model() -> None:
    model = holders.hf_vit(random_weights(Size()), Size())
    roles = roles_of(model)
    base = {role: torch.cat([model.get_parameter(name) for name in names]) for role, names in roles.items()}
    base["class"], base["position"] = base["class"].flatten(), base["position"].squeeze(0)
    values = split(model, roles, base)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in values.items())


def test_norms_of_merging_belong_to_their_stage() -> None:
    state = small_swin_file()
    state["backbone.layers.0.downsample.norm.bias"] = torch.zeros(64)
    with pytest.raises(CheckpointError, match=r"1 of 59 .*: layers\.1\.downsample\.norm\.bias"):
        load(swin_base("timm"), state)
