"""What surrounds the blocks: where video enters, where time enters, and where frames become one output per clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, is_heard
from aim_adapters.block import AdaptedBlock
from aim_adapters.errors import InputError, StateError, UnsupportedModelError
from aim_adapters.fused import compute_dtype
from aim_adapters.layers.head import average_frames
from aim_adapters.layers.state import AIMState, NormState, SharedState, states
from aim_adapters.layers.temporal import add_temporal_embedding
from aim_adapters.layers.video_input import flatten_patches, flatten_video
from aim_adapters.patching import Patched, blocked, wrap_forward


@dataclass(frozen=True)
class WrapRecord:
    """Remember what unwrapping has to put back.

    Args:
        anatomy: The anatomy the model was wrapped by.
        requires_grad: Names of the model's parameters that required a gradient.
        training: Names of the model's modules that were in training mode.
    """

    anatomy: BackboneAnatomy
    requires_grad: frozenset[str]
    training: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """Say where the parts of one adapter go. Paths are relative to the root.

    Args:
        containers: Modules that hold a container of ours, the root first.
        holders: Modules that hold the shared state beside their own.
        patches: Modules whose class is swapped, with the mixin and what it is told.
    """

    containers: tuple[str, ...]
    holders: tuple[str, ...]
    patches: tuple[tuple[str, type[Patched], Hashable], ...]


class RootState(SharedState):
    """Add to the shared state what only the root needs: the adapter's name and layout, the record to unwrap by."""

    name: str
    layout: Layout
    record: WrapRecord
    labels: Any = None  # the image model's own while the adapter runs, from the anatomy's `relabel`
    own_labels: Any = None  # the same of an adapter that ran and rests: the caller may have named its classes
    trains: frozenset[str] | None = None  # keys that train when the adapter runs; None: all
    origin: Mapping[str, Any] = MappingProxyType({})  # config of the checkpoint that the adapter was made from


class VideoRoot(Patched):
    """Make the image model's own ``forward`` take videos."""

    aim: RootState
    aim_inputs: ClassVar[tuple[str, ...]]  # names of the arguments of the model's own forward

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        """Keep the signature of ``forward``; hide and block what the anatomy names.

        Args:
            base: The model's class.
            spec: ``(hidden attributes, blocked methods)``.
        """
        hidden, methods = spec
        return {
            "forward": wrap_forward(base, cls.forward),
            "aim_inputs": tuple(inspect.signature(base.forward).parameters)[1:],
            **{name: _hidden(name) for name in hidden},
            **{name: blocked(name) for name in methods},
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on videos.

        Args:
            *args: The model's own arguments; the image argument takes ``[B, T, C, H, W]``, ``[B, C, T, H, W]`` or
                ``[B*T, C, H, W]``, floating point; patches cut beforehand (NaFlex) ``[B, T, N, P]`` or ``[B*T, N, P]``.
            **kwargs: The same by name.

        Returns:
            What the image model returns for an image, once per clip.

        Raises:
            InputError: The video's shape, layout or dtype does not fit.
            UnsupportedModelError: An attention mask was given.
            StateError: The module is a replica made by ``nn.DataParallel``.
        """
        shared, anatomy = self.aim, self.aim.record.anatomy
        if getattr(self, "_is_replica", False):
            raise StateError("nn.DataParallel cannot replicate a wrapped model; use DistributedDataParallel")
        given = {**dict(zip(self.aim_inputs, args, strict=False)), **kwargs}
        for name in anatomy.refused_inputs:
            if given.get(name) is not None:
                raise UnsupportedModelError(f"{name} has no meaning along time; call the wrapped model without it")
        for name in anatomy.patch_inputs:
            if name in kwargs and kwargs[name].ndim == 3:
                kwargs[name] = kwargs[name].flatten(0, 1)  # [B, T, ...] to [B*T, ...]
        if not args and anatomy.input_name not in kwargs:
            return super().forward(**kwargs)  # raises as the image model does
        reads = anatomy.class_token_only
        shared.class_token_only = reads is not None and reads(self) and not self._is_heard_behind_blocks()
        try:
            if args:
                out = super().forward(self._flatten(args[0]), *args[1:], **kwargs)
            else:
                out = super().forward(**{**kwargs, anatomy.input_name: self._flatten(kwargs[anatomy.input_name])})
        finally:
            shared.class_token_only = False
        if shared.enabled and anatomy.heads:
            return out
        if anatomy.pooled_outputs:
            return self._average_pooled(out)
        if not shared.enabled:
            return _map_outputs(out, lambda x: average_frames(x, shared.num_frames))
        if isinstance(out, tuple):
            return (shared.classify(out[0]), *(average_frames(x, shared.num_frames) for x in out[1:]))
        return shared.classify(out)

    def train(self, mode: bool = True) -> VideoRoot:
        """Set the mode of what trains, and of the containers of blocks; all else that is frozen stays in eval.

        Args:
            mode: Training or evaluation.

        Raises:
            StateError: A classification layer was replaced after wrapping, so that it would see single frames.
        """
        super().train(mode)
        for head in self.aim.record.anatomy.heads:
            if not isinstance(self.get_submodule(head.path), ClipHead):
                raise StateError(
                    f"{head.path!r} was replaced after wrapping: the new layer would classify single frames and would "
                    "not be saved; unwrap the model and wrap it with num_classes=K"
                )
        hold_frozen_in_eval(self, self.aim.record.anatomy)
        return self

    def _is_heard_behind_blocks(self) -> bool:
        """Tell whether hooks listen where tokens pass behind the last block, and so expect all of them."""
        anatomy = self.aim.record.anatomy
        parents = anatomy.blocks[-1][0].split(".")[:-1]
        paths = [".".join(parents[: end + 1]) for end in range(len(parents))]
        paths += [] if anatomy.norm is None else [anatomy.norm]
        return any(is_heard(self.get_submodule(path)) for path in paths)

    def _average_pooled(self, out: Any) -> Any:
        """Average over frames what a record of outputs holds pooled over tokens."""
        if isinstance(out, tuple):
            raise InputError("a wrapped model returns its outputs by name only; call it without return_dict=False")
        for name in self.aim.record.anatomy.pooled_outputs:
            if getattr(out, name, None) is not None:
                setattr(out, name, average_frames(getattr(out, name), self.aim.num_frames))
        return out

    def _flatten(self, video: Tensor) -> Tensor:
        config = self.aim.config
        if self.aim.record.anatomy.patch_inputs:
            return flatten_patches(video, num_frames=config.num_frames)
        return flatten_video(
            video,
            num_frames=config.num_frames,
            channels=self.aim.record.anatomy.in_channels,
            layout=config.input_layout,
            tubelet_size=config.tubelet_size,
        )

    def _untrained_copies(self) -> dict[str, str]:
        """Return the names of our copies that still equal what they were copied from, with the names of that."""
        anatomy, pairs = self.aim.record.anatomy, []
        if anatomy.norm is not None:
            pairs.append((f"{anatomy.norm}.aim.norm", anatomy.norm))
        if self.aim.config.num_classes is None:
            pairs += [(f"aim.{head.name}", head.path) for head in anatomy.heads if head.classifier]
        tensors = dict(self.named_parameters())
        return {
            f"{copied}.{leaf}": f"{original}.{leaf}"
            for copied, original in pairs
            for leaf in ("weight", "bias")
            if f"{copied}.{leaf}" in tensors and _same(tensors[f"{copied}.{leaf}"], tensors[f"{original}.{leaf}"])
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A checkpoint of the image model holds none of our tensors: it loads strictly, and ours keep their values. Only
        # copies of its norm and head that have not been trained yet follow what they are copies of.
        # A checkpoint that holds some but not all of our tensors is still refused.
        ours = {
            prefix + f"{path}.{name}": tensor
            for path, module in self.named_modules()
            if isinstance(module, AIMState)
            for name, tensor in module.state_dict(keep_vars=True).items()
        }
        if not any(key in state_dict for key in ours):
            for copied, original in self._untrained_copies().items():
                if prefix + original in state_dict:
                    ours[prefix + copied] = state_dict[prefix + original]
            state_dict.update(ours)
        super()._load_from_state_dict(state_dict, prefix, *args)


class WholeModel(Patched):
    """Keep everything around an adapted tower frozen, such as the text tower of CLIP.

    The specification is the path of the tower.
    """

    aim_spec: ClassVar[str]

    def train(self, mode: bool = True) -> WholeModel:
        """Set the mode of the adapted tower; the rest of the model stays in evaluation mode."""
        super().train(mode)
        for name, module in self.named_modules():
            leads_to_tower = f"{self.aim_spec}.".startswith(f"{name}.") or name == ""
            if not leads_to_tower and not name.startswith(f"{self.aim_spec}."):
                module.training = False
        return self


class TokenEntry(Patched):
    """Add the temporal embedding where tokens enter the blocks. The specification is ``"input"`` or ``"output"``."""

    aim_spec: ClassVar[str]
    aim_shared: tuple[SharedState]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the embedding added before or after it.

        Args:
            x: Tokens ``[B*T, N, D]`` (entry at the input), or whatever the module reads (entry at the output).
            *args: The module's own further arguments.
            **kwargs: The same by name.
        """
        shared = self.aim_shared[0]
        if not shared.enabled or shared.temporal_embedding is None:
            return super().forward(x, *args, **kwargs)
        if self.aim_spec == "input":
            return super().forward(add_temporal_embedding(x, shared.temporal_embedding), *args, **kwargs)
        return add_temporal_embedding(super().forward(x, *args, **kwargs), shared.temporal_embedding)


class PatchProduct(Patched):
    """Cut images into patches by one product, where a convolution's kernel is as wide as its stride and is frozen."""

    aim_shared: tuple[SharedState]

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches.

        Args:
            x: Images ``[B*T, C, H, W]``.

        Returns:
            ``[B*T, D, H/p, W/q]``; a token's elements lie side by side.
        """
        shared, weight = self.aim_shared[0], self.weight
        bias: Any = self.bias
        assert isinstance(weight, Tensor)
        height, width = weight.shape[2:]
        fits = x.shape[2] % height == 0 and x.shape[3] % width == 0
        if not shared.enabled or shared.branches == "modules" or weight.requires_grad or not fits:
            out: Tensor = super().forward(x)
            return out
        patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5)  # [F, h, w, C, p, q]
        rows = patches.to(compute_dtype(x), memory_format=torch.contiguous_format).flatten(3)  # [F, h, w, C*p*q]
        return F.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)  # [F, D, h, w]


class TrainedNorm(Patched):
    """Run the trained copy in place of a final norm."""

    aim: NormState

    def forward(self, x: Tensor) -> Tensor:
        """Normalise.

        Args:
            x: ``[..., D]``.
        """
        out: Tensor = self.aim.norm(x) if self.aim.shared[0].enabled else super().forward(x)
        return out


class ClipHead(Patched):
    """Average frames in front of the output layer. The specification is ``(our layer's name, keep_own)``."""

    aim_spec: ClassVar[tuple[str, bool]]
    aim_shared: tuple[SharedState]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return one output per clip.

        Args:
            x: Features of each frame ``[B*T, ..., D]``.
            *args: The layer's own further arguments.
            **kwargs: The same by name.

        Returns:
            ``[B, ..., K]``.
        """
        shared, (name, keep_own) = self.aim_shared[0], self.aim_spec
        if shared.enabled and not keep_own:
            return shared.classify(x, name)
        # The frozen layer may not be linear, so frames are averaged behind it; while adapters are disabled the root
        # does that, behind everything.
        out: Tensor = super().forward(x, *args, **kwargs)
        return average_frames(out, shared.num_frames) if shared.enabled else out


def hold_frozen_in_eval(root: nn.Module, anatomy: BackboneAnatomy) -> None:
    """Put every frozen module below ``root`` in evaluation mode.

    Blocks and what contains them keep their mode: some libraries decide by it whether to checkpoint activations.
    """
    kept = {
        path[:end] for path, _ in anatomy.blocks for end in range(len(path) + 1) if path[end : end + 1] in ("", ".")
    }
    ours = {id(module) for state in states(root) for module in state.modules()}
    for name, module in root.named_modules():
        if name and name not in kept and id(module) not in ours and not isinstance(module, AdaptedBlock):
            module.training = False


def _same(a: Tensor, b: Tensor) -> bool:
    return a.is_meta or b.is_meta or torch.equal(a, b)


def _hidden(name: str) -> property:
    def read(self: VideoRoot) -> Any:
        headed = self.aim.enabled and self.aim.config.num_classes is not None
        return None if headed else self._parameters[name]

    return property(read)


def _map_outputs(out: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return tuple(map(function, out)) if isinstance(out, tuple) else function(out)
