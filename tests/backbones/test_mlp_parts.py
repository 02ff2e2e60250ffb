"""Gated MLPs and norms inside of MLPs are read as what they compute, and run fused."""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import pytest
import timm.layers as layers
import torch
import transformers as hf
from timm.models.eva import Eva
from torch import Tensor, nn
from transformers.models.aimv2.modeling_aimv2 import Aimv2MLP, Aimv2RMSNorm

import aim_adapters as aim
from aim_adapters.anatomy import BlockAnatomy, MlpParts
from aim_adapters.backbones import read_anatomy
from tests.backbones import test_timm_eva, test_transformers
from tests.backbones.cases import Case, scramble
from tests.backbones.test_parts import MEMBERS, check_mlp, read, vit
from tests.tiny import FRAMES

EVA = test_timm_eva.SIZE
MODELS: dict[str, Any] = {
    "dinov3_huge": lambda: Eva(
        **EVA, swiglu_mlp=True, swiglu_align_to=8, mlp_ratio=2.6, use_rot_pos_emb=True, rope_type="dinov3"
    ),
    "eva_norm_in_a_plain_mlp": lambda: Eva(**EVA, scale_mlp=True),
    "eva_giant_packed": lambda: Eva(**EVA, swiglu_mlp=True, mlp_ratio=2.7),
    "dinov2_giant": lambda: hf.Dinov2Model(hf.Dinov2Config(**test_transformers.SIZE, use_swiglu_ffn=True)),
    "dinov2_giant_registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**test_transformers.SIZE, use_swiglu_ffn=True)
    ),
}
GATED_MEMBERS = (
    "timm_vit-registers_layer_scale_dinov2",
    "timm_vit-aimv2",
    "timm_eva-eva02_rotary_swiglu_norms",
    "timm_beit-shared_bias",
    "transformers-DINOv3ViTModel_gated",
)
X = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def block_of(model: nn.Module) -> tuple[Any, BlockAnatomy]:
    anatomy = read_anatomy(model)
    path, block_anatomy = anatomy.blocks[0]
    return model.get_submodule(anatomy.root).get_submodule(path).double(), block_anatomy


def found(block: Any, anatomy: BlockAnatomy) -> MlpParts:
    parts = read(block, anatomy).mlp
    assert isinstance(parts, MlpParts), parts
    return parts


@pytest.mark.parametrize("name", MODELS)
def test_larger_members_of_families(name: str) -> None:
    block, anatomy = block_of(scramble(MODELS[name]()).eval())
    parts = found(block, anatomy)
    assert (parts.gate_weight is None) == (name == "eva_norm_in_a_plain_mlp") == (parts.inner_norm == "layer")
    check_mlp(block, anatomy, X, parts)


MLPS: dict[str, Any] = {
    "gate_last": lambda: layers.GluMlp(32, 44, act_layer=nn.SiLU),
    "gate_first": lambda: layers.GluMlp(32, 46, act_layer=nn.GELU, gate_last=False, bias=False),
    "gate_in_front_of_a_norm": lambda: layers.GluMlp(32, 44, act_layer=nn.SiLU, norm_layer=nn.LayerNorm),
    "swiglu_rms": lambda: layers.SwiGLU(32, 11, norm_layer=partial(layers.RmsNorm, eps=1e-3)),
    "mlp_rms": lambda: layers.Mlp(32, 48, norm_layer=partial(nn.RMSNorm, eps=1e-3)),
    "sequence": lambda: nn.Sequential(
        nn.Linear(32, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 32), nn.Dropout(0.0)
    ),
    "aimv2": lambda: Aimv2MLP(hf.Aimv2VisionConfig(hidden_size=32, intermediate_size=22)),
}


@pytest.mark.parametrize("name", MLPS)
def test_kinds_of_mlps(name: str) -> None:
    block, anatomy = vit()
    block.mlp = MLPS[name]()
    scramble(block.double())
    check_mlp(block, anatomy, X, found(block, anatomy))


@pytest.mark.parametrize(
    "norm",
    [
        nn.RMSNorm(32, eps=1e-2),
        layers.RmsNorm(32, eps=1e-2),
        layers.RmsNorm(32, affine=False),
        layers.RmsNormFp32(32, eps=1e-2),
        Aimv2RMSNorm(32, eps=1e-2),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_rms_norms(norm: nn.Module) -> None:
    block, anatomy = vit()
    block.norm1, block.norm2 = norm, norm
    parts = found(scramble(block.double()), anatomy)
    assert parts.norm == "rms" == read(block, anatomy).attention.norm  # type: ignore[union-attr]
    check_mlp(block, anatomy, X, parts, tolerance=1e-5)  # some compute in float32 alone


def test_layers_packed_as_older_versions_of_transformers_do() -> None:
    block, anatomy = block_of(scramble(MODELS["dinov2_giant"]()).eval())
    mlp = block.mlp
    mlp.weights_in, mlp.weights_out = nn.Linear(32, 44).double(), nn.Linear(22, 32).double()
    for name in ("gate_proj", "up_proj", "down_proj"):
        delattr(mlp, name)

    def forward(self: Any, x: Tensor) -> Tensor:
        gate, value = self.weights_in(x).chunk(2, -1)
        return self.weights_out(nn.functional.silu(gate) * value)

    parts = found(block, anatomy)
    mlp.forward = types.MethodType(forward, mlp)
    check_mlp(block, anatomy, X, parts)


@pytest.mark.parametrize(
    ("mlp", "reason"),
    [
        (lambda: layers.GluMlp(32, 44), "its MLP's activation is a Sigmoid"),
        (
            lambda: layers.GluMlp(32, 44, act_layer=nn.SiLU, use_conv=True),
            "it holds a Conv2d in place of a linear layer",
        ),
        (lambda: layers.SwiGLU(32, 22, norm_layer=layers.SimpleNorm), "its MLP is a SwiGLU, not two layers around"),
        (lambda: layers.GatedMlp(32, 44), "its MLP is a GatedMlp, not two layers around an activation"),
        (lambda: type("Mine", (layers.SwiGLU,), {})(32, 22), "its MLP is a Mine, not two layers around an activation"),
        (
            lambda: layers.SwiGLU(32, 22, norm_layer=nn.RMSNorm),
            "its norm is a RMSNorm whose epsilon depends on the dtype of its input",
        ),
    ],
)
def test_what_is_not_known_is_said(mlp: Any, reason: str) -> None:
    block, anatomy = vit()
    block.mlp = mlp()
    parts = read(block, anatomy).mlp
    assert isinstance(parts, str) and parts.startswith(reason)


@pytest.mark.parametrize("path", ["mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "mlp.act", "mlp.fc2"])
def test_hooks_inside_are_seen(path: str) -> None:
    block, anatomy = vit()
    block.mlp = layers.SwiGLU(32, 22, norm_layer=nn.LayerNorm)
    handle = block.get_submodule(path).register_forward_hook(lambda *_: None)
    assert read(block, anatomy).mlp == "its mlp has hooks, which a fused branch would not call"
    handle.remove()
    found(block, anatomy)


@pytest.mark.parametrize("member", GATED_MEMBERS)
def test_the_branch_runs_fused(member: str) -> None:
    case = MEMBERS[member]
    model = aim.wrap_image_model(case.model(), FRAMES)
    assert {row.mlp for row in aim.explain_execution(model)} == {"fused"}


@pytest.mark.parametrize("name", MODELS)
def test_fused_is_what_modules_compute(name: str) -> None:
    case = Case(name, MODELS[name])
    model = aim.wrap_image_model(case.model(), FRAMES)
    assert {row.mlp for row in aim.explain_execution(model)} == {"fused"}
    scramble(model)
    with torch.no_grad():
        ours = _tensor(model(case.video(frames=FRAMES)))
        aim.set_execution(model, fused=False)
        torch.testing.assert_close(ours, _tensor(model(case.video(frames=FRAMES))), rtol=1e-4, atol=1e-4)


def test_packed_weights_are_those_of_now() -> None:
    """Halves of a packed layer follow the layer, also where its memory is replaced."""
    case = MEMBERS["timm_vit-registers_layer_scale_dinov2"]
    model = scramble(aim.wrap_image_model(case.model(), FRAMES)).eval()
    with torch.no_grad():
        before = model(case.video(frames=FRAMES))
        weight = model.get_parameter("blocks.0.mlp.fc1.weight")
        weight.data = weight.data.flip(0)
        after = model(case.video(frames=FRAMES))
        aim.set_execution(model, fused=False)
        torch.testing.assert_close(after, model(case.video(frames=FRAMES)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def _tensor(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return found
