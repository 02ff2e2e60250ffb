"""How the branches of an adapted block run: fused, with all that they are made of, or as modules, and why."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import AttentionParts, BlockAnatomy, Derived, MlpParts, Positions, Windows, made
from aim_adapters.config import Execution
from aim_adapters.core.adapter_tensors import folded, read_adapter
from aim_adapters.core.fp8 import unfit_for_fp8
from aim_adapters.core.places import PLACED, place_tensors, unfit_places
from aim_adapters.core.state import BlockState
from aim_adapters.errors import UnsupportedKernelError
from aim_adapters.layers import Adapter, keep_clips, relative_temporal_bias
from aim_adapters.ops import spatial_attention as spatial
from aim_adapters.ops.branches import (
    AttentionPlan,
    AttentionTensors,
    BranchTensors,
    ChainPlan,
    MlpPlan,
    MlpTensors,
    PositionTensors,
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


class FusedBranch(NamedTuple):
    """A branch that runs fused.

    Attributes:
        plan: What is not a tensor.
        tensors: Its tensors, some of them still to be made of the model's own. The factor of each clip is not drawn
            yet: branches draw when they run, so that all ways to run draw the same.
        drops: It drops clips (stochastic depth).
        derived: Some of the tensors are still to be made.
    """

    plan: AttentionPlan | MlpPlan
    tensors: BranchTensors
    drops: bool = False
    derived: bool = False

    def is_bare(self) -> bool:
        """Return whether it is attention with nothing between norm and output projection, over all tokens."""
        return isinstance(self.plan, AttentionPlan) and self.plan.is_bare() and self.tensors.windows is None

    def at(self, positions: Positions) -> FusedBranch:
        """Return the same with other positions of the same kind."""
        frozen, trained, factor, *_ = self.tensors
        tensors = BranchTensors(frozen, trained, factor, *place_tensors(positions))
        return FusedBranch(self.plan, tensors, self.drops, self.derived)

    def after(self, chain: list[FusedBranch]) -> FusedBranch:
        """Return the same without the frozen layers that the branch in front gives: both passes attend by one layer."""
        if not chain or not isinstance(self.plan, AttentionPlan):
            return self
        if self.plan.adapter == "none" and self.tensors.trained.adapter is None:
            return self  # it may be folded into these layers
        return FusedBranch(self.plan.sharing(), self.tensors.sharing(), self.drops, self.derived)

    def now(self, block: Any, x: Tensor) -> BranchTensors:
        """Return the tensors as they are now, with the stochastic depth of each clip of ``x`` if it drops clips."""
        if not (self.drops or self.derived):
            return self.tensors
        frozen, trained, factor, windows, positions = self.tensors
        if self.derived:
            frozen = None if frozen is None else type(frozen)(*map(made, frozen))
            trained = TrainedTensors(trained.adapter, made(trained.temporal_bias), trained.input_adapter)
            windows = None if windows is None else WindowTensors(*map(made, windows))
        if self.drops:
            clips = x.shape[0] // block.aim.root_state.num_frames
            factor = x.new_empty(clips, dtype=torch.promote_types(compute_dtype(x), torch.float32))
            factor = keep_clips(factor, block.aim.drop_path)
        return BranchTensors(frozen, trained, factor, windows, positions)


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

    def at(self, positions: Positions) -> Branches:
        """Return the same with other positions of the same kind."""
        spatial = self.spatial.at(positions) if isinstance(self.spatial, FusedBranch) else self.spatial
        return Branches(self.temporal, spatial, self.mlp)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return what products of tokens are computed in: the dtype of an autocast that is on, else their own."""
    device = x.device.type
    if device not in DEVICES or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def held_weight(block: Any) -> Tensor | None:
    """Return a weight of a block's attention; None where others have quantized them all away."""
    for held in getattr(block, block.aim_spec.attention).parameters():
        weight: Tensor = held
        return weight
    return None


def dtype_beside(weight: Tensor | None, x: Tensor) -> torch.dtype:
    """Return the dtype of the tokens between blocks: under autocast, that in which the frozen weights are held.

    Norms return float32 under autocast, also a norm in front of the first block; where the weights are held in the
    dtype of autocast, so are the tokens.

    Args:
        weight: What `held_weight` returned.
        x: The tokens as they come.
    """
    return weight.dtype if weight is not None and weight.dtype == compute_dtype(x) else x.dtype


def run_fused(block: Any, x: Tensor, chain: list[FusedBranch]) -> Tensor:
    """Run fused branches of a block, one after another, as one step.

    Args:
        block: The block.
        x: Its tokens ``[B*T, ..., D]``.
        chain: The branches.
    """
    state = block.aim.root_state
    parts = tuple(branch.plan for branch in chain)
    describe = _describe if torch.compiler.is_compiling() else _describe_once
    plan = describe(parts, state.num_frames, compute_dtype(x), state.execution)
    tokens = x if x.ndim == 3 else x.flatten(1, -2)  # [B*T, N, D]
    out = run_branches(tokens, [branch.now(block, x) for branch in chain], plan)
    return out if x.ndim == 3 else without_base(out, x.shape)


def _describe(
    parts: tuple[AttentionPlan | MlpPlan, ...], num_frames: int, dtype: torch.dtype, execution: Execution
) -> ChainPlan:
    name, precision = str(dtype).removeprefix("torch."), execution.frozen_precision
    return ChainPlan(parts, num_frames, name, execution.memory, frozen_precision=precision)


_describe_once = functools.lru_cache(maxsize=1024)(_describe)


def fused_branches(block: Any, x: Tensor, *, positions: Positions | str | None = None) -> Branches:
    """Return how each branch of a block runs.

    Args:
        block: An adapted block.
        x: Its tokens ``[B*T, ..., D]``.
        positions: What its spatial attention reads of places, or why it must run as modules.

    Raises:
        UnsupportedKernelError: ``fused=True`` or ``frozen_precision="fp8"`` was asked for, and a branch of a block with
            adapters cannot be.
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


def _branches(block: Any, x: Tensor, *, positions: Positions | str | None) -> Branches:
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
        if isinstance(branch, ByModules) and aim.adapted:
            raise UnsupportedKernelError(
                f"{asked} was asked for, but the {name} branch of {aim.key.rstrip('.')!r} cannot be: {branch.reason}; "
                f"use {instead}"
            )


def _in_fp8(branch: Branch, x: Tensor) -> Branch:
    """Return a branch if its products can be computed in float8, or why they cannot."""
    if not isinstance(branch, FusedBranch) or branch.tensors.frozen is None:
        return branch
    frozen, plan = branch.tensors.frozen, branch.plan
    if plan.norm != "layer" or (isinstance(plan, MlpPlan) and (plan.gated or plan.inner_norm)):
        return ByModules("float8 products know no RMSNorm, and no MLP that is gated or has a norm inside")
    weight = frozen.qkv_weight if isinstance(frozen, AttentionTensors) else frozen.in_weight
    reason = unfit_for_fp8(x.device, compute_dtype(x), weight.shape)
    return branch if reason is None else ByModules(reason)


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
    heads, dtype = parts.heads, compute_dtype(x)
    width = parts.qkv_weight.shape[0] // 3 // heads
    biased = aim.temporal_bias is not None
    case = case_of(x.device.type, dtype, width, state.num_frames, biased=biased)
    choice = choose(state.execution.attention, case)
    if choice.implementation == "sdpa":
        return ByModules(f"its attention runs as 'sdpa': {choice.reason}")
    plan = _attention_plan(block, "frames", parts, choice.implementation)
    bias = None
    if (table := aim.temporal_bias) is not None:
        bias = Derived(relative_temporal_bias, (table,), (table.shape[1], state.num_frames, state.num_frames))
    return _fused(block, plan, frozen, aim.temporal, bias=bias, entering=aim.temporal_input, drop=True)


def _spatial(
    block: Any,
    x: Tensor,
    parts: AttentionParts,
    frozen: AttentionTensors,
    *,
    positions: Positions | str | None,
) -> Branch:
    if isinstance(positions, str):
        return ByModules(positions)
    described = parts.plain or block.aim_spec.positions is not None
    if not (described or parts.windows) or (positions and parts.windows):
        return ByModules(PLACED)
    dtype, width = compute_dtype(x), parts.qkv_weight.shape[0] // 3 // parts.heads
    if parts.windows is not None:
        return _windowed(block, x, parts, frozen, parts.windows)
    if not flash_takes(x.device.type, dtype, width):
        return ByModules(f"no fused attention takes heads of width {width} in {dtype} on {x.device.type}")
    tokens, places = x.flatten(1, -2).shape[1], positions or Positions()
    if (reason := unfit_places(places, tokens, parts.heads, width)) is not None:
        return ByModules(reason)
    added = places.bias is not None
    choice = spatial.choose("auto", spatial.case_of(x.device.type, dtype, width, tokens, added=added))
    if added and x.device.type != "cpu" and choice.implementation != "triton":
        return ByModules(f"no fused attention takes a position bias of {tokens} tokens: {choice.reason}")
    implementation = "triton" if choice.implementation == "triton" else "flash"
    plan = _attention_plan(block, "tokens", parts, implementation, places.rotary)
    windows, turned = place_tensors(places)
    return _fused(block, plan, frozen, block.aim.spatial, windows=windows, positions=turned)


def _attention_plan(
    block: Any, over: str, parts: AttentionParts, implementation: str, rotary: str = ""
) -> AttentionPlan:
    numbers, norms = (parts.heads, parts.scale, parts.eps), (parts.norm, parts.head_norm, parts.head_eps)
    inner = parts.inner_norm, parts.inner_eps, block.aim.root_state.config.adapter_activation
    return AttentionPlan(over, *numbers, implementation, False, *norms, rotary, *inner)


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
    plan = _attention_plan(block, "windows", parts, implementation)
    index, mask = tile(height, across, size, windows.shift, x.device)
    tensors = WindowTensors(windows.bias, mask, index)  # type: ignore[arg-type]
    return _fused(block, plan, frozen, block.aim.spatial, windows=tensors)


def _mlp(block: Any, parts: MlpParts | str) -> Branch:
    if isinstance(parts, str):
        return ByModules(parts)
    config, gated = block.aim.root_state.config, parts.gate_weight is not None
    inside = gated, parts.inner_norm, parts.inner_eps, config.adapter_activation
    plan = MlpPlan(parts.activation, parts.eps, config.scale, parts.norm, *inside)
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
    bias: Derived | None = None,
    entering: Adapter | None = None,
    windows: WindowTensors | None = None,
    positions: PositionTensors | None = None,
    drop: bool = False,
) -> Branch:
    weights, input_weights = read_adapter(adapter), read_adapter(entering)
    if isinstance(weights, str):
        return ByModules(weights)
    if isinstance(input_weights, str):
        return ByModules(input_weights)
    linear = plan.adapter == "none"
    if any(each is not None and each.linear != linear for each in (adapter, entering)):
        return ByModules("its adapter is not as it was made: it was made linear, or no longer is")
    if linear and adapter is not None and adapter.skip and weights is not None and not torch.is_grad_enabled():
        assert isinstance(frozen, AttentionTensors)  # only spatial adapters have a skip
        frozen, adapter, weights = folded(frozen, weights), None, None
    given: list[Any] = [each for each in (*frozen, *(windows or ()), *(positions or ())) if each is not None]
    derived = [tensor for tensor in given if isinstance(tensor, Derived)]
    fixed = [tensor for tensor in given if not isinstance(tensor, Derived)]
    for each in derived:
        fixed.extend(each.sources)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in fixed):
        return ByModules("a weight of the image model requires a gradient")
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in fixed):
        return ByModules("a weight of the image model is a tensor of another kind, as of a quantized or sharded layer")
    drops = drop and adapter is not None and block.training and block.aim.drop_path > 0
    trained = TrainedTensors(weights, bias, input_weights)  # type: ignore[arg-type]
    tensors = BranchTensors(frozen, trained, None, windows, positions)
    return FusedBranch(plan, tensors, drops, len(derived) > 0 or bias is not None)  # 2.6 traces no bool(list)
