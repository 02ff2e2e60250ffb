"""The root of a wrapped model: where video enters, and where frames become one output per clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy, has_hooks, require_called
from aim_adapters.core.audit import check_training, require_parts
from aim_adapters.core.block import AdaptedBlock
from aim_adapters.core.foreign import runs_again_compiled
from aim_adapters.core.given_state import complete_state, require_whole_state
from aim_adapters.core.inputs import explain_failure, look_at_first_batch
from aim_adapters.core.overrides import counting_classes, overriding
from aim_adapters.core.patches import frame_rows, gives_patches, named_inputs, refuse_given
from aim_adapters.core.patching import Patched, blocked_methods, wrap_forward
from aim_adapters.core.readers import methods_of, take_videos
from aim_adapters.core.records import RootCall
from aim_adapters.core.state import RootState, states
from aim_adapters.errors import InputError, StateError
from aim_adapters.layers import average_frames, flatten_video


class VideoRoot(Patched):
    """The root of an image model, whose own ``forward`` takes videos."""

    aim: RootState
    aim_inputs: ClassVar[tuple[str, ...]]  # names of the arguments of the model's own forward

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        """Keep the signature of ``forward``; hide and block what the anatomy names.

        Args:
            base: The model's class.
            spec: ``(hidden attributes, blocked methods, methods that take images, overrides, class count)``.
        """
        hidden, methods, image_methods, overrides, class_count = spec
        return {
            "forward": wrap_forward(base, cls.forward),
            "aim_inputs": tuple(inspect.signature(base.forward).parameters)[1:],
            **{name: _hidden(name) for name in hidden},
            **({class_count: counting_classes(class_count)} if class_count else {}),
            **overriding(base, overrides),
            **blocked_methods(base, methods),
            **methods_of(base, image_methods, take_videos),
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on videos.

        Args:
            *args: The model's own arguments; the image argument takes ``[B, T, C, H, W]``, ``[B, C, T, H, W]`` or
                ``[B*T, C, H, W]``, floating point; patches cut beforehand (NaFlex) ``[B, T, N, P]`` or ``[B*T, N, P]``,
                or a dictionary of them and what says where they lie.
            **kwargs: The same by name.

        Returns:
            What the image model returns for an image, once per clip.

        Raises:
            InputError: The video's shape, layout, dtype or device does not fit.
            UnsupportedModelError: An attention mask was given.
            StateError: The module is a replica made by ``nn.DataParallel``; its weights, of several dtypes, are used
                without autocast; or FSDP2 shards a part by itself that would not be called.
        """
        if not torch.compiler.is_compiling() and self.aim.graphs is not None:
            return self.aim.graphs(self, args, kwargs)
        return self.aim_forward(*args, **kwargs)

    def aim_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `forward` does, without CUDA graphs."""
        state, anatomy = self.aim, self.aim.anatomy
        if getattr(self, "_is_replica", False):
            raise StateError("nn.DataParallel cannot replicate a wrapped model; use DistributedDataParallel")
        if state.enabled:
            require_called(state, "aim")
        given = named_inputs(self.aim_inputs, args, kwargs)
        refuse_given(anatomy, given)
        if not args and anatomy.input_name not in kwargs:
            return super().forward(**kwargs)  # raises as the image model does
        reads = anatomy.class_token_only
        class_token_only = reads is not None and reads(self) and not self._has_hooks_behind_blocks()
        if class_token_only and not torch.compiler.is_compiling():
            class_token_only = not runs_again_compiled(self, anatomy.blocks[-1][0])
        by_patches = gives_patches(anatomy, given, anatomy.input_name)
        if by_patches:
            args, kwargs = (), frame_rows(state, given, anatomy.input_name)
        video = args[0] if args else kwargs[anatomy.input_name]
        if isinstance(video, Mapping):
            video = video[anatomy.optional_patch_inputs[0]]
        unrecorded = torch.is_grad_enabled() and not getattr(video, "requires_grad", False)
        state.call = RootCall.here(class_token_only=class_token_only, unrecorded=unrecorded)
        try:
            if by_patches:
                out = super().forward(**kwargs)
            elif args:
                out = super().forward(self._flatten(args[0]), *args[1:], **kwargs)
            else:
                out = super().forward(**{**kwargs, anatomy.input_name: self._flatten(kwargs[anatomy.input_name])})
        except RuntimeError as error:
            told = explain_failure(self, video, error)
            if told is None:
                raise
            raise told from error
        finally:
            state.call = None
        if state.enabled and anatomy.heads:
            return out
        if anatomy.pooled_outputs:
            return self._average_pooled(out)
        if not state.enabled:
            return _map_outputs(out, lambda x: average_frames(x, state.num_frames))
        if isinstance(out, tuple):
            return (state.classify(out[0]), *(average_frames(x, state.num_frames) for x in out[1:]))
        return state.classify(out)

    def train(self, mode: bool = True) -> VideoRoot:
        """Set the mode of what trains, and of the containers of blocks; all else that is frozen stays in eval.

        Args:
            mode: Training or evaluation.

        Raises:
            StateError: A part was swapped or replaced after wrapping, or checkpointed in a way that gives it no
                gradients.
        """
        super().train(mode)
        require_parts(self, self.aim)
        if mode:
            check_training(self, self.aim)
        hold_frozen_in_eval(self, self.aim.anatomy)
        return self

    def _has_hooks_behind_blocks(self) -> bool:
        """Return whether hooks read tokens behind the last block, and so expect all of them."""
        anatomy = self.aim.anatomy
        parents = anatomy.blocks[-1][0].split(".")[:-1]
        paths = [".".join(parents[: end + 1]) for end in range(len(parents))]
        paths += [] if anatomy.norm is None else [anatomy.norm]
        return any(has_hooks(self.get_submodule(path)) for path in paths)

    def _average_pooled(self, out: Any) -> Any:
        """Average over frames what a record of outputs holds pooled over tokens."""
        if isinstance(out, tuple):
            raise InputError("a wrapped model returns its outputs by name only; call it without return_dict=False")
        for name in self.aim.anatomy.pooled_outputs:
            if getattr(out, name, None) is not None:
                setattr(out, name, average_frames(getattr(out, name), self.aim.num_frames))
        return out

    def _flatten(self, video: Tensor) -> Tensor:
        config, anatomy = self.aim.config, self.aim.anatomy
        frames = flatten_video(
            video,
            num_frames=config.num_frames,
            channels=anatomy.in_channels,
            layout=config.input_layout,
            tubelet_size=config.tubelet_size,
            mean=anatomy.image_mean,
            std=anatomy.image_std,
        )
        if not torch.compiler.is_compiling() and self.aim.unseen:
            look_at_first_batch(self.aim, video, frames)
        return frames

    def copied_names(self) -> dict[str, str]:
        """Return the names of our copies of the image model's parameters, with the names of those."""
        anatomy, pairs = self.aim.anatomy, []
        if anatomy.norm is not None:
            pairs.append((f"{anatomy.norm}.aim.norm", anatomy.norm))
        if self.aim.config.num_classes is None:
            pairs += [(f"aim.{head.name}", head.path) for head in anatomy.heads if head.classifier]
        names = {name for name, _ in self.named_parameters()}
        return {
            f"{copied}.{leaf}": f"{original}.{leaf}"
            for copied, original in pairs
            for leaf in ("weight", "bias")
            if f"{copied}.{leaf}" in names
        }

    def _untrained_copies(self) -> dict[str, str]:
        """Return those of `copied_names` that still equal what they were copied from."""
        tensors = dict(self.named_parameters())
        return {
            copied: original
            for copied, original in self.copied_names().items()
            if _same(tensors[copied], tensors[original])
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A checkpoint of the image model holds none of our tensors: it loads strictly, and ours keep their values. Only
        # copies of its norm and head that have not been trained yet follow what they are copies of.
        # A checkpoint that holds some but not all tensors of an adapter is refused.
        require_whole_state(self, state_dict, prefix)
        complete_state(self, state_dict, prefix, self._untrained_copies)
        for name in [name for name in self.aim.thawed if prefix + name in state_dict]:
            del self.aim.thawed[name]  # whoever trained it: it gets the image model's own values
        super()._load_from_state_dict(state_dict, prefix, *args)


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
