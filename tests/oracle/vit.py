"""The plainest possible AIM ViT, written from the paper: einops, explicit softmax, no library of ours.

Weights lie in one dictionary under names of its own; adapters under the keys of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """A small ViT."""

    image: int = 16
    patch: int = 8
    dim: int = 32
    heads: int = 2
    depth: int = 2
    mlp: int = 64
    classes: int = 5
    eps: float = 1e-6
    quick_gelu: bool = False
    pre_norm: bool = False
    layer_scale: bool = False
    patch_bias: bool = True


def random_weights(size: Size, seed: int = 0) -> Weights:
    """Return weights of an image model, float64, nothing zero."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int, mean: float = 0.0) -> Tensor:
        return mean + 0.2 * torch.randn(shape, generator=g, dtype=torch.float64)

    d, tokens = size.dim, (size.image // size.patch) ** 2 + 1
    w = {
        "patch.weight": draw(d, 3, size.patch, size.patch),
        "class": draw(d),
        "position": draw(tokens, d),
        "norm.weight": draw(d, mean=1.0),
        "norm.bias": draw(d),
        "head.weight": draw(size.classes, d),
        "head.bias": draw(size.classes),
    }
    if size.patch_bias:
        w["patch.bias"] = draw(d)
    if size.pre_norm:
        w |= {"pre_norm.weight": draw(d, mean=1.0), "pre_norm.bias": draw(d)}
    for i in range(size.depth):
        for name in ("norm1", "norm2"):
            w |= {f"{i}.{name}.weight": draw(d, mean=1.0), f"{i}.{name}.bias": draw(d)}
        for name, rows, columns in (
            ("q", d, d), ("k", d, d), ("v", d, d), ("out", d, d), ("fc1", size.mlp, d), ("fc2", d, size.mlp),
        ):  # fmt: skip
            w |= {f"{i}.{name}.weight": draw(rows, columns), f"{i}.{name}.bias": draw(rows)}
        if size.layer_scale:
            w |= {f"{i}.ls1": draw(d, mean=0.5), f"{i}.ls2": draw(d, mean=0.5)}
    return w


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def adapter(a: Weights, name: str, x: Tensor, *, skip: bool) -> Tensor:
    out = linear(a, f"{name}.up_proj", gelu(linear(a, f"{name}.down_proj", x)))
    return x + out if skip else out


def attention(w: Weights, i: int, x: Tensor, size: Size) -> Tensor:
    """Multi-head self-attention over the second-last dimension of ``x``, then LayerScale."""
    q, k, v = (rearrange(linear(w, f"{i}.{n}", x), "... n (h d) -> ... h n d", h=size.heads) for n in "qkv")
    scores = torch.einsum("... h s d, ... h t d -> ... h s t", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = rearrange(torch.einsum("... h s t, ... h t d -> ... h s d", weights, v), "... h n d -> ... n (h d)")
    out = linear(w, f"{i}.out", mixed)
    return out * w[f"{i}.ls1"] if size.layer_scale else out


def mlp(w: Weights, i: int, x: Tensor, size: Size) -> Tensor:
    hidden = linear(w, f"{i}.fc1", x)
    hidden = hidden * torch.sigmoid(1.702 * hidden) if size.quick_gelu else gelu(hidden)
    out = linear(w, f"{i}.fc2", hidden)
    return out * w[f"{i}.ls2"] if size.layer_scale else out


def aim_vit(w: Weights, a: Weights, video: Tensor, size: Size, *, scale: float = 0.5) -> tuple[Tensor, Tensor]:
    """Run AIM on a video.

    Args:
        w: The image model.
        a: Adapters, temporal embedding, and the trained copies ``norm.*`` and ``head.*``, by checkpoint key.
        video: ``[B, T, 3, H, W]``.
        size: Sizes.
        scale: ``s`` of Eq. 5.

    Returns:
        Features ``[B, D]`` averaged over frames, and logits ``[B, K]``.
    """
    b, t = video.shape[:2]
    patches = rearrange(video, "b t c (h p) (w q) -> b t (h w) (c p q)", p=size.patch, q=size.patch)
    x = patches @ rearrange(w["patch.weight"], "d c p q -> (c p q) d")
    if size.patch_bias:
        x = x + w["patch.bias"]
    x = torch.cat([repeat(w["class"], "d -> b t 1 d", b=b, t=t), x], dim=2) + w["position"]  # [b, t, n, d]
    x = x + rearrange(a["temporal_embedding"], "1 t d -> 1 t 1 d")
    if size.pre_norm:
        x = layer_norm(w, "pre_norm", x, size.eps)
    for i in range(size.depth):
        xt = layer_norm(w, f"{i}.norm1", rearrange(x, "b t n d -> b n t d"), size.eps)
        if f"blocks.{i}.temporal_input.down_proj.weight" in a:
            xt = adapter(a, f"blocks.{i}.temporal_input", xt, skip=True)
        xt = adapter(a, f"blocks.{i}.temporal", attention(w, i, xt, size), skip=False)
        x = x + rearrange(xt, "b n t d -> b t n d")  # Eq. 3
        xs = attention(w, i, layer_norm(w, f"{i}.norm1", x, size.eps), size)
        x = x + adapter(a, f"blocks.{i}.spatial", xs, skip=True)  # Eq. 4
        h = layer_norm(w, f"{i}.norm2", x, size.eps)
        x = x + mlp(w, i, h, size) + scale * adapter(a, f"blocks.{i}.joint", h, skip=False)  # Eq. 5
    features = layer_norm(a, "norm", x[:, :, 0], size.eps).mean(1)
    return features, linear(a, "head", features) if "head.weight" in a else features
