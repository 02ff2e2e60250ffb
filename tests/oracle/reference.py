"""What the AIM reference computes, on the tensors of its own checkpoints: einops, explicit softmax, no library of ours.

Written from the paper and the published facts of the reference. Files are made from an image model's weights, under the
reference's names, with random values for everything it trains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.oracle.vit import Size, Weights, gelu, layer_norm, linear

CLIP = Size(eps=1e-5, quick_gelu=True, pre_norm=True, patch_bias=False)
IMAGENET = Size(eps=1e-6)

CLIP_BLOCK = {"norm1": "ln_1", "norm2": "ln_2", "out": "attn.out_proj", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
IMAGENET_BLOCK = {"norm1": "norm1", "norm2": "norm2", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def draws(seed: int) -> Iterator[Tensor]:
    """Draw shapes that are sent in."""
    generator = torch.Generator().manual_seed(seed)
    shape = yield torch.empty(0)
    while True:
        shape = yield 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def with_trained(
    state: Weights,
    *,
    blocks: dict[str, tuple[int, list[str]]],
    norm: str,
    dim: int,
    frames: int | None,
    ratio: float,
    classes: int,
) -> Weights:
    """Add what the reference trains: in each block (its width, and the names of) adapters; norm, embedding, head."""
    draw = draws(5)
    next(draw)
    state = {f"backbone.{key}": tensor for key, tensor in state.items()}
    for at, (width, names) in blocks.items():
        hidden = int(width * ratio)
        for name in names:
            for layer, rows, columns in (("D_fc1", hidden, width), ("D_fc2", width, hidden)):
                state[f"backbone.{at}.{name}.{layer}.weight"] = draw.send((rows, columns))
                state[f"backbone.{at}.{name}.{layer}.bias"] = draw.send((rows,))
    state[f"backbone.{norm}.weight"], state[f"backbone.{norm}.bias"] = 1 + draw.send((dim,)), draw.send((dim,))
    if frames is not None:
        state["backbone.temporal_embedding"] = draw.send((1, frames, dim))
    state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"] = draw.send((classes, dim)), draw.send((classes,))
    return state


def vit_file(
    w: Weights, size: Size, frames: int, *, ratio: float = 0.25, input_adapter: bool = False, classes: int = 7
) -> Weights:
    """Return the state dict of a CLIP ViT (with a pre-norm) or an ImageNet ViT, as the reference saves it."""
    blocks, names = ("transformer.resblocks", CLIP_BLOCK) if size.pre_norm else ("blocks", IMAGENET_BLOCK)
    if size.pre_norm:
        state = {"class_embedding": w["class"], "positional_embedding": w["position"],
                 "conv1.weight": w["patch.weight"], "ln_pre.weight": w["pre_norm.weight"],
                 "ln_pre.bias": w["pre_norm.bias"]}  # fmt: skip
    else:
        state = {"cls_token": w["class"][None, None], "pos_embed": w["position"][None],
                 "patch_embed.proj.weight": w["patch.weight"], "patch_embed.proj.bias": w["patch.bias"]}  # fmt: skip
    for i in range(size.depth):
        for leaf in ("weight", "bias"):
            qkv = "attn.in_proj_" if size.pre_norm else "attn.qkv."
            state[f"{blocks}.{i}.{qkv}{leaf}"] = torch.cat([w[f"{i}.{name}.{leaf}"] for name in "qkv"])
            for ours, theirs in names.items():
                state[f"{blocks}.{i}.{theirs}.{leaf}"] = w[f"{i}.{ours}.{leaf}"]
    adapters = ["T_Adapter", "S_Adapter", "MLP_Adapter", *["T_Adapter_in"] * input_adapter]
    return with_trained(
        state,
        blocks={f"{blocks}.{i}": (size.dim, adapters) for i in range(size.depth)},
        norm="ln_post",
        dim=size.dim,
        frames=frames,
        ratio=ratio,
        classes=classes,
    )


def bare(state: Weights) -> Weights:
    """Return a file's tensors without prefixes and as leaves of one dictionary."""
    return {key.removeprefix("module.").removeprefix("backbone."): tensor for key, tensor in state.items()}


def adapter(w: Weights, name: str, x: Tensor, *, skip: bool) -> Tensor:
    out = linear(w, f"{name}.D_fc2", gelu(linear(w, f"{name}.D_fc1", x)))
    return x + out if skip else out


def attend(weight: Tensor, bias: Tensor, x: Tensor, heads: int, scores_bias: Tensor | float = 0.0) -> Tensor:
    """Attend over the second-last dimension, up to the output projection."""
    q, k, v = rearrange(x @ weight.T + bias, "... n (three h d) -> three ... h n d", three=3, h=heads)
    scores = torch.einsum("... h s d, ... h t d -> ... h s t", q, k) / q.shape[-1] ** 0.5 + scores_bias
    scores = scores - scores.amax(-1, keepdim=True)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return rearrange(torch.einsum("... h s t, ... h t d -> ... h s d", weights, v), "... h n d -> ... n (h d)")


def run_vit(state: Weights, video: Tensor, size: Size, *, scale: float = 0.5) -> tuple[Tensor, Tensor]:
    """Run the reference's ViT on ``[B, T, 3, H, W]``; return features ``[B, D]`` and logits ``[B, K]``."""
    w, clip = bare(state), size.pre_norm
    patch = w["conv1.weight"] if clip else w["patch_embed.proj.weight"]
    x = rearrange(video, "b t c (y p) (x q) -> b t (y x) (c p q)", p=size.patch, q=size.patch)
    x = x @ rearrange(patch, "d c p q -> (c p q) d") + (0.0 if clip else w["patch_embed.proj.bias"])
    token = w["class_embedding" if clip else "cls_token"].flatten().expand(*x.shape[:2], 1, -1)
    position = w["positional_embedding"] if clip else w["pos_embed"][0]
    x = torch.cat([token, x], 2) + position  # [b, t, n, d]
    x = x + rearrange(w["temporal_embedding"], "1 t d -> t 1 d")
    if clip:
        x = layer_norm(w, "ln_pre", x, size.eps)
    for i in range(size.depth):
        at = f"transformer.resblocks.{i}" if clip else f"blocks.{i}"
        name = {ours: f"{at}.{theirs}" for ours, theirs in (CLIP_BLOCK if clip else IMAGENET_BLOCK).items()}
        qkv = [w[f"{at}.attn.{'in_proj_' if clip else 'qkv.'}{leaf}"] for leaf in ("weight", "bias")]
        xt = layer_norm(w, name["norm1"], rearrange(x, "b t n d -> b n t d"), size.eps)
        if f"{at}.T_Adapter_in.D_fc1.weight" in w:
            xt = adapter(w, f"{at}.T_Adapter_in", xt, skip=True)
        xt = adapter(w, f"{at}.T_Adapter", linear(w, name["out"], attend(*qkv, xt, size.heads)), skip=False)
        x = x + rearrange(xt, "b n t d -> b t n d")
        xs = linear(w, name["out"], attend(*qkv, layer_norm(w, name["norm1"], x, size.eps), size.heads))
        x = x + adapter(w, f"{at}.S_Adapter", xs, skip=True)
        h = layer_norm(w, name["norm2"], x, size.eps)
        hidden = linear(w, name["fc1"], h)
        hidden = hidden / (1 + torch.exp(-1.702 * hidden)) if clip else gelu(hidden)
        x = x + linear(w, name["fc2"], hidden) + scale * adapter(w, f"{at}.MLP_Adapter", h, skip=False)
    features = layer_norm(w, "ln_post", x, size.eps)[:, :, 0].mean(1)
    return features, linear(w, "cls_head.fc_cls", features)


def swin_file(
    timm: Weights, *, depths: tuple[int, ...], heads: tuple[int, ...], window: int, frames: int, tubelet: int = 2
) -> Weights:
    """Return the state dict of a Swin as the reference saves it, buffers and all, from the weights of timm's."""
    steps, state, blocks, draw = frames // tubelet, {}, {}, draws(6)
    next(draw)
    for key, tensor in timm.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)  # timm merges where a stage starts, the reference where one ends
        if key == "patch_embed.proj.weight":
            tensor = tensor[:, :, None].repeat(1, 1, tubelet, 1, 1) / tubelet
        if parts[0] not in ("head", "norm"):
            state[".".join(parts)] = tensor
    coordinates = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    distance = coordinates[:, :, None] - coordinates[:, None] + window - 1
    dim = state["patch_embed.norm.weight"].shape[0]
    for stage, depth in enumerate(depths):
        for j in range(depth):
            at = f"layers.{stage}.blocks.{j}"
            blocks[at] = (dim * 2**stage, ["S_Adapter", "S_Adapter2", *["T_Adapter"] * (j % 2 == 0)])
            state[f"{at}.attn.relative_position_index"] = distance[0] * (2 * window - 1) + distance[1]
            if j % 2 == 0:
                t = torch.arange(steps)
                state[f"{at}.attn.t_relative_coords"] = (t[:, None] - t[None, :] + steps - 1).flatten()
                state[f"{at}.attn.temporal_position_bias_table"] = draw.send((2 * steps - 1, heads[stage]))
            else:
                state[f"{at}.attn_mask"] = torch.zeros(4, window**2, window**2)
    width = dim * 2 ** (len(depths) - 1)
    return with_trained(state, blocks=blocks, norm="norm", dim=width, frames=None, ratio=0.25, classes=7)


def run_swin(
    state: Weights,
    video: Tensor,
    *,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    window: int,
    scale: float = 0.5,
    eps: float = 1e-5,
) -> Tensor:
    """Run the reference's Swin on ``[B, T, 3, H, W]``; return logits ``[B, K]``."""
    w = bare(state)
    kernel = w["patch_embed.proj.weight"]
    x = F.conv3d(video.transpose(1, 2), kernel, w["patch_embed.proj.bias"], stride=kernel.shape[2:])
    x = layer_norm(w, "patch_embed.norm", rearrange(x, "b d t h w -> b t h w d"), eps)
    for stage, depth in enumerate(depths):
        for j in range(depth):
            at = f"layers.{stage}.blocks.{j}"
            qkv = (w[f"{at}.attn.qkv.weight"], w[f"{at}.attn.qkv.bias"])
            if j % 2 == 0:
                t = x.shape[1]
                table = w[f"{at}.attn.temporal_position_bias_table"]
                bias = rearrange(table[w[f"{at}.attn.t_relative_coords"]], "(s u) h -> h s u", s=t)
                xt = layer_norm(w, f"{at}.norm1", rearrange(x, "b t h w d -> b h w t d"), eps)
                xt = linear(w, f"{at}.attn.proj", attend(*qkv, xt, heads[stage], bias))
                x = x + rearrange(adapter(w, f"{at}.T_Adapter", xt, skip=False), "b h w t d -> b t h w d")
            shift = window // 2 if j % 2 and x.shape[2] > window else 0
            h = torch.roll(layer_norm(w, f"{at}.norm1", x, eps), (-shift, -shift), (2, 3))
            h = rearrange(h, "b t (y m) (x n) d -> b t y x (m n) d", m=window, n=window)
            index = w[f"{at}.attn.relative_position_index"]
            bias = rearrange(w[f"{at}.attn.relative_position_bias_table"][index], "s u h -> h s u")
            if shift:
                marks = torch.zeros(x.shape[2:4])
                edges = [slice(0, -window), slice(-window, -shift), slice(-shift, None)]
                for region, (rows, columns) in enumerate((r, c) for r in edges for c in edges):
                    marks[rows, columns] = region
                marks = rearrange(marks, "(y m) (x n) -> y x (m n)", m=window, n=window)
                apart = marks[..., :, None] != marks[..., None, :]
                bias = bias + rearrange(apart * -100.0, "y x s u -> y x 1 s u")
            h = linear(w, f"{at}.attn.proj", attend(*qkv, h, heads[stage], bias))
            h = adapter(w, f"{at}.S_Adapter2", h, skip=True)
            h = rearrange(h, "b t y x (m n) d -> b t (y m) (x n) d", m=window, n=window)
            x = x + torch.roll(h, (shift, shift), (2, 3))
            h = layer_norm(w, f"{at}.norm2", x, eps)
            mlp = linear(w, f"{at}.mlp.fc2", gelu(linear(w, f"{at}.mlp.fc1", h)))
            x = x + mlp + scale * adapter(w, f"{at}.S_Adapter", h, skip=False)
        if stage + 1 < len(depths):
            at = f"layers.{stage}.downsample"
            corners = [x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]]
            x = layer_norm(w, f"{at}.norm", torch.cat(corners, -1), eps) @ w[f"{at}.reduction.weight"].T
    features = layer_norm(w, "norm", x, eps).mean((1, 2, 3))
    return linear(w, "cls_head.fc_cls", features)
