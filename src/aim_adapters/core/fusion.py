"""Say which branches of an adapted block run fused, and gather what they are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import AttentionParts, BlockAnatomy, MlpParts, has_hooks
from aim_adapters.core.state import BlockState
from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.layers import Adapter, keep_clips, relative_temporal_bias
from aim_adapters.ops.branches import FROZEN, AttentionPlan, ChainPlan, MlpPlan, flash_takes, tile
from aim_adapters.ops.device import exporting, triton_missing
from aim_adapters.ops.spatial_attention import api as spatial
from aim_adapters.ops.spatial_attention.tiles import WINDOW
from aim_adapters.ops.temporal_attention import case_of, choose

DEVICES = ("cpu", "cuda")
_ON_GPU = (torch.bfloat16, torch.float16, torch.float32)
_MOST_IN_FP8 = 16384


class Branch(NamedTuple):
    """A branch that runs fused: what is not a tensor, and its tensors, in the order that the operator takes.

    The factor of each clip is not drawn yet: branches draw when they run, so that all ways to run draw the same.
    """

    plan: AttentionPlan | MlpPlan
    tensors: tuple[Tensor | None, ...]
    drops: bool = False

    def after(self, chain: list[Branch]) -> Branch:
        """Return the same without the tensors that the branch in front of it gives: both passes attend by one layer."""
        if not chain or not isinstance(self.plan, AttentionPlan):
            return self
        return Branch(self.plan._replace(shares=True), (None,) * FROZEN + self.tensors[FROZEN:], self.drops)

    def drawn(self, block: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        """Return the tensors with the stochastic depth of each clip of ``x``, if the branch drops clips."""
        if not self.drops:
            return self.tensors
        clips = x.shape[0] // block.aim.root_state.num_frames
        factor = x.new_empty(clips, dtype=torch.promote_types(compute_dtype(x), torch.float32))
        return (*self.tensors[:FROZEN], keep_clips(factor, block.aim.drop_path), *self.tensors[FROZEN + 1 :])


class ByModules(NamedTuple):
    """A branch that runs as the image model's own modules.

    Attributes:
        reason: Why it does not run fused.
    """

    reason: str


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return what products of tokens are computed in: the dtype of an autocast that is on, else their own."""
    device = x.device.type
    if device not in DEVICES or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def token_dtype(block: Any, x: Tensor) -> torch.dtype:
    """Return the dtype of the tokens between blocks: under autocast, that in which the frozen weights are held.

    Norms return float32 under autocast, also a norm in front of the first block; where the weights are held in the
    dtype of autocast, so are the tokens.
    """
    # Layers that others have quantized may have no parameters.
    held = next(getattr(block, block.aim_spec.attention).parameters(), x).dtype
    return held if held == compute_dtype(x) else x.dtype


def chain_plan(block: Any, x: Tensor, branches: tuple[AttentionPlan | MlpPlan, ...]) -> ChainPlan:
    """Describe branches of a block that follow one another."""
    shared = block.aim.root_state
    dtype = str(compute_dtype(x)).removeprefix("torch.")
    return ChainPlan(
        branches, shared.num_frames, dtype, shared.execution.memory, products=shared.execution.frozen_precision
    )


def fused_branches(block: Any, x: Tensor, *, positions: bool) -> tuple[Branch | ByModules | None, ...]:
    """Return for the temporal, the spatial and the MLP branch: itself; or why it runs as modules; None: there is none.

    Args:
        block: An adapted block.
        x: Its tokens ``[B*T, ..., D]``.
        positions: It was called with further arguments for its spatial attention.

    Raises:
        UnsupportedKernelError: ``fused=True`` or ``frozen_precision="fp8"`` was asked for, and one cannot be.
    """
    aim: BlockState = block.aim
    anatomy: BlockAnatomy = block.aim_spec
    shared = aim.root_state
    general = "asked for by name" if shared.execution.fused is False else _unfit(x)
    found: list[Branch | str | None] = [general, general, general]
    if general is None:
        parts = None if anatomy.parts is None else anatomy.parts(block, anatomy)
        if parts is None:
            found = ["this family's parts are not described"] * 3
        else:
            found = [
                None if aim.temporal is None else _temporal(block, x, parts.attention),
                _spatial(block, x, parts.attention, positions=positions),
                _mlp(block, x, parts.mlp),
            ]
    if aim.temporal is None:
        found[0] = None
    if shared.execution.fused is True:
        _demand(found, aim, "fused=True", "fused='auto', which runs it as modules")
    if shared.execution.frozen_precision == "fp8":
        found = [each if not isinstance(each, Branch) else _unfit_for_fp8(each, x) or each for each in found]
        _demand(
            found,
            aim,
            "frozen_precision='fp8'",
            "frozen_precision='auto', which computes it in the dtype of its tokens",
        )
    return tuple(ByModules(each) if isinstance(each, str) else each for each in found)


def _demand(found: list[Branch | str | None], aim: BlockState, asked: str, instead: str) -> None:
    for name, each in zip(("temporal", "spatial", "MLP"), found, strict=True):
        if isinstance(each, str):
            raise UnsupportedKernelError(
                f"{asked} was asked for, but the {name} branch of {aim.key.rstrip('.')!r} cannot be: {each}; "
                f"use {instead}"
            )


def fp8_missing() -> str | None:
    """Say why this machine's GPU cannot multiply float8, or None.

    Looked up once, at the latest when float8 is asked for: ``torch.compile`` cannot trace how the answer came about.
    """
    if not torch.cuda.is_available():
        return "float8 needs a CUDA device"
    if not _fp8_missing:
        fits = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 9)
        _fp8_missing.append(
            None if fits else "float8 needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper)"
        )
    return _fp8_missing[0]


_fp8_missing: list[str | None] = []


def _unfit_for_fp8(branch: Branch, x: Tensor) -> str | None:
    device, dtype, weight = x.device, compute_dtype(x), branch.tensors[2]
    assert weight is not None
    if device.type != "cuda":  # where kernels are interpreted, so is float8: for tests
        return triton_missing(device.type) and f"float8 needs a CUDA device, got {device.type}"
    if (missing := fp8_missing()) is not None:
        return missing
    if dtype != torch.bfloat16:
        return f"float8 products return torch.bfloat16, got {dtype}; use torch.autocast"
    if any(side % 16 or side > _MOST_IN_FP8 for side in weight.shape):
        return f"float8 needs widths that are multiples of 16 up to {_MOST_IN_FP8}, got {tuple(weight.shape)}"
    return None


def _unfit(x: Tensor) -> str | None:
    device, dtype = x.device.type, compute_dtype(x)
    if device not in DEVICES:
        return f"fused branches need a CUDA device or a CPU, got {device}"
    if device == "cuda":
        missing = triton_missing(device)
        if missing is not None:
            return missing
        if dtype not in _ON_GPU:
            return f"on a GPU fused branches compute in {', '.join(map(str, _ON_GPU))}, got {dtype}"
    if exporting() or torch._C._get_tracing_state() is not None:
        return "an exported model must run without this package"
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "fused branches have no rules for function transforms"
    return None


def _temporal(block: Any, x: Tensor, parts: AttentionParts | str) -> Branch | str:
    aim, shared = block.aim, block.aim.root_state
    if isinstance(parts, str):
        return parts
    if aim.temporal_input is not None:
        return "it has an adapter in front of its attention"
    heads, dtype = parts.heads, compute_dtype(x)
    width = parts.qkv_weight.shape[0] // 3 // heads
    choice = choose(shared.execution.attention, case_of(x.device.type, dtype, width, shared.num_frames))
    if choice.implementation == "sdpa":
        return f"its attention runs as 'sdpa': {choice.reason}"
    plan = AttentionPlan("frames", heads, parts.scale, parts.eps, True, choice.implementation)
    bias = None if aim.temporal_bias is None else relative_temporal_bias(aim.temporal_bias)
    return _branch(block, plan, parts.tensors(), aim.temporal, bias=bias, drop=True)


def _spatial(block: Any, x: Tensor, parts: AttentionParts | str, *, positions: bool) -> Branch | str:
    if isinstance(parts, str):
        return parts
    if positions or not (parts.plain or parts.windows):
        return "its spatial attention knows positions or masks"
    dtype, width = compute_dtype(x), parts.qkv_weight.shape[0] // 3 // parts.heads
    if parts.windows is not None:
        return _windowed(block, x, parts, width)
    if not flash_takes(x.device.type, dtype, width):
        return f"no fused attention takes heads of width {width} in {dtype} on {x.device.type}"
    adapter, tokens = block.aim.spatial, x.flatten(1, -2).shape[1]
    choice = spatial.choose("auto", spatial.case_of(x.device.type, dtype, width, tokens))
    implementation = "triton" if choice.implementation == "triton" else "flash"
    plan = AttentionPlan("tokens", parts.heads, parts.scale, parts.eps, adapter is not None, implementation)
    return _branch(block, plan, parts.tensors(), adapter)


def _windowed(block: Any, x: Tensor, parts: AttentionParts, width: int) -> Branch | str:
    windows, adapter, dtype, device = parts.windows, block.aim.spatial, compute_dtype(x), x.device.type
    assert windows is not None
    # Who asks in general knows no height and width: then several windows are taken to tile a frame.
    height, across = x.shape[1:3] if x.ndim == 4 else (2 * side for side in windows.size)
    tokens = windows.size[0] * windows.size[1]
    if height % windows.size[0] or across % windows.size[1]:
        return f"its windows of {windows.size} do not tile {height} x {across} tokens"
    if windows.always_shifted and any(
        s and w >= n for s, w, n in zip(windows.shift, windows.size, (height, across), strict=True)
    ):
        return f"it shifts windows of {windows.size} within {height} x {across} tokens"
    choice = spatial.choose("auto", spatial.case_of(device, dtype, width, tokens, added=True))
    if device != "cpu" and (choice.implementation != "triton" or tokens > WINDOW):
        return f"no fused attention takes windows of {tokens} tokens, {width} wide, in {dtype}: {choice.reason}"
    implementation = "triton" if device != "cpu" else "flash"
    plan = AttentionPlan("windows", parts.heads, parts.scale, parts.eps, adapter is not None, implementation)
    index, mask = tile(height, across, windows.size, windows.shift, x.device)
    return _branch(block, plan, parts.tensors(), adapter, windows=(windows.bias, mask, index))


def _mlp(block: Any, x: Tensor, parts: MlpParts | str) -> Branch | str:
    if isinstance(parts, str):
        return parts
    adapter, scale = block.aim.joint, block.aim.root_state.config.scale
    plan = MlpPlan(parts.activation, parts.eps, adapter is not None, scale)
    return _branch(block, plan, parts.tensors(), adapter, drop=True)


def _branch(
    block: Any,
    plan: AttentionPlan | MlpPlan,
    frozen: tuple[Tensor | None, ...],
    adapter: Adapter | None,
    *,
    bias: Tensor | None = None,
    windows: tuple[Tensor | None, ...] = (None, None, None),
    drop: bool = False,
) -> Branch | str:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (*frozen, *windows)):
        return "a weight of the image model requires a gradient"
    if any(tensor is not None and type(tensor) not in (Tensor, nn.Parameter) for tensor in frozen):
        return "a weight of the image model is a tensor of another kind, as of a quantized or sharded layer"
    trained: tuple[Tensor | None, ...] = (None,) * 4
    if adapter is not None:
        if not (is_plain(adapter, Adapter) and all(is_plain(each, nn.Linear) for each in adapter.children())):
            return "its adapter is not as it was made: a layer was replaced, or has hooks"
        down, up = adapter.down_proj, adapter.up_proj
        trained = (down.weight, down.bias, up.weight, up.bias)
        if not all(type(tensor) in (Tensor, nn.Parameter) for tensor in trained):
            return "its adapter is not as it was made: a weight is missing, or a tensor of another kind"
    drops = drop and adapter is not None and block.training and block.aim.drop_path > 0
    return Branch(plan, (*frozen, None, *trained, bias, *windows), drops)


def is_plain(module: nn.Module, expected: type[nn.Module]) -> bool:
    """Tell whether a module is exactly of a type and nothing listens to its calls."""
    return type(module) is expected and not has_hooks(module)
