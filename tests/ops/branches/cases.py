"""Branches to test, and the plainest writing of them: every layer by itself, in whatever dtype is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_adapters.ops.branches import (
    AdapterTensors,
    AttentionPlan,
    AttentionTensors,
    BranchTensors,
    ChainPlan,
    MlpPlan,
    MlpTensors,
    PositionTensors,
    TrainedTensors,
    WindowTensors,
    tile,
)

EPS, SCALE = 1e-5, 0.3
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
MEMORY = ("fast", "balanced", "low")
# Windows of 2 x 3 tokens in frames of 4 x 6, shifted.
FRAME, WINDOW, SHIFT = (4, 6), (2, 3), (1, 2)


@dataclass(frozen=True)
class Case:
    """What a branch is made of.

    B clips, T frames, N tokens of width D; H heads of width d, wider or narrower together than D.
    """

    clips: int = 2
    frames: int = 3
    tokens: int = 4
    dim: int = 10
    heads: int = 2
    head_dim: int = 4
    hidden: int = 12
    width: int = 3
    adapter: bool = True
    gamma: bool = True
    biases: bool = True  # of the frozen projections
    affine: bool = True  # of the norm
    factor: bool = False  # stochastic depth
    time_bias: bool = False
    entering: bool = False  # an adapter in front of temporal attention
    head_norm: str = ""  # of queries and keys
    rotary: str = ""  # of the tokens but the first, where attention is over tokens
    per_head: bool = False  # rotation
    inner_norm: str = ""  # of attended values
    place_bias: bool = False  # of all tokens of a frame
    activation: str = "gelu"
    gated: bool = False  # the MLP
    norm: str = "layer"  # in front
    hidden_norm: str = ""  # of the MLP
    linear: bool = False  # adapters

    def tokens_in(self, seed: int = 0) -> Tensor:
        """Return tokens ``[B*T, N, D]``, float64."""
        return draw(seed, self.clips * self.frames, self.tokens, self.dim)

    def chain(self, *branches: AttentionPlan | MlpPlan, dtype: str = "float64", memory: str = "fast") -> ChainPlan:
        """Return a chain of branches."""
        return ChainPlan(branches, self.frames, dtype, memory)

    def attention(self, over: str, *, implementation: str = "", shares: bool = False) -> AttentionPlan:
        """Return a branch as the adapted block asks for it: over frames without inner skip, over others with one."""
        implementation = implementation or ("eager" if over == "frames" else "flash")
        rotary = self.rotary if over == "tokens" else ""
        norms = {"head_norm": self.head_norm, "head_eps": 2 * EPS, "inner_norm": self.inner_norm, "inner_eps": 3 * EPS}
        norms["adapter"] = self.act
        return AttentionPlan(over, self.heads, SCALE, EPS, implementation, shares, self.norm, rotary=rotary, **norms)

    @property
    def act(self) -> str:
        """Return the activation of adapters."""
        return "none" if self.linear else "gelu"

    def mlp(self) -> MlpPlan:
        """Return an MLP branch."""
        return MlpPlan(self.activation, EPS, 0.7, self.norm, self.gated, self.hidden_norm, 2 * EPS, self.act)

    def tensors(self, plan: AttentionPlan | MlpPlan, seed: int = 1) -> BranchTensors:
        """Return the tensors of a branch, float64; those that train require a gradient."""
        d, attends = self.dim, isinstance(plan, AttentionPlan)
        inner = self.heads * self.head_dim if attends else self.hidden
        wide = 3 * inner if attends else inner
        shapes = {
            "norm_weight": (d,), "norm_bias": (d,), "qkv_weight": (wide, d), "qkv_bias": (wide,),
            "in_weight": (wide, d), "in_bias": (wide,), "out_weight": (d, inner), "out_bias": (d,), "gamma": (d,),
            "gate_weight": (wide, d), "gate_bias": (wide,), "inner_weight": (wide,), "inner_bias": (wide,),
        }  # fmt: skip
        kind = AttentionTensors if attends else MlpTensors
        if attends and self.head_norm:
            shapes |= {f"{x}_norm_weight": (self.head_dim,) for x in "qk"}
        if attends and self.head_norm == "layer":
            shapes |= {f"{x}_norm_bias": (self.head_dim,) for x in "qk"}
        if attends and self.inner_norm:
            shapes |= {"inner_weight": (inner,), "inner_bias": (inner,)}
        absent = set(kind._fields) - set(shapes)
        absent |= set() if self.gamma else {"gamma"}
        absent |= set() if self.biases else {"qkv_bias", "in_bias", "out_bias", "gate_bias"}
        absent |= set() if self.affine else {"norm_weight", "norm_bias", "inner_weight", "inner_bias"}
        absent |= set() if self.gated and not attends else {"gate_weight", "gate_bias"}
        absent |= set() if (self.inner_norm if attends else self.hidden_norm) else {"inner_weight", "inner_bias"}
        frozen = kind(*(None if n in absent else 0.5 * draw(seed + i, *shapes[n]) for i, n in enumerate(kind._fields)))
        adapter, bias, entering = None, None, None
        if self.adapter:
            adapter = self.adapter_tensors(self.width, seed + 20)
        if self.entering and attends and plan.over == "frames":
            entering = self.adapter_tensors(self.width + 2, seed + 30, 0.1)  # larger, softmax would be a maximum
        if self.time_bias and attends and plan.over == "frames":
            bias = leaf(seed + 24, self.heads, self.frames, self.frames)
        drops = self.factor and self.adapter and not (attends and plan.over != "frames")
        factor = torch.tensor([0.0, 2.0, 1.25], dtype=torch.float64)[: self.clips] if drops else None
        trained, places = (
            TrainedTensors(adapter, bias, entering),
            (self.windows(plan, seed), self.positions(plan, seed)),
        )
        return BranchTensors(frozen, trained, factor, *places)

    def adapter_tensors(self, width: int, seed: int, size: float = 0.5) -> AdapterTensors:
        """Return the weights of an adapter of a width, which train."""
        shapes = ((width, self.dim), (width,), (self.dim, width), (self.dim,))
        return AdapterTensors(*(leaf(seed + i, *shape, size=size) for i, shape in enumerate(shapes)))

    def windows(self, plan: AttentionPlan | MlpPlan, seed: int) -> WindowTensors | None:
        """Return the bias of windows ``[H, N, N]``, their mask ``[W, N, N]`` and their tokens ``[W, N]``."""
        if isinstance(plan, AttentionPlan) and plan.over == "tokens" and self.place_bias:
            return WindowTensors(draw(seed + 40, self.heads, self.tokens, self.tokens))
        if isinstance(plan, MlpPlan) or plan.over != "windows":
            return None
        assert self.tokens == FRAME[0] * FRAME[1]
        index, mask = tile(*FRAME, WINDOW, SHIFT, torch.device("cpu"))
        return WindowTensors(draw(seed + 40, self.heads, *[WINDOW[0] * WINDOW[1]] * 2), mask, index)

    def positions(self, plan: AttentionPlan | MlpPlan, seed: int) -> PositionTensors | None:
        """Return sines and cosines ``[(H,) N - 1, d]`` of any numbers: an angle for each of two is no part of it."""
        if isinstance(plan, MlpPlan) or not plan.rotary:
            return None
        rows = (self.heads, self.tokens - 1) if self.per_head else (self.tokens - 1,)
        angles = draw(seed + 41, *rows, 2 * self.head_dim)
        return PositionTensors(*angles.chunk(2, -1))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaf(seed: int, *shape: int, size: float = 0.5) -> Tensor:
    """Return a tensor that trains."""
    return (size * draw(seed, *shape)).requires_grad_()


def leaves_of(branches: Sequence[BranchTensors]) -> list[Tensor]:
    """Return every tensor that requires a gradient."""
    return [t for branch in branches for t in branch.trained.present() if t.requires_grad]


def mapped(branches: Sequence[BranchTensors], change: Callable[[Tensor], Tensor]) -> list[BranchTensors]:
    """Return branches with every floating-point tensor changed."""

    def each(tensors: Any) -> Any:
        if tensors is None or isinstance(tensors, Tensor):
            return change(tensors) if tensors is not None and tensors.is_floating_point() else tensors
        return type(tensors)(*map(each, tensors))

    return [each(branch) for branch in branches]


def plain_chain(x: Tensor, branches: Sequence[BranchTensors], plan: ChainPlan) -> Tensor:
    """Compute a chain, each branch with all of its tensors."""
    for branch, tensors in zip(plan.branches, branches, strict=True):
        run = plain_attention if isinstance(branch, AttentionPlan) else plain_mlp
        x = run(x, tensors, branch, plan.num_frames)  # type: ignore[operator]
    return x


def plain_attention(x: Tensor, tensors: BranchTensors, plan: AttentionPlan, num_frames: int) -> Tensor:
    t = tensors.frozen
    assert isinstance(t, AttentionTensors)
    h = plain_norm(x, t.norm_weight, t.norm_bias, plan.norm, plan.eps)
    if tensors.trained.input_adapter is not None:
        h = h + plain_adapter(h, tensors.trained.input_adapter, None, num_frames, plan.adapter)
    qkv = F.linear(h, t.qkv_weight, t.qkv_bias).unflatten(-1, (3, plan.heads, -1))  # [B*T, N, 3, H, d]
    o = plain_attend(plain_heads(qkv, tensors, plan), tensors.trained.temporal_bias, plan, num_frames, tensors.windows)
    o = o.flatten(2)
    if plan.inner_norm:
        o = plain_norm(o, t.inner_weight, t.inner_bias, plan.inner_norm, plan.inner_eps)
    out = F.linear(o, t.out_weight, t.out_bias)
    out = out if t.gamma is None else out * t.gamma
    if tensors.trained.adapter is not None:
        branch = plain_adapter(out, tensors.trained.adapter, tensors.factor, num_frames, plan.adapter)
        out = out + branch if plan.over != "frames" else branch
    return x + out


def plain_heads(qkv: Tensor, tensors: BranchTensors, plan: AttentionPlan) -> Tensor:
    """Normalize and rotate queries and keys of ``[B*T, N, 3, H, d]``."""
    t, parts = tensors.frozen, list(qkv.unbind(2))
    assert isinstance(t, AttentionTensors)
    norms = ((t.q_norm_weight, t.q_norm_bias), (t.k_norm_weight, t.k_norm_bias))
    for index, (weight, bias) in enumerate(norms):
        x = parts[index]
        if plan.head_norm == "layer":
            x = F.layer_norm(x, x.shape[-1:], weight, bias, plan.head_eps)
        elif plan.head_norm == "rms":
            x = F.rms_norm(x, x.shape[-1:], weight, plan.head_eps)
        if plan.rotary:
            assert tensors.positions is not None
            sin, cos = (each if each.ndim == 2 else each.transpose(0, 1) for each in tensors.positions)
            sin, cos = (each.unsqueeze(-2) if each.ndim == 2 else each for each in (sin, cos))  # [N', 1 or H, d]
            first, turned = x[:, :1], x[:, 1:]
            if plan.rotary == "halves":
                other = torch.cat((-turned[..., turned.shape[-1] // 2 :], turned[..., : turned.shape[-1] // 2]), -1)
            else:
                other = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
            x = torch.cat((first, turned * cos.to(x.dtype) + other * sin.to(x.dtype)), 1)
        parts[index] = x.to(qkv.dtype)
    return torch.stack(parts, 2)


def plain_attend(
    qkv: Tensor,
    bias: Tensor | None,
    plan: AttentionPlan,
    num_frames: int,
    windows: WindowTensors | None = None,
) -> Tensor:
    """Attend over frames, tokens or windows of ``[B*T, N, 3, H, d]``; return ``[B*T, N, H, d]``."""
    if plan.over == "windows":
        assert windows is not None
        return plain_windows(qkv, plan, windows)
    if plan.over == "frames":
        q, k, v = qkv.unflatten(0, (-1, num_frames)).permute(3, 0, 2, 4, 1, 5)  # [B, N, H, T, d]
    else:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B*T, H, N, d]
        bias = None if windows is None else windows.bias.to(q.dtype)
    scores = q @ k.mT * plan.scale
    o = (scores if bias is None else scores + bias).softmax(-1) @ v
    return o.permute(0, 3, 1, 2, 4).flatten(0, 1) if plan.over == "frames" else o.transpose(1, 2)


def plain_windows(qkv: Tensor, plan: AttentionPlan, windows: WindowTensors) -> Tensor:
    """Attend within windows one after another."""
    out = torch.zeros_like(qkv[:, :, 0])
    for w, tokens in enumerate(windows.token_index.long()):
        q, k, v = qkv[:, tokens].permute(2, 0, 3, 1, 4)  # [B*T, H, N, d]
        scores = q @ k.mT * plan.scale + windows.bias.to(q.dtype)
        scores = scores if windows.mask is None else scores + windows.mask[w].to(q.dtype)
        out = out.index_copy(1, tokens, (scores.softmax(-1) @ v).transpose(1, 2))
    return out


def plain_mlp(x: Tensor, tensors: BranchTensors, plan: MlpPlan, num_frames: int) -> Tensor:
    t, adapter = tensors.frozen, tensors.trained.adapter
    assert isinstance(t, MlpTensors)
    h = plain_norm(x, t.norm_weight, t.norm_bias, plan.norm, plan.eps)
    out = F.linear(h, t.in_weight, t.in_bias)
    if plan.gated:
        out = out * plain_activation(F.linear(h, t.gate_weight, t.gate_bias), plan.activation)
    else:
        out = plain_activation(out, plan.activation)
    if plan.inner_norm:
        out = plain_norm(out, t.inner_weight, t.inner_bias, plan.inner_norm, plan.inner_eps)
    out = F.linear(out, t.out_weight, t.out_bias)
    out = out if t.gamma is None else out * t.gamma
    if adapter is None:
        return x + out
    return x + out + plan.scale * plain_adapter(h, adapter, tensors.factor, num_frames, plan.adapter)


def plain_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float) -> Tensor:
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    out = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def plain_activation(x: Tensor, kind: str) -> Tensor:
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[kind](x)


def plain_adapter(
    x: Tensor, adapter: AdapterTensors, factor: Tensor | None, num_frames: int, activation: str = "gelu"
) -> Tensor:
    pre = F.linear(x, adapter.down_weight, adapter.down_bias)
    out = F.linear(F.gelu(pre) if activation == "gelu" else pre, adapter.up_weight, adapter.up_bias)
    return out if factor is None else out * factor.to(out.dtype).repeat_interleave(num_frames).view(-1, 1, 1)
