"""The tensors that a block's branches are made of give what the family's own layers give, or it is said why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from timm.layers import SimpleNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.anatomy import AttentionParts, BlockAnatomy, BlockParts, MlpParts, apply_part, made
from aim_adapters.backbones import read_anatomy
from aim_adapters.core import fusion
from aim_adapters.core.fusion import attention_tensors, mlp_tensors
from aim_adapters.ops.branches import (
    AttentionPlan,
    AttentionTensors,
    BranchTensors,
    MlpPlan,
    MlpTensors,
    WindowTensors,
    tile,
)
from tests.backbones import (
    test_open_clip_vit,
    test_swin,
    test_timm_beit,
    test_timm_eva,
    test_timm_naflexvit,
    test_timm_vit,
    test_torchvision_vit,
    test_transformers,
)
from tests.backbones.cases import FRAMES, Case
from tests.ops.branches.cases import plain_attention, plain_mlp

FAMILIES = {
    "timm_vit": test_timm_vit, "timm_eva": test_timm_eva, "timm_beit": test_timm_beit, "swin": test_swin,
    "open_clip": test_open_clip_vit, "torchvision": test_torchvision_vit, "transformers": test_transformers,
    "naflex": test_timm_naflexvit,
}  # fmt: skip
MEMBERS = {f"{family}-{case.name}": case for family, module in FAMILIES.items() for case in module.CASES}
GROUPED = "its attention has fewer key and value heads than query heads"
POST_NORM = "it has no LayerNorm in front"
# Members of which a branch is not made of plain layers: why not, of attention and of the MLP. Of all others both are.
NOT_PLAIN: dict[str, tuple[str, str]] = {
    "timm_vit-post_norm": (POST_NORM, POST_NORM),
    "timm_eva-post_norm": (POST_NORM, POST_NORM),
    "timm_eva-grouped_heads": (GROUPED, ""),
}
UNDESCRIBED = {"swin-timm_v2", "swin-torchvision_v2", "open_clip-custom_blocks"}
POSITIONED = ("DINOv3", "_rotary", "-rotary")
# Members whose attention knows nothing of positions, so that it runs fused among the tokens of a frame too.
PLAIN_FAMILIES = ("timm_vit", "naflex", "open_clip", "torchvision", "transformers")


def blocks_of(case: Case) -> Iterator[tuple[nn.Module, BlockAnatomy, Tensor]]:
    """Yield each block in float64, with its anatomy and tokens for it ``[F, ..., D]``."""
    model = case.model()
    anatomy = read_anatomy(model)
    root = model.get_submodule(anatomy.root).double()
    for (path, block_anatomy), width in zip(anatomy.blocks, anatomy.block_widths, strict=True):
        x = torch.randn(2, *case.tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        yield root.get_submodule(path), block_anatomy, x


def read(block: nn.Module, anatomy: BlockAnatomy) -> BlockParts:
    assert anatomy.parts is not None
    return anatomy.parts(block, anatomy)


@pytest.mark.parametrize("member", MEMBERS)
def test_attention_is_what_the_family_computes(member: str) -> None:
    case = MEMBERS[member]
    for block, anatomy, x in blocks_of(case):
        if anatomy.parts is None:
            assert member in UNDESCRIBED
            continue
        parts = read(block, anatomy).attention
        reason = NOT_PLAIN.get(member, ("", ""))[0]
        if reason:
            assert parts == reason
            continue
        assert isinstance(parts, AttentionParts)
        h = apply_part(block, anatomy.pre_attention, x)
        theirs = (case.plain_attention or anatomy.attend)(block, h)
        expected = x + apply_part(block, anatomy.post_attention, theirs)
        norms = {name: getattr(parts, name) for name in ("norm", "head_norm", "head_eps", "inner_norm", "inner_eps")}
        plan = AttentionPlan("tokens", parts.heads, parts.scale, parts.eps, "", **norms)
        tensors = BranchTensors(AttentionTensors(*map(made, attention_tensors(parts))))
        ours = plain_attention(x.flatten(1, -2), tensors, plan, 1).view(x.shape)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
        assert parts.plain == (member.startswith(PLAIN_FAMILIES) and not any(word in member for word in POSITIONED))


@pytest.mark.parametrize("member", [name for name in MEMBERS if name.startswith("swin") and "v1" in name])
def test_attention_within_windows_is_what_the_family_computes(member: str) -> None:
    tiled = 0
    for block, anatomy, _ in blocks_of(MEMBERS[member]):
        parts = read(block, anatomy).attention
        assert isinstance(parts, AttentionParts)
        assert parts.windows is not None
        for height, width in ((8, 12), (4, 8), (4, 4)):
            x = torch.randn(2, height, width, len(parts.out_weight), dtype=torch.float64)
            if hasattr(block, "input_resolution"):  # timm makes the mask of one size beforehand
                if not block.dynamic_mask and (height, width) != tuple(block.input_resolution):
                    continue
            theirs = anatomy.attend(block, apply_part(block, anatomy.pre_attention, x))
            expected = x + apply_part(block, anatomy.post_attention, theirs)
            index, mask = tile(height, width, parts.windows.size, parts.windows.shift, x.device)
            plan = AttentionPlan("windows", parts.heads, parts.scale, parts.eps, "")
            frozen = AttentionTensors(*map(made, attention_tensors(parts)))
            tensors = BranchTensors(frozen, windows=WindowTensors(made(parts.windows.bias), mask, index))
            ours = plain_attention(x.flatten(1, -2), tensors, plan, 1).view(x.shape)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
            tiled += 1
    assert tiled or "do_not_divide" in member


@pytest.mark.parametrize("member", MEMBERS)
def test_mlp_is_what_the_family_computes(member: str) -> None:
    for block, anatomy, x in blocks_of(MEMBERS[member]):
        if anatomy.parts is None:
            assert member in UNDESCRIBED
            continue
        parts = read(block, anatomy).mlp
        reason = NOT_PLAIN.get(member, ("", ""))[1]
        if reason:
            assert parts == reason
            continue
        assert isinstance(parts, MlpParts)
        check_mlp(block, anatomy, x, parts)


def check_mlp(block: Any, anatomy: BlockAnatomy, x: Tensor, parts: MlpParts, *, tolerance: float = 1e-10) -> None:
    """Hold what is computed of the weights of an MLP branch to what the block's own layers compute."""
    theirs = getattr(block, anatomy.mlp)(apply_part(block, anatomy.pre_mlp, x))
    expected = x + apply_part(block, anatomy.post_mlp, theirs)
    inside = parts.gate_weight is not None, parts.inner_norm, parts.inner_eps
    plan = MlpPlan(parts.activation, parts.eps, 1.0, parts.norm, *inside)
    tensors = BranchTensors(MlpTensors(*map(made, mlp_tensors(parts))))
    torch.testing.assert_close(plain_mlp(x, tensors, plan, 1), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("member", [name for name in MEMBERS if not name.startswith("swin")])
def test_attention_runs_fused_with_all_that_the_model_passes_to_its_blocks(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, seen = MEMBERS[member], []
    run = fusion.run_branches
    monkeypatch.setattr(fusion, "run_branches", lambda x, t, plan: seen.extend(plan.branches) or run(x, t, plan))
    model = case.model()
    anatomy = read_anatomy(model)
    aim.wrap_image_model(model, FRAMES).train()
    case.call(model, case.video())
    by_modules = NOT_PLAIN.get(member, ("", ""))[0] or member in UNDESCRIBED
    expected = 0 if by_modules else len(anatomy.blocks)
    frames, tokens = (sum(getattr(each, "over", "") == over for each in seen) for over in ("frames", "tokens"))
    assert frames == expected
    assert tokens in (expected, max(0, expected - 1))  # the last block may need the [class] token alone


# What is not plain


def vit(**arguments: Any) -> tuple[Any, BlockAnatomy]:
    """Return a block of a small ViT, and its anatomy."""
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = VisionTransformer(**{**size, "init_values": 0.1, **arguments})
    anatomy = read_anatomy(model)
    return model.get_submodule(anatomy.blocks[0][0]), anatomy.blocks[0][1]


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "before": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "before_backward": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "own_forward": lambda module: setattr(module, "forward", module.forward),
}
IN_ATTENTION = ("norm1", "attn", "attn.qkv", "attn.proj", "attn.q_norm", "attn.attn_drop", "attn.proj_drop", "ls1")
IN_MLP = ("norm2", "mlp", "mlp.fc1", "mlp.act", "mlp.drop1", "mlp.norm", "mlp.fc2", "ls2")


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("path", IN_ATTENTION + IN_MLP)
def test_hooks_make_a_branch_run_as_modules(path: str, kind: str) -> None:
    for arguments in ({}, {"init_values": None}):
        block, anatomy = vit(**arguments)
        HOOKS[kind](block.get_submodule(path))
        parts = read(block, anatomy)
        found = parts.attention, parts.mlp
        heard, other = found if path in IN_ATTENTION else found[::-1]
        assert isinstance(heard, str) and heard.endswith("has hooks, which a fused branch would not call")
        assert not isinstance(other, str)


def test_hooks_that_are_gone_do_not_count() -> None:
    block, anatomy = vit()
    handle = block.attn.qkv.register_forward_hook(lambda *_: None)
    assert isinstance(read(block, anatomy).attention, str)
    handle.remove()
    assert isinstance(read(block, anatomy).attention, AttentionParts)


class MyLinear(nn.Linear):
    pass


class MyLayerScale(nn.Module):
    gamma = torch.ones(32)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class MyNorm(nn.LayerNorm):
    pass


@pytest.mark.parametrize(
    ("path", "layer", "reason"),
    [
        ("norm1", lambda: SimpleNorm(32), "its norm is a SimpleNorm"),
        ("norm1", lambda: MyNorm(32), "its norm is a MyNorm"),
        ("norm1", nn.Identity, "its norm is a Identity"),
        ("attn.qkv", lambda: MyLinear(32, 96), "it holds a MyLinear in place of a linear layer"),
        ("attn.proj", lambda: nn.Conv1d(32, 32, 1), "it holds a Conv1d in place of a linear layer"),
        ("attn.k_norm", lambda: nn.LayerNorm(16), "its attention normalizes queries and keys in different ways"),
        ("attn.q_norm", lambda: nn.LayerNorm(32), "its attention has a LayerNorm inside"),
        ("attn.q_norm", lambda: MyNorm(16), "its attention has a MyNorm inside"),
        ("attn.norm", lambda: SimpleNorm(32), "its attention has a SimpleNorm inside"),
        ("ls1", MyLayerScale, "behind its branch comes a MyLayerScale"),
    ],
)
def test_replaced_layers_of_attention_are_seen(path: str, layer: Callable[[], nn.Module], reason: str) -> None:
    block, anatomy = vit()
    assert not isinstance(read(block, anatomy).attention, str)
    block.set_submodule(path, layer())
    parts = read(block, anatomy)
    assert parts.attention == reason
    assert not isinstance(parts.mlp, str)


@pytest.mark.parametrize(
    ("path", "layer", "reason"),
    [
        ("norm2", lambda: SimpleNorm(32), "its norm is a SimpleNorm"),
        ("mlp", nn.Identity, "its MLP is a Identity, not two layers around an activation"),
        (
            "mlp",
            lambda: nn.Sequential(nn.Linear(32, 64)),
            "its MLP is a Sequential, not two layers around an activation",
        ),
        ("mlp.fc1", lambda: MyLinear(32, 128), "it holds a MyLinear in place of a linear layer"),
        ("mlp.fc1", lambda: nn.Linear(32, 256), "its MLP is gated"),
        ("mlp.act", nn.Tanh, "its MLP's activation is a Tanh"),
        ("mlp.norm", lambda: SimpleNorm(128), "its MLP is a Mlp, not two layers around an activation"),
        ("norm2", lambda: nn.RMSNorm(32), "its norm2 is a RMSNorm whose epsilon depends on the dtype of its input"),
        ("ls2", MyLayerScale, "behind its branch comes a MyLayerScale"),
    ],
)
def test_replaced_layers_of_the_mlp_are_seen(path: str, layer: Callable[[], nn.Module], reason: str) -> None:
    block, anatomy = vit()
    assert not isinstance(read(block, anatomy).mlp, str)
    block.set_submodule(path, layer())
    parts = read(block, anatomy)
    assert parts.mlp == reason
    assert not isinstance(parts.attention, str)


@pytest.mark.parametrize("name", ["gate", "head_scale"])
def test_gated_attention_is_seen(name: str) -> None:
    block, anatomy = vit()
    setattr(block.attn, name, nn.Parameter(torch.ones(2)))
    assert read(block, anatomy).attention == "its attention is gated"


def test_fewer_key_heads_are_seen() -> None:
    block, anatomy = vit()
    del block.attn.qkv
    block.attn.q_proj, block.attn.k_proj, block.attn.v_proj = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
    assert read(block, anatomy).attention == "its attention has fewer key and value heads than query heads"


def test_several_parts_behind_a_branch_are_seen() -> None:
    block, anatomy = vit(init_values=0.1)
    twice = BlockAnatomy(**{**vars(anatomy), "post_attention": ("ls1", "ls2")})
    assert read(block, twice).attention == "behind its branch comes more than one factor, ls2 the last"


def test_frozen_drop_paths_are_left_out_unless_something_is_hooked_to_them_or_put_there() -> None:
    block, anatomy = vit(drop_path_rate=0.5, proj_drop_rate=0.5)
    assert isinstance(read(block, anatomy).attention, AttentionParts)
    block.drop_path1.register_forward_hook(lambda *_: None)
    assert read(block, anatomy).attention == "its drop_path1 has hooks, which a fused branch would not call"
    block.drop_path2 = nn.Tanh()
    assert read(block, anatomy).mlp == "behind its branch comes a Tanh"


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])
def test_activations_are_told_apart(kind: str) -> None:
    block, anatomy = vit(act_layer=kind)
    parts = read(block, anatomy).mlp
    assert isinstance(parts, MlpParts)
    assert parts.activation == kind
    block.mlp.act = nn.GELU(approximate="tanh")
    assert read(block, anatomy).mlp.activation == "gelu_tanh"  # type: ignore[union-attr]


def test_values_are_looked_up_at_every_call() -> None:
    block, anatomy = vit()
    block.attn.qkv = nn.Linear(32, 96)
    parts = read(block, anatomy).attention
    assert isinstance(parts, AttentionParts)
    assert parts.qkv_weight is block.attn.qkv.weight
