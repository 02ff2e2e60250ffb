"""Linear spatial adapters merged into the image model: the same outputs, or a refusal that changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.core.fusion import FusedBranch, fused_branches
from aim_adapters.errors import CheckpointError, StateError, UnsupportedModelError
from aim_adapters.merging import merge_adapters
from tests.backbones.cases import FRAMES, Case, assert_same, snapshot, wake
from tests.backbones.test_parts import MEMBERS
from tests.tiny import base, run, trained, video, wrapped

LINEAR: dict[str, Any] = {"components": ("spatial",), "adapter_activation": "none"}
# Members that cannot be merged, and what the refusal says; all others can.
REFUSED = {
    "timm_vit-post_norm": "the norm of a post-norm block",
    "timm_eva-post_norm": "the norm of a post-norm block",
    "swin-timm_v2": "the norm of a post-norm block",
    "swin-torchvision_v2": "the norm of a post-norm block",
    "timm_vit-aimv2": "no bias to take in",
    "timm_eva-grouped_heads": "fewer key and value heads",
    "open_clip-custom_blocks": "parts are not described",
}


def linear(**arguments: Any) -> Any:
    return trained("vit_x.in1k", **{**LINEAR, **arguments}).double()


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


# What is merged


@pytest.mark.parametrize("member", MEMBERS)
def test_every_family_merges_exactly_or_is_refused(member: str) -> None:
    case: Case = MEMBERS[member]
    model, clips = case.model().double(), case.video().double()
    wake(aim.wrap_image_model(model, FRAMES, **LINEAR))
    before = snapshot(model)
    with torch.no_grad():
        aim.set_execution(model, fused=False)  # the adapters themselves
        expected = case.call(model, clips)
        aim.set_execution(model, fused="auto")  # folded at the call, where a block runs fused
        near(case.call(model, clips), expected)
        if member in REFUSED:
            with pytest.raises(UnsupportedModelError, match=f"nothing was changed: .*{REFUSED[member]}"):
                merge_adapters(model)
            assert_same(before, snapshot(model))
            return
        assert merge_adapters(model) is model
        near(case.call(model, clips), expected)
        with aim.disable_adapters(model):
            near(case.call(model, clips), expected)
    aim.unwrap_image_model(model)
    near(case.averaged(model, clips), expected)


@pytest.mark.parametrize(
    "arguments",
    [{"num_classes": 7}, {"num_classes": 0, "layers": [0, -1]}, {"train_norm": False, "tubelet_size": 2}],
    ids=str,
)
def test_settings_stay_and_no_adapter_is_left(arguments: dict[str, Any]) -> None:
    model = linear(**arguments)
    expected, spec, classes = run(model, dtype=torch.float64), aim.clip_spec(model), model.num_classes
    merge_adapters(model)
    near(run(model, dtype=torch.float64), expected)
    assert (aim.clip_spec(model), model.num_classes) == (spec, classes)
    assert not any("adapter" in name or "_proj" in name for name in aim.adapter_state_dict(model))
    assert model.aim.config.components == ()
    spatial = fused_branches(model.blocks[0], torch.zeros(4, 5, 32, dtype=torch.float64)).spatial
    assert isinstance(spatial, FusedBranch) and spatial.tensors.trained.adapter is None and not spatial.derived
    near(run(merge_adapters(copy.deepcopy(model)), dtype=torch.float64), expected)  # nothing is left to merge


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_merged_in_float32(dtype: torch.dtype) -> None:
    model = linear().to(dtype)
    exact = copy.deepcopy(model).double()
    with torch.autocast("cpu", torch.bfloat16):
        merge_adapters(model)
    merge_adapters(exact)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, exact.state_dict()[name].to(dtype), rtol=1e-6, atol=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"components": ("temporal", "spatial", "joint")}, "merge 'temporal' (what sees time"),
        ({"components": ("spatial", "joint")}, "merge 'joint' (the joint adapter stands beside the MLP"),
        ({"adapter_activation": "gelu"}, "merge 'spatial' (with adapter_activation='gelu'"),
    ],
    ids=["temporal", "joint", "gelu"],
)
def test_components_that_are_not_linear_in_the_projection_are_refused(arguments: dict[str, Any], named: str) -> None:
    model = linear(**arguments)
    before = snapshot(model)
    with pytest.raises(StateError) as caught:
        merge_adapters(model)
    assert named in str(caught.value) and "components=('spatial',) and adapter_activation='none'" in str(caught.value)
    assert_same(before, snapshot(model))


def hook_last(model: Any) -> None:
    model.blocks[-1].attn.proj.register_forward_hook(lambda *_: None)


def share(model: Any) -> None:
    model.blocks[0].attn.proj.bias = model.blocks[-1].attn.proj.bias


def expand(model: Any) -> None:
    zeros = torch.zeros((), dtype=torch.float64).expand(model.blocks[-1].attn.proj.bias.shape)
    model.blocks[-1].attn.proj.bias = nn.Parameter(zeros, requires_grad=False)


def hook_adapter(model: Any) -> None:
    model.blocks[1].aim.spatial.up_proj.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (hook_last, "blocks.2 cannot take in its adapter, and nothing was changed: .* has hooks"),
        (hook_adapter, "blocks.1 cannot .*its adapter is not as it was made"),
        (share, "several layers share blocks.0.attn.proj.bias, blocks.2.attn.proj.bias"),
        (expand, "elements of blocks.2.attn.proj.bias share memory"),
    ],
    ids=["hook", "adapter", "shared", "expanded"],
)
def test_one_block_that_cannot_leaves_all_as_they_were(spoil: Any, said: str) -> None:
    model = linear()
    spoil(model)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=said):
        merge_adapters(model)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("factor", [float("nan"), 1e9])
def test_weights_that_would_not_be_finite_are_refused(factor: float) -> None:
    model = linear().float()
    aim.set_base_dtype(model, torch.float16)
    with torch.no_grad():
        model.blocks[1].aim.spatial.up_proj.weight.mul_(factor)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(StateError, match=r"NaN or infinities would be in blocks\.1\.attn\.proj\.weight, .*so nothing"):
        merge_adapters(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num()), name


def test_states_that_do_not_allow_it_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        merge_adapters(3)  # type: ignore[type-var]
    with pytest.raises(StateError, match="not wrapped"):
        merge_adapters(nn.Linear(2, 2))
    model = linear()
    with aim.disable_adapters(model), pytest.raises(StateError, match="leave disable_adapters first"):
        merge_adapters(model)
    aim.add_adapter(model, "other", aim.AIMConfig(4))
    with pytest.raises(StateError, match=r"other adapters, 'other', which would run on the merged weights"):
        merge_adapters(model)
    with pytest.raises(StateError, match="on the meta device"):
        merge_adapters(linear().to("meta"))


# What may become of it


def test_a_merged_image_model_is_never_taken_for_the_original(tmp_path: Path) -> None:
    model = linear()
    aim.save_adapters(model, tmp_path / "before")
    merge_adapters(model)
    unwrapped = aim.unwrap_image_model(copy.deepcopy(model))
    again = aim.wrap_image_model(copy.deepcopy(unwrapped), FRAMES)
    for merged in (model, again):
        with pytest.raises(CheckpointError, match="were merged into the weights of this image model"):
            aim.save_adapters(merged, tmp_path / "after")
    for merged, name in ((model, "second"), (again, "second"), (unwrapped, None)):
        before = snapshot(merged)
        with pytest.raises(CheckpointError, match="merge_adapters has merged adapters into it; build it anew"):
            aim.load_adapters(merged, tmp_path / "before", name=name)
        assert_same(before, snapshot(merged))
    fresh = base("vit_x.in1k").double()
    aim.load_adapters(fresh, tmp_path / "before")
    near(run(merge_adapters(fresh), dtype=torch.float64), run(model, dtype=torch.float64))


def test_its_state_dict_holds_all_of_it() -> None:
    model = linear(num_classes=7)
    merge_adapters(model)
    other = wrapped(components=(), num_classes=7).double()
    other.load_state_dict(model.state_dict())
    near(other(video().double()), model(video().double()))
