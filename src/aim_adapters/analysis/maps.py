"""What a wrapped model attends to: maps over patches, rollout, gradient-weighted maps, and maps over frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.analysis.recording import AttentionRecorder, SpatialRecord
from aim_adapters.analysis.targets import Target, target_indices
from aim_adapters.arguments import read_items, require_texts, shown
from aim_adapters.config import COMPONENTS
from aim_adapters.core import RootState, evaluating, inspecting, only_root, outermost_path, pooled_output
from aim_adapters.errors import ConfigError, InputError, StateError, UnsupportedModelError

Query = Literal["auto", "class", "mean"] | tuple[int, int]


@dataclass(frozen=True, repr=False)
class AttentionMaps:
    """What a model attended to in one call, of each block and head. `attention_maps` makes it.

    Tensors are float32, on the CPU. Blocks are numbered from 0; -1 is the last one. Where a method takes ``head``, None
    is the mean over heads. A query is the token that attends: ``"class"``, the [class] token; a patch ``(row,
    column)`` from the top left; ``"mean"``, the mean over all patches; or ``"auto"``, the [class] token where there is
    one, else the mean.

    Attributes:
        logits: What the model answered, ``[B, K]``: logits, or the features of a model without classes.
        num_frames: Frames that attention sees; with tubelets, fewer than the clip has.
        components: Adapters that ran.
        blocks: Blocks of which every head was kept.
        temporal_blocks: Those of them that attend over time.
        grids: Rows and columns of patches in each block of the model.
        heads: Number of heads of each block of the model.
        has_class_token: Whether the model has a [class] token.
    """

    logits: Tensor
    num_frames: int
    components: tuple[str, ...]
    blocks: tuple[int, ...]
    temporal_blocks: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    heads: tuple[int, ...]
    has_class_token: bool
    _prefix: int
    _tiles: tuple[Tensor, ...]
    _spatial: Mapping[int, Tensor] = field(default_factory=dict)  # [F, W, H, M, M]
    _temporal: Mapping[int, Tensor] = field(default_factory=dict)  # [B, N, H, T, T]
    _means: tuple[Tensor, ...] = ()  # [F, W, M, M] of each block
    _relevances: tuple[Tensor, ...] = ()  # the same, weighted by gradients

    def __repr__(self) -> str:
        clips = len(self._means[0]) // self.num_frames
        return (
            f"AttentionMaps({clips} clip{'s' * (clips != 1)} of {self.num_frames} frames, blocks "
            f"{', '.join(map(str, self.blocks))}, over time in {', '.join(map(str, self.temporal_blocks)) or 'none'}, "
            f"components {self.components})"
        )

    def spatial(self, block: int = -1, *, head: int | None = None, query: Query = "auto") -> Tensor:
        """Return how much of its attention a token gives to each patch of its frame.

        Args:
            block: Index of the block.
            head: Index of the head.
            query: The token that attends.

        Returns:
            ``[B, T, rows, columns]``, each >= 0; over a frame they sum to at most 1: the rest goes to the [class] token
            and its like. Within windows (Swin) a patch attends to its own window alone.

        Raises:
            ConfigError: There is no such block, head or query.
        """
        index = self._kept(block)
        weights = self._spatial[index]
        weights = weights.mean(2) if head is None else weights[:, :, self._head(index, head)]  # [F, W, M, M]
        tokens = self._start(query, self.grids[index], len(weights))
        return self._map(_times(tokens, weights, self._tiles[index]), self.grids[index])

    def temporal(
        self, block: int = -1, *, head: int | None = None, patch: tuple[int, int] | Literal["class"] | None = None
    ) -> Tensor:
        """Return how much each frame attends to each frame, at one place.

        Args:
            block: Index of the block.
            head: Index of the head.
            patch: The place: a patch, or ``"class"``; None: the mean over all patches.

        Returns:
            ``[B, T, T]``: query frame, key frame; rows sum to 1.

        Raises:
            ConfigError: There is no such block, head or patch.
            StateError: The block does not attend over time.
        """
        index = self._kept(block)
        weights = self._over_time(index, head)  # [B, N, T, T]
        if patch is None:
            return weights[:, self._prefix :].mean(1)
        if isinstance(patch, str):
            if patch != "class" or not self.has_class_token:
                self._refuse("patch", patch, self.grids[index])
            return weights[:, 0]
        at: Tensor = weights[:, self._prefix + self._patch("patch", patch, self.grids[index])]
        return at

    def temporal_grid(self, block: int = -1, *, head: int | None = None) -> Tensor:
        """Return how much each frame attends to each frame, at every patch.

        Args:
            block: Index of the block.
            head: Index of the head.

        Returns:
            ``[B, rows, columns, T, T]``: place, query frame, key frame; rows of the last two sum to 1.

        Raises:
            ConfigError: There is no such block or head.
            StateError: The block does not attend over time.
        """
        index = self._kept(block)
        grid: Tensor = self._over_time(index, head)[:, self._prefix :].unflatten(1, self.grids[index])
        return grid

    def rollout(self, query: Query = "auto") -> Tensor:
        """Return how much of each patch reaches a token of the last block, by attention through all blocks.

        Attention rollout (Abnar and Zuidema, 2020), within each frame: heads are averaged, and half of each branch's
        input passes by it. Where Swin merges patches, a merged patch stands for its four in equal parts.

        Args:
            query: The token of the last block.

        Returns:
            ``[B, T, rows, columns]`` of the first block's patches; over a frame they sum to at most 1.

        Raises:
            ConfigError: There is no such query.
        """
        tokens = self._start(query, self.grids[-1], len(self._means[0]))
        for index in reversed(range(len(self._means))):
            tokens = self._merged(tokens, index)
            tokens = (tokens + _times(tokens, self._means[index], self._tiles[index])) / 2
        return self._map(tokens, self.grids[0])

    def relevance(self) -> Tensor:
        """Return how much attention to each patch speaks for the target class.

        Gradient-weighted rollout (Chefer, Gur and Wolf, 2021), within each frame: of each head the weights count as
        much as the logit of the class grows with them, and not where it falls. It starts from the [class] token, or
        from the mean over patches where there is none.

        Returns:
            ``[B, T, rows, columns]`` of the first block's patches, each >= 0; they compare within a clip.

        Raises:
            StateError: The maps were made without ``target``.
        """
        if not self._relevances:
            raise StateError("these maps were made without a class; call attention_maps(model, video, target=…)")
        start = self._start("auto", self.grids[-1], len(self._means[0]))
        tokens, reached = start, torch.zeros_like(start)
        for index in reversed(range(len(self._relevances))):
            tokens, reached = self._merged(tokens, index), self._merged(reached, index)
            step = _times(tokens, self._relevances[index], self._tiles[index])
            tokens, reached = tokens + step, reached + step
        return self._map(reached, self.grids[0])

    def _kept(self, block: int) -> int:
        index = block_index(block, len(self.grids))
        if index not in self.blocks:
            raise ConfigError(
                f"block {index} was not kept: blocks are {', '.join(map(str, self.blocks))}; "
                f"call attention_maps(model, video, blocks=[{index}])"
            )
        return index

    def _head(self, index: int, head: int) -> int:
        return _place(
            head, self.heads[index], f"head must be one of 0 to {self.heads[index] - 1} of block {index}, or None"
        )

    def _patch(self, what: str, patch: Any, grid: tuple[int, int]) -> int:
        whole = isinstance(patch, (tuple, list)) and len(patch) == 2 and all(type(place) is int for place in patch)
        if not whole or not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
            self._refuse(what, patch, grid)
        return int(patch[0] * grid[1] + patch[1])

    def _refuse(self, what: str, got: Any, grid: tuple[int, int]) -> None:
        names = ["'class'"] * self.has_class_token + (["'mean'", "'auto'"] if what == "query" else [])
        advice = "" if self.has_class_token or got != "class" else "; this model has no [class] token"
        raise ConfigError(
            f"{what} must be {', '.join(names)}{' or ' * bool(names)}a patch (row, column) below {grid}, "
            f"got {shown(got)}{advice}"
        )

    def _over_time(self, index: int, head: int | None) -> Tensor:
        if index not in self._temporal:
            there = ", ".join(map(str, self.temporal_blocks)) or (
                "none of those kept; temporal adapters were left out, or are a convolution (temporal='conv'), which "
                "has no attention to show"
            )
            raise StateError(f"block {index} does not attend over time; these do: {there}")
        weights = self._temporal[index]
        return weights.mean(2) if head is None else weights[:, :, self._head(index, head)]

    def _start(self, query: Query, grid: tuple[int, int], frames: int) -> Tensor:
        """Return the weights of tokens that a query stands for, ``[F, N]``."""
        weights = torch.zeros(frames, self._prefix + grid[0] * grid[1])
        if query == "auto":
            query = "class" if self.has_class_token else "mean"
        if query == "class" and self.has_class_token:
            weights[:, 0] = 1
        elif query == "mean":
            weights[:, self._prefix :] = 1 / (grid[0] * grid[1])
        elif isinstance(query, str):
            self._refuse("query", query, grid)
        else:
            weights[:, self._prefix + self._patch("query", query, grid)] = 1
        return weights

    def _merged(self, tokens: Tensor, index: int) -> Tensor:
        """Share the weights of tokens behind a block among the patches that it reads, where they are finer."""
        grid = self.grids[index]
        behind = self.grids[min(index + 1, len(self.grids) - 1)]
        if grid == behind:
            return tokens
        finer = F.interpolate(tokens.unflatten(1, behind)[:, None], size=grid)[:, 0]
        return finer.flatten(1) * (behind[0] * behind[1] / (grid[0] * grid[1]))

    def _map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        frames: Tensor = tokens[:, self._prefix :].unflatten(1, grid)  # [F, rows, columns]
        clips: Tensor = frames.unflatten(0, (-1, self.num_frames))  # [B, T, rows, columns]
        return clips


def attention_maps(
    model: nn.Module,
    video: Tensor,
    *,
    blocks: Sequence[int] | None = None,
    components: Sequence[str] | None = None,
    target: Target | None = None,
) -> AttentionMaps:
    """Return what a model attends to in a clip: over patches and over frames, in every block and head.

    The model runs once, in evaluation mode, layer by layer, and computes attention by the reference implementation.
    Weights, gradients, modes, and what is compiled stay as they are. Hooks on attention layers may not run. All weights
    of the blocks are kept, in float32: of ViT-B/16 180 MB for a clip of eight frames; ``blocks`` keeps fewer.

    Args:
        model: A wrapped model. In a whole CLIP model, the image tower runs.
        video: Clips as the model reads them: ``[B, T, C, H, W]`` or another of its layouts, floating point, normalized.
        blocks: Indices of the blocks of which every head is kept; negative ones count from the last. None: all.
        components: The adapters that run: of ``"temporal"``, ``"spatial"`` and ``"joint"``; ``()``: none, the frozen
            image model with the trained norm and classifier. None: all that the model has.
        target: A class, by index or name, or one for each clip: for it `AttentionMaps.relevance` is computed, which
            takes a backward pass.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: There is no such block, component or class.
        InputError: The video is none that the model reads.
        StateError: The model is not wrapped, holds several wrapped models, or its adapters are disabled.
        UnsupportedModelError: The model reads patches cut beforehand, or its attention cannot be recorded.
    """
    wrapped = only_root(model)
    state = wrapped.state
    anatomy, count = state.anatomy, len(state.anatomy.blocks)
    running = _components(components, state)
    kept = _blocks(blocks, count)
    if not isinstance(video, Tensor) or video.ndim < 4:
        got = list(video.shape) if isinstance(video, Tensor) else type(video).__name__
        raise InputError(f"video must be a tensor [B, T, C, H, W], got {got}; see aim_adapters.video.transform_for")
    size, grads = (video.shape[-2], video.shape[-1]), target is not None
    recorder = AttentionRecorder(wrapped, size, blocks=kept, differentiable=grads)
    called = model.get_submodule(outermost_path(wrapped.path))
    with (
        evaluating(called),
        torch.inference_mode(False),
        torch.set_grad_enabled(grads),
        inspecting(wrapped, recorder.listen, frozenset(running)),
    ):
        # A copy of a tensor of inference mode, which no gradient can be computed behind.
        out = called(**{anatomy.input_name: video.clone() if video.is_inference() else video})
        logits = pooled_output(out, anatomy.pooled_outputs)
        records = [recorder.spatial[index] for index in range(count)]
        relevances: list[Tensor] = []
        if target is not None:
            indices = target_indices(wrapped, logits, target)
            score = logits.gather(1, indices[:, None]).sum()
            gradients = torch.autograd.grad(score, [record.weights for record in records])
            pairs = zip(gradients, records, strict=True)
            relevances = [_windowed((grad * record.weights).clamp(min=0).mean(1), record) for grad, record in pairs]
    return AttentionMaps(
        logits=logits.detach().float().cpu(),
        num_frames=state.num_frames,
        components=running,
        blocks=kept,
        temporal_blocks=tuple(recorder.temporal),
        grids=tuple(record.grid for record in records),
        heads=tuple(record.heads for record in records),
        has_class_token=anatomy.prefix_tokens > 0 and anatomy.class_token,
        _prefix=anatomy.prefix_tokens,
        _tiles=tuple(record.tiles for record in records),
        _spatial={index: _windowed(records[index].weights, records[index]) for index in kept},
        _temporal=recorder.temporal,
        _means=tuple(_windowed(record.weights.mean(1), record) for record in records),
        _relevances=tuple(relevances),
    )


def block_index(block: object, count: int) -> int:
    """Return the index of a block, counted from the first.

    Args:
        block: Its index; negative ones count from the last.
        count: Number of blocks.

    Raises:
        ConfigError: There is no such block.
    """
    return _place(block, count, f"block must be one of 0 to {count - 1} (or {-count} to -1)")


def _place(value: object, count: int, refusal: str) -> int:
    """Return an index below a count; a negative one counts from the end."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -count <= int(value) < count:
        raise ConfigError(f"{refusal}, got {shown(value)}")
    return int(value) % count


def _blocks(blocks: object, count: int) -> tuple[int, ...]:
    if blocks is None:
        return tuple(range(count))
    refusal = f"blocks must be a list of indices from 0 to {count - 1} (or {-count} to -1)"
    return tuple(sorted({_place(item, count, refusal) for item in read_items(blocks, refusal)}))


def _components(components: object, state: RootState) -> tuple[str, ...]:
    """Return the adapters that run, in the order of the block."""
    there = state.config.components
    if not state.enabled:
        raise StateError("adapters are disabled; leave disable_adapters first, or pass components=() for none of them")
    if state.anatomy.patch_inputs:
        raise UnsupportedModelError(
            "the model reads patches cut beforehand, so it is not known where they lie in a frame"
        )
    if components is None:
        return tuple(name for name in COMPONENTS if name in there)
    asked = require_texts("components", components, expected=f"some of {', '.join(map(repr, COMPONENTS))} in a tuple")
    if unknown := [name for name in asked if name not in there]:
        raise ConfigError(
            f"components must be some of those that the model has, {', '.join(map(repr, there)) or 'none'}, "
            f"got {shown(unknown[0])}"
        )
    return tuple(name for name in COMPONENTS if name in asked)


def _windowed(weights: Tensor, record: SpatialRecord) -> Tensor:
    """Return weights ``[F*W, ...]`` of windows frame by frame, ``[F, W, ...]``."""
    of_frames: Tensor = weights.detach().float().cpu().unflatten(0, (-1, len(record.tiles)))
    return of_frames


def _times(tokens: Tensor, weights: Tensor, tiles: Tensor) -> Tensor:
    """Return the product of a row of tokens and the attention within windows, put back into the frame.

    Args:
        tokens: ``[F, N]``.
        weights: ``[F, W, M, M]``.
        tiles: Tokens of each window ``[W, M]``, -1 where it is padded.

    Returns:
        ``[F, N]``.
    """
    padded = F.pad(tokens, (0, 1))  # the last one takes what windows are padded with
    there = tiles.where(tiles >= 0, torch.tensor(tokens.shape[1]))
    with torch.autocast("cpu", enabled=False):  # methods may be called inside of the caller's
        out = torch.einsum("fwm,fwmn->fwn", padded[:, there], weights)
    return torch.zeros_like(padded).index_add_(1, there.flatten(), out.flatten(1))[:, :-1]
