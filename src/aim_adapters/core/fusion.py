"""How the branches of an adapted block run: fused, with all that they are made of, or as modules, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import AttentionParts, BlockAnatomy, MlpParts, Windows, has_hooks
from aim_adapters.core.state import BlockState
from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.layers import Adapter, keep_clips, relative_temporal_bias
from aim_adapters.ops import spatial_attention as spatial
from aim_adapters.ops.branches import (
    AdapterTensors,
    AttentionPlan,
    AttentionTensors,
    BranchTensors,
    ChainPlan,
    MlpPlan,
    MlpTensors,
    TrainedTensors,
    WindowTensors,
    flash_takes,
    run_branches,
    tile,
    without_base,
)
from aim_adapters.ops.device import exporting, triton_missing
from aim_adapters.ops.temporal_attention import case_of, choose

DEVICES = ("cpu", "cuda")
_ON_GPU = (torch.bfloat16, torch.float16, torch.float32)
_MOST_IN_FP8 = 16384


class FusedBranch(NamedTuple):
    """A branch that runs fused.

    Attributes:
        plan: What is not a tensor.
        tensors: Its tensors. The factor of each clip is not drawn yet: branches draw when they run, so that all ways to
            run draw the same.
        drops: It drops clips (stochastic depth).
    """

    plan: AttentionPlan | MlpPlan
    tensors: BranchTensors
    drops: bool = False

    def after(self, chain: list[FusedBranch]) -> FusedBranch:
        """Return the same without the frozen layers that the branch in front gives: both passes attend by one layer."""
        if not chain or not isinstance(self.plan, AttentionPlan):
            return self
        return FusedBranch(self.plan.sharing(), self.tensors.sharing(), self.drops)

    def drawn(self, block: Any, x: Tensor) -> BranchTensors:
        """Return the tensors with the stochastic depth of each clip of ``x``, if the branch drops clips."""
        if not self.drops:
            return self.tensors
        clips = x.shape[0] // block.aim.root_state.num_frames
        factor = x.new_empty(clips, dtype=torch.promote_types(compute_dtype(x), torch.float32))
        frozen, trained, _, windows = self.tensors
        return BranchTensors(frozen, trained, keep_clips(factor, block.aim.drop_path), windows)


class ByModules(NamedTuple):
    """A branch that runs as the image model's own modules.

    Attributes:
        reason: Why it does not run fused.
    """

    reason: str


Branch = FusedBranch | ByModules | None


class Branches(NamedTuple):
    """How the branches of a block run; None where there is none.

    Attributes:
        temporal: Attention over frames, Eq. 3.
        spatial: Attention over tokens, Eq. 4.
        mlp: The MLP and the joint adapter, Eq. 5.
    """

    temporal: Branch
    spatial: Branch
    mlp: Branch


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
    for held in getattr(block, block.aim_spec.attention).parameters():
        return held.dtype if held.dtype == compute_dtype(x) else x.dtype
    return x.dtype


def run_fused(block: Any, x: Tensor, chain: list[FusedBranch]) -> Tensor:
    """Run fused branches of a block, one after another, as one step.

    Args:
        block: The block.
        x: Its tokens ``[B*T, ..., D]``.
        chain: The branches.
    """
    state, dtype = block.aim.root_state, str(compute_dtype(x)).removeprefix("torch.")
    plan = ChainPlan(
        tuple(branch.plan for branch in chain),
        state.num_frames,
        dtype,
        state.execution.memory,
        frozen_precision=state.execution.frozen_precision,
    )
    tokens = x.flatten(1, -2)  # [B*T, N, D]
    out = run_branches(tokens, [branch.drawn(block, x) for branch in chain], plan)
    return out if x.ndim == 3 else without_base(out, x.shape)


def fused_branches(block: Any, x: Tensor, *, positions: bool) -> Branches:
    """Return how each branch of a block runs.

    Args:
        block: An adapted block.
        x: Its tokens ``[B*T, ..., D]``.
        positions: It was called with further arguments for its spatial attention.

    Raises:
        UnsupportedKernelError: ``fused=True`` or ``frozen_precision="fp8"`` was asked for, and a branch cannot be.
    """
    aim: BlockState = block.aim
    execution = aim.root_state.execution
    branches = _branches(block, x, positions=positions)
    if aim.temporal is None:
        branches = Branches(None, branches.spatial, branches.mlp)
    if execution.fused is True:
        _require_fused(branches, aim, "fused=True", "fused='auto', which runs it as modules")
    if execution.frozen_precision == "fp8":
        branches = Branches(*(_in_fp8(branch, x) for branch in branches))
        instead = "frozen_precision='auto', which computes it in the dtype of its tokens"
        _require_fused(branches, aim, "frozen_precision='fp8'", instead)
    return branches


def _branches(block: Any, x: Tensor, *, positions: bool) -> Branches:
    anatomy: BlockAnatomy = block.aim_spec
    reason = "asked for by name" if block.aim.root_state.execution.fused is False else _unfit(x)
    parts = None if reason is not None or anatomy.parts is None else anatomy.parts(block, anatomy)
    if parts is None:
        return Branches(*(ByModules(reason or "this family's parts are not described") for _ in Branches._fields))
    attention, mlp = parts.attention, _mlp(block, parts.mlp)
    if isinstance(attention, str):
        return Branches(ByModules(attention), ByModules(attention), mlp)
    frozen = attention_tensors(attention)
    temporal = None if block.aim.temporal is None else _temporal(block, x, attention, frozen)
    return Branches(temporal, _spatial(block, x, attention, frozen, positions=positions), mlp)


def _require_fused(branches: Branches, aim: BlockState, asked: str, instead: str) -> None:
    for name, branch in zip(("temporal", "spatial", "MLP"), branches, strict=True):
        if isinstance(branch, ByModules):
            raise UnsupportedKernelError(
                f"{asked} was asked for, but the {name} branch of {aim.key.rstrip('.')!r} cannot be: {branch.reason}; "
                f"use {instead}"
            )


def _in_fp8(branch: Branch, x: Tensor) -> Branch:
    """Return a branch if its products can be computed in float8, or why they cannot."""
    if not isinstance(branch, FusedBranch) or (reason := _unfit_for_fp8(branch, x)) is None:
        return branch
    return ByModules(reason)


def fp8_missing() -> str | None:
    """Return why this machine's GPU cannot multiply float8, or None.

    Looked up once, at the latest when float8 is asked for: ``torch.compile`` cannot trace how.
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


def _unfit_for_fp8(branch: FusedBranch, x: Tensor) -> str | None:
    device, dtype, frozen = x.device, compute_dtype(x), branch.tensors.frozen
    assert frozen is not None
    weight = frozen.qkv_weight if isinstance(frozen, AttentionTensors) else frozen.in_weight
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
    if exporting():
        return "an exported model must run without this package"
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "fused branches have no rules for function transforms"
    return None


def _temporal(block: Any, x: Tensor, parts: AttentionParts, frozen: AttentionTensors) -> Branch:
    aim, state = block.aim, block.aim.root_state
    if aim.temporal_input is not None:
        return ByModules("it has an adapter in front of its attention")
    heads, dtype = parts.heads, compute_dtype(x)
    width = parts.qkv_weight.shape[0] // 3 // heads
    choice = choose(state.execution.attention, case_of(x.device.type, dtype, width, state.num_frames))
    if choice.implementation == "sdpa":
        return ByModules(f"its attention runs as 'sdpa': {choice.reason}")
    plan = AttentionPlan("frames", heads, parts.scale, parts.eps, choice.implementation)
    bias = None if aim.temporal_bias is None else relative_temporal_bias(aim.temporal_bias)
    return _fused(block, plan, frozen, aim.temporal, bias=bias, drop=True)


def _spatial(block: Any, x: Tensor, parts: AttentionParts, frozen: AttentionTensors, *, positions: bool) -> Branch:
    if positions or not (parts.plain or parts.windows):
        return ByModules("its spatial attention knows positions or masks")
    dtype, width = compute_dtype(x), parts.qkv_weight.shape[0] // 3 // parts.heads
    if parts.windows is not None:
        return _windowed(block, x, parts, frozen, parts.windows)
    if not flash_takes(x.device.type, dtype, width):
        return ByModules(f"no fused attention takes heads of width {width} in {dtype} on {x.device.type}")
    tokens = x.flatten(1, -2).shape[1]
    choice = spatial.choose("auto", spatial.case_of(x.device.type, dtype, width, tokens))
    implementation = "triton" if choice.implementation == "triton" else "flash"
    plan = AttentionPlan("tokens", parts.heads, parts.scale, parts.eps, implementation)
    return _fused(block, plan, frozen, block.aim.spatial)


def _windowed(block: Any, x: Tensor, parts: AttentionParts, frozen: AttentionTensors, windows: Windows) -> Branch:
    dtype, device, size = compute_dtype(x), x.device.type, windows.size
    width = parts.qkv_weight.shape[0] // 3 // parts.heads
    # Who asks in general knows no height and width: then several windows are taken to tile a frame.
    height, across = x.shape[1:3] if x.ndim == 4 else (2 * side for side in size)
    tokens = size[0] * size[1]
    if height % size[0] or across % size[1]:
        return ByModules(f"its windows of {size} do not tile {height} x {across} tokens")
    if windows.always_shifted and any(
        s and w >= n for s, w, n in zip(windows.shift, size, (height, across), strict=True)
    ):
        return ByModules(f"it shifts windows of {size} within {height} x {across} tokens")
    choice = spatial.choose("auto", spatial.case_of(device, dtype, width, tokens, added=True))
    if device != "cpu" and (choice.implementation != "triton" or tokens > spatial.MAX_WINDOW_TOKENS):
        return ByModules(
            f"no fused attention takes windows of {tokens} tokens, {width} wide, in {dtype}: {choice.reason}"
        )
    implementation = "triton" if device != "cpu" else "flash"
    plan = AttentionPlan("windows", parts.heads, parts.scale, parts.eps, implementation)
    index, mask = tile(height, across, size, windows.shift, x.device)
    tensors = WindowTensors(windows.bias, mask, index)
    return _fused(block, plan, frozen, block.aim.spatial, windows=tensors)


def _mlp(block: Any, parts: MlpParts | str) -> Branch:
    if isinstance(parts, str):
        return ByModules(parts)
    plan = MlpPlan(parts.activation, parts.eps, block.aim.root_state.config.scale)
    return _fused(block, plan, mlp_tensors(parts), block.aim.joint, drop=True)


def attention_tensors(parts: AttentionParts) -> AttentionTensors:
    """Return the tensors of an attention branch's parts, which have the same names."""
    return AttentionTensors(*(getattr(parts, name) for name in AttentionTensors._fields))


def mlp_tensors(parts: MlpParts) -> MlpTensors:
    """Return the tensors of an MLP branch's parts, which have the same names."""
    return MlpTensors(*(getattr(parts, name) for name in MlpTensors._fields))


def _fused(
    block: Any,
    plan: AttentionPlan | MlpPlan,
    frozen: AttentionTensors | MlpTensors,
    adapter: Adapter | None,
    *,
    bias: Tensor | None = None,
    windows: WindowTensors | None = None,
    drop: bool = False,
) -> Branch:
    fixed = [tensor for tensor in (*frozen, *(windows or ())) if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in fixed):
        return ByModules("a weight of the image model requires a gradient")
    if any(tensor is not None and type(tensor) not in (Tensor, nn.Parameter) for tensor in frozen):
        return ByModules("a weight of the image model is a tensor of another kind, as of a quantized or sharded layer")
    weights = None
    if adapter is not None:
        if not (is_plain(adapter, Adapter) and all(is_plain(layer, nn.Linear) for layer in adapter.children())):
            return ByModules("its adapter is not as it was made: a layer was replaced, or has hooks")
        down, up = adapter.down_proj, adapter.up_proj
        weights = AdapterTensors(down.weight, down.bias, up.weight, up.bias)
        if not all(type(tensor) in (Tensor, nn.Parameter) for tensor in weights):
            return ByModules("its adapter is not as it was made: a weight is missing, or a tensor of another kind")
    drops = drop and adapter is not None and block.training and block.aim.drop_path > 0
    return FusedBranch(plan, BranchTensors(frozen, TrainedTensors(weights, bias), None, windows), drops)


def is_plain(module: nn.Module, expected: type[nn.Module]) -> bool:
    """Return whether a module is exactly of a type and has no hooks."""
    return type(module) is expected and not has_hooks(module)
