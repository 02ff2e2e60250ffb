"""Recording of attention weights while a model runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aim_adapters.anatomy import BlockAnatomy
from aim_adapters.core import WrappedModel
from aim_adapters.errors import UnsupportedModelError
from aim_adapters.layers import relative_temporal_bias
from aim_adapters.ops.spatial_attention import spatial_attention_weights
from aim_adapters.ops.temporal_attention import temporal_attention_weights

_SOFTMAX = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)


class SpatialRecord(NamedTuple):
    """The spatial attention of one block.

    Attributes:
        weights: ``[F*W, H, M, M]``; F frames, W windows of M tokens each. Not of every head, but their mean, ``[F*W, 1,
            M, M]``, where no more was asked for.
        heads: Number of heads H.
        grid: Rows and columns of patches of a frame.
        tiles: Tokens of each window ``[W, M]``, -1 where it is padded.
    """

    weights: Tensor
    heads: int
    grid: tuple[int, int]
    tiles: Tensor


class AttentionRecorder:
    """What blocks attend to, computed by the reference implementation and kept.

    Args:
        wrapped: The model that runs.
        image_size: Height and width of its frames in pixels.
        blocks: Indices of the blocks of which every head is kept.
        differentiable: Keep spatial weights as part of the graph, so that an output can be differentiated by them.

    Attributes:
        spatial: What blocks attended to within frames, by index.
        temporal: What those of ``blocks`` that attend over frames attended to: ``[B, N, H, T, T]``, on the CPU.
    """

    def __init__(
        self,
        wrapped: WrappedModel,
        image_size: tuple[int, int],
        *,
        blocks: Sequence[int],
        differentiable: bool,
    ) -> None:
        self.spatial: dict[int, SpatialRecord] = {}
        self.temporal: dict[int, Tensor] = {}
        self._wrapped, self._image_size, self._blocks = wrapped, image_size, blocks
        self._differentiable = differentiable

    def listen(self, index: int, anatomy: BlockAnatomy) -> BlockAnatomy:
        """Return the anatomy by which a block computes the same, and its attention is recorded.

        Args:
            index: Index of the block.
            anatomy: Its anatomy.
        """

        def project_qkv(attention: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = anatomy.project_qkv(attention, h)
            if index in self._blocks and index not in self.temporal:
                self.temporal[index] = self._over_frames(index, attention, anatomy, q, k).cpu()
            return q, k, v

        def attend(block: Any, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self._over_tokens(index, block, anatomy, h, args, kwargs)

        return dataclasses.replace(
            anatomy, project_qkv=project_qkv, project_packed=None, attend=attend, fused_spatial=False
        )

    def _over_frames(self, index: int, attention: Any, anatomy: BlockAnatomy, q: Tensor, k: Tensor) -> Tensor:
        state = self._wrapped.state
        block: Any = self._wrapped.root.get_submodule(state.anatomy.blocks[index][0])
        table = block.aim.temporal_bias
        return temporal_attention_weights(
            q.detach().float(),
            k.detach().float(),
            num_frames=state.num_frames,
            scale=anatomy.softmax_scale(attention),
            bias=None if table is None else relative_temporal_bias(table.detach()),
        )

    def _over_tokens(
        self, index: int, block: Any, anatomy: BlockAnatomy, h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        weights: list[Tensor] = []

        def record(found: Tensor) -> Tensor:
            if self._differentiable and not found.requires_grad:
                found.requires_grad_()
            weights.append(found)
            return found

        attention = getattr(block, anatomy.attention)
        # A block of a family whose own call is a fused kernel at times computes spatial attention by its projections.
        if anatomy.fused_spatial and all(argument is None for argument in (*args, *kwargs.values())):
            q, k, v = anatomy.project_qkv(attention, h)
            found = record(_weights(q, k, scale=anatomy.softmax_scale(attention), bias=None))
            o = torch.einsum("fhnm,fmhd->fnhd", found.to(v.dtype), v)
            out = anatomy.project_out(attention, o, h)
        else:
            with _SoftmaxListener(record):
                out = anatomy.attend(block, h, *args, **kwargs)
        if index not in self.spatial:  # activation checkpointing runs a block again
            self.spatial[index] = self._located(block, anatomy, h, weights, whole=index in self._blocks)
        return out

    def _located(
        self, block: nn.Module, anatomy: BlockAnatomy, h: Tensor, weights: list[Tensor], *, whole: bool
    ) -> SpatialRecord:
        name = f"the spatial attention of {type(block).__name__}"
        if len(weights) != 1 or weights[0].ndim != 4:
            raise UnsupportedModelError(
                f"{name} has no weights that can be recorded: its call used softmax or scaled_dot_product_attention "
                f"{len(weights)} times, expected once; its descriptor's `attend` has to call one of them"
            )
        prefix = self._wrapped.state.anatomy.prefix_tokens
        if h.ndim == 4:
            grid = (h.shape[1], h.shape[2])
        else:
            grid = self._grid()
        tokens = prefix + grid[0] * grid[1]
        tiles = torch.arange(tokens)[None] if anatomy.tiles is None else anatomy.tiles(block, *grid)
        frames = h.shape[0]
        expected = (frames * len(tiles), weights[0].shape[1], tiles.shape[1], tiles.shape[1])
        if weights[0].shape != expected:
            raise UnsupportedModelError(
                f"{name} has weights {list(weights[0].shape)}, expected {list(expected)} "
                f"for {frames} frames of {grid[0]} x {grid[1]} patches and {prefix} tokens in front; call the model on "
                "frames that its patches tile"
            )
        found = weights[0]
        if not self._differentiable:  # else it is a part of the graph
            found = (found if whole else found.mean(1, keepdim=True)).float().cpu()
        return SpatialRecord(found, weights[0].shape[1], grid, tiles)

    def _grid(self) -> tuple[int, int]:
        patch = self._wrapped.state.anatomy.patch_size
        return -(-self._image_size[0] // patch[0]), -(-self._image_size[1] // patch[1])


class _SoftmaxListener(TorchFunctionMode):
    """Hands over the attention weights that a family's own call computes.

    Args:
        record: Takes the weights and returns what the call goes on with.
    """

    def __init__(self, record: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        out = func(*args, **kwargs)
        return self._record(out) if func in _SOFTMAX else out

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute ``scaled_dot_product_attention`` of ``[F, H, N, d]`` in steps; what is frozen drops nothing."""
        if is_causal:
            raise UnsupportedModelError("causal attention of an image model cannot be recorded")
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill_(~attn_mask, -torch.inf)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        weights = self._record(_weights(query.transpose(1, 2), key.transpose(1, 2), scale=factor, bias=attn_mask))
        groups = weights.shape[1] // value.shape[1]
        values = value if groups == 1 else value.repeat_interleave(groups, dim=1)
        return weights.to(value.dtype) @ values


def _weights(q: Tensor, k: Tensor, *, scale: float, bias: Tensor | None) -> Tensor:
    """Return the attention weights ``[F, H, N, N]`` of queries ``[F, N, H, d]`` and keys ``[F, N, G, d]``, float32."""
    groups = q.shape[2] // k.shape[2]
    k = k if groups == 1 else k.repeat_interleave(groups, dim=2)
    with torch.autocast(q.device.type, enabled=False):
        return spatial_attention_weights(q.float(), k.float(), scale=scale, bias=bias)
