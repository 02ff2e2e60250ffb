"""The adapted block computes Eq. 3-5, checked against the plainest possible writing of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import aim_adapters as aim
from tests.backbones.cases import wake

T, H = 4, 2
SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": H, "num_classes": 5, "init_values": 0.3,
}  # fmt: skip


def video_model(**kwargs: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(VisionTransformer(**SIZE).double(), T, **kwargs)).eval()


def adapter(w: dict[str, Tensor], name: str, x: Tensor, *, skip: bool) -> Tensor:
    down = x @ w[f"aim.{name}.down_proj.weight"].T + w[f"aim.{name}.down_proj.bias"]
    hidden = 0.5 * down * (1 + torch.erf(down / 2**0.5))
    out = hidden @ w[f"aim.{name}.up_proj.weight"].T + w[f"aim.{name}.up_proj.bias"]
    return x + out if skip else out


def convolution(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Each channel over the frames of a clip, and GELU, on tokens [B*T, N, D]."""
    down = x @ w["aim.temporal_conv.down_proj.weight"].T + w["aim.temporal_conv.down_proj.bias"]
    by_place = rearrange(down, "(b t) n w -> (b n) w t", t=T)
    kernel = w["aim.temporal_conv.conv_weight"][:, None]
    out = F.conv1d(by_place, kernel, w["aim.temporal_conv.conv_bias"], padding="same", groups=len(kernel))
    hidden = rearrange(F.gelu(out), "(b n) w t -> (b t) n w", n=x.shape[1])
    return hidden @ w["aim.temporal_conv.up_proj.weight"].T + w["aim.temporal_conv.up_proj.bias"]


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Multi-head self-attention over the second-last dimension, then LayerScale."""
    qkv = x @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
    q, k, v = rearrange(qkv, "... n (three h d) -> three ... h n d", three=3, h=H)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    out = rearrange(weights @ v, "... h n d -> ... n (h d)")
    return (out @ w["attn.proj.weight"].T + w["attn.proj.bias"]) * w["ls1.gamma"]


def oracle(
    w: dict[str, Tensor],
    x: Tensor,
    *,
    scale: float = 0.5,
    components: tuple[str, ...] = ("temporal", "spatial", "joint"),
    input_adapter: bool = False,
    convolved: bool = False,
) -> Tensor:
    """Eq. 3-5 on tokens [B*T, N, D]."""
    x = x + convolution(w, x) if convolved else x
    if "temporal" in components:
        xt = norm(w, "norm1", rearrange(x, "(b t) n d -> (b n) t d", t=T))
        if input_adapter:
            xt = adapter(w, "temporal_input", xt, skip=True)
        xt = adapter(w, "temporal", attention(w, xt), skip=False)
        x = x + rearrange(xt, "(b n) t d -> (b t) n d", n=x.shape[1])
    attended = attention(w, norm(w, "norm1", x))
    x = x + (adapter(w, "spatial", attended, skip=True) if "spatial" in components else attended)
    h = norm(w, "norm2", x)
    mlp = F.gelu(h @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    x = x + mlp * w["ls2.gamma"]
    return x + scale * adapter(w, "joint", h, skip=False) if "joint" in components else x


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        ({}, {}),
        ({"scale": 1.25}, {"scale": 1.25}),
        ({"temporal_input_adapter": True}, {"input_adapter": True}),
        ({"components": ("spatial",)}, {"components": ("spatial",)}),
        ({"components": ("temporal",)}, {"components": ("temporal",)}),
        ({"components": ("joint", "temporal")}, {"components": ("temporal", "joint")}),
        ({"temporal": "both"}, {"convolved": True}),
        ({"temporal": "both", "layers": [0], "conv_layers": [1]}, {"components": (), "convolved": True}),
        ({"temporal": "conv", "conv_kernel": 5}, {"components": ("spatial", "joint"), "convolved": True}),
    ],
)
def test_block_computes_equations_3_to_5(attention: Any, wrap: dict[str, Any], options: dict[str, Any]) -> None:
    block = video_model(attention=attention, **wrap).blocks[1]
    weights = {name: tensor.detach().requires_grad_() for name, tensor in block.state_dict().items()}
    ours, theirs = (torch.randn(2 * T, 5, 32, dtype=torch.float64, generator=seed()).requires_grad_() for _ in range(2))
    out, expected = block(ours), oracle(weights, theirs, **options)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(out.shape, dtype=out.dtype, generator=seed())
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    for name, parameter in block.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-9, atol=1e-10)
        else:
            assert parameter.grad is None


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_temporal_embedding_enters_with_the_tokens_before_any_norm() -> None:
    torch.manual_seed(0)
    model = wake(aim.wrap_image_model(VisionTransformer(**SIZE, pre_norm=True).double(), T)).eval()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    video = torch.randn(2, T, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        model(video)
        tokens = model._pos_embed(model.patch_embed(video.flatten(0, 1)))  # [B*T, N, D]
    embedding = model.get_parameter("aim.temporal_embedding")
    expected = tokens + embedding.squeeze(0).repeat(2, 1).unsqueeze(1)
    weights = {"w.weight": model.norm_pre.weight, "w.bias": model.norm_pre.bias}
    torch.testing.assert_close(seen[0], norm(weights, "w", expected), rtol=1e-10, atol=1e-10)


def test_temporal_embedding_enters_at_the_first_adapted_block() -> None:
    model, video = video_model(layers="top_half"), torch.randn(1, T, 3, 16, 16, dtype=torch.float64)
    weights = {name: tensor.detach() for name, tensor in model.blocks[1].state_dict().items()}
    seen: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.extend([args[0], out]))
    with torch.no_grad():
        model(video)
        image = VisionTransformer(**SIZE).double()
        image.load_state_dict({k: v for k, v in model.state_dict().items() if ".aim." not in f".{k}"})
        before = image.blocks[0](image._pos_embed(image.patch_embed(video.flatten(0, 1))))
    torch.testing.assert_close(seen[0], before, rtol=1e-10, atol=1e-10)
    embedding = model.get_parameter("aim.temporal_embedding").squeeze(0).unsqueeze(1)  # [T, 1, D]
    torch.testing.assert_close(seen[1], oracle(weights, before + embedding), rtol=1e-10, atol=1e-10)


def test_drop_path_drops_the_temporal_and_joint_branch_of_whole_clips_only() -> None:
    block = video_model(drop_path=0.5).blocks[1]  # the last block has the full rate
    weights = {name: tensor.detach() for name, tensor in block.state_dict().items()}
    x = torch.randn(T, 5, 32, dtype=torch.float64, generator=seed())
    block.train()
    kept: set[tuple[bool, bool]] = set()
    candidates = {}
    for temporal in (0.0, 2.0):
        for joint in (0.0, 2.0):
            scaled = {**weights, **{n: weights[n] * temporal for n in weights if n.startswith("aim.temporal.up_proj")}}
            candidates[temporal > 0, joint > 0] = oracle(scaled, x, scale=0.5 * joint)
    with torch.no_grad():
        for _ in range(40):
            out = block(x)
            (match,) = [key for key, value in candidates.items() if torch.allclose(out, value, rtol=1e-9, atol=1e-9)]
            kept.add(match)
    assert kept == set(candidates)


def test_drop_path_rate_rises_linearly_with_depth() -> None:
    model = aim.wrap_image_model(VisionTransformer(**{**SIZE, "depth": 5}), T, drop_path=0.2, layers="alternate")
    rates = {i: block.aim.drop_path for i, block in enumerate(model.blocks) if block.aim.joint is not None}
    assert rates == {0: 0.0, 2: pytest.approx(0.1), 4: pytest.approx(0.2)}
