"""The plainest possible AIM Swin, written from the paper and the facts of its reference: einops, explicit softmax.

Weights lie under timm's names; adapters under the keys of a checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.oracle.vit import Weights, adapter, gelu, layer_norm, linear

EPS = 1e-5


def attend(w: Weights, at: str, x: Tensor, heads: int, bias: Tensor) -> Tensor:
    """Attend over the second-last dimension of ``x`` with a bias on the scores."""
    qkv = rearrange(linear(w, f"{at}.attn.qkv", x), "... n (three h d) -> three ... h n d", three=3, h=heads)
    q, k, v = qkv
    scores = torch.einsum("... h s d, ... h t d -> ... h s t", q, k) / q.shape[-1] ** 0.5 + bias
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = torch.einsum("... h s t, ... h t d -> ... h s d", weights, v)
    return linear(w, f"{at}.attn.proj", rearrange(mixed, "... h n d -> ... n (h d)"))


def along_time(w: Weights, a: Weights, at: str, i: int, x: Tensor, heads: int) -> Tensor:
    """T-MSA at each location with its own relative bias."""
    t, table = x.shape[1], a[f"blocks.{i}.temporal_bias"]
    bias = torch.stack([torch.stack([table[t - 1 + s - u] for u in range(t)]) for s in range(t)])  # [t, t, heads]
    out = attend(w, at, rearrange(x, "b t h w d -> b h w t d"), heads, rearrange(bias, "s u h -> h s u"))
    return rearrange(out, "b h w t d -> b t h w d")


def in_windows(w: Weights, at: str, x: Tensor, heads: int, window: int, *, shifted: bool) -> Tensor:
    """W-MSA or SW-MSA: zeros pad the map to whole windows, and tokens of different regions do not see one another."""
    h, width = x.shape[2:4]
    shift = window // 2 if shifted and h > window else 0
    pad = (0, 0, 0, -width % window, 0, -h % window)
    padded = F.pad(torch.roll(x, (-shift, -shift), (2, 3)), pad)
    if not torch.equal(torch.tensor(pad), torch.zeros(6, dtype=torch.long)):
        # timm rolls before it pads; torchvision pads before it rolls: the caller asks for neither where both differ
        assert shift == 0
    tokens = rearrange(padded, "b t (y m) (x n) d -> b t y x (m n) d", m=window, n=window)
    table = w[f"{at}.attn.relative_position_bias_table"]
    places = [(m, n) for m in range(window) for n in range(window)]
    rows = [[(m - p + window - 1) * (2 * window - 1) + n - q + window - 1 for p, q in places] for m, n in places]
    bias = rearrange(table[torch.tensor(rows)], "s u h -> h s u")
    if shift:
        marks = torch.arange(padded.shape[2])
        region = (marks >= padded.shape[2] - window).long() + (marks >= padded.shape[2] - shift).long()
        region = rearrange(region[:, None] * 3 + region[None], "(y m) (x n) -> y x (m n)", m=window, n=window)
        bias = bias + (region[..., :, None] != region[..., None, :])[:, :, None] * -100.0  # [y, x, 1, s, u]
    out = rearrange(attend(w, at, tokens, heads, bias), "b t y x (m n) d -> b t (y m) (x n) d", m=window, n=window)
    return torch.roll(out[:, :, :h, :width], (shift, shift), (2, 3))


def aim_swin(
    w: Weights,
    a: Weights,
    video: Tensor,
    *,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    window: int,
    tubelet: int = 1,
    scale: float = 0.5,
) -> Tensor:
    """Run AIM on a video ``[B, T, 3, H, W]``; returns logits ``[B, K]``."""
    # Reference: a patch embedding repeated over the frames of a tubelet and divided by their number.
    video = rearrange(video, "b (t s) c h w -> b t s c h w", s=tubelet).mean(2)
    patch = w["patch_embed.proj.weight"]
    x = rearrange(video, "b t c (h p) (w q) -> b t h w (c p q)", p=patch.shape[2], q=patch.shape[3])
    x = x @ rearrange(patch, "d c p q -> (c p q) d") + w["patch_embed.proj.bias"]
    x = layer_norm(w, "patch_embed.norm", x, EPS)
    i = 0
    for stage, depth in enumerate(depths):
        if stage:
            at = f"layers.{stage}.downsample"
            x = rearrange(x, "b t (h m) (w n) d -> b t h w (n m d)", m=2, n=2)
            x = layer_norm(w, f"{at}.norm", x, EPS) @ w[f"{at}.reduction.weight"].T
        for j in range(depth):
            at, key = f"layers.{stage}.blocks.{j}", f"blocks.{i}"
            if j % 2 == 0:
                xt = along_time(w, a, at, i, layer_norm(w, f"{at}.norm1", x, EPS), heads[stage])
                x = x + adapter(a, f"{key}.temporal", xt, skip=False)
            xs = layer_norm(w, f"{at}.norm1", x, EPS)
            xs = in_windows(w, at, xs, heads[stage], window, shifted=j % 2 == 1)
            x = x + adapter(a, f"{key}.spatial", xs, skip=True)
            h = layer_norm(w, f"{at}.norm2", x, EPS)
            mlp = linear(w, f"{at}.mlp.fc2", gelu(linear(w, f"{at}.mlp.fc1", h)))
            x = x + mlp + scale * adapter(a, f"{key}.joint", h, skip=False)
            i += 1
    features = layer_norm(a, "norm", x, EPS).mean((2, 3)).mean(1)
    return linear(a, "head", features)
