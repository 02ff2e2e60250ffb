"""Probabilities that a model gives for clips which are changed on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from aim_adapters.analysis.targets import Target, require_classes, target_indices
from aim_adapters.clip_spec import known_labels
from aim_adapters.core import evaluating, only_root, outermost_path, pooled_output
from aim_adapters.errors import InputError, StateError, UnsupportedModelError
from aim_adapters.layers import flatten_video

_CLIPS = 8  # of one call


class ChangedClips:
    """The clips of a video, and what a model answers when they are changed.

    Autocast is up to the caller.

    Args:
        model: A wrapped model with classes.
        video: Clips as it reads them.
        target: A class, or one for each clip; None: the most probable one of each clip as it is.

    Attributes:
        clips: ``[B, T, C, H, W]``, on the device of the model.
        probabilities: Of the clips as they are, float64 ``[B, K]``, on the CPU.
        targets: Indices of the classes, int64 ``[B]``.
        names: Names of these classes; of a class without one, its index.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: There is no such class.
        InputError: The video is none that the model reads.
        StateError: The model is not wrapped, holds several wrapped models, its adapters are disabled, or it returns
            values that are not finite.
        UnsupportedModelError: The model has no classes, or reads patches cut beforehand.
    """

    def __init__(self, model: nn.Module, video: Tensor, target: Target | None) -> None:
        self._wrapped = wrapped = only_root(model)
        state, anatomy = wrapped.state, wrapped.state.anatomy
        if not state.enabled:
            raise StateError("adapters are disabled, and the image model may have other classes; leave the block first")
        if anatomy.patch_inputs:
            raise UnsupportedModelError("the model reads patches cut beforehand, so frames cannot be changed")
        self._called = model.get_submodule(outermost_path(wrapped.path))
        flat = flatten_video(
            video,
            num_frames=state.config.num_frames,
            channels=anatomy.in_channels,
            layout=state.config.input_layout,
            mean=anatomy.image_mean,
            std=anatomy.image_std,
        )
        if not len(flat):
            raise InputError(f"video has no clips, got {list(video.shape)}")
        flat = flat.detach().to(next(wrapped.root.parameters()).device)
        self.clips: Tensor = flat.unflatten(0, (-1, state.config.num_frames))  # [B, T, C, H, W]
        self.probabilities = self.answer(self.clips)
        self.targets = (
            self.probabilities.argmax(1)
            if target is None
            else target_indices(wrapped, self.probabilities, target).cpu()
        )
        labels: Sequence[str] | None = known_labels(wrapped, wrapped.find(None), anatomy.model_name)
        self.names = tuple(str(index) if labels is None else labels[index] for index in self.targets.tolist())

    def answer(self, clips: Iterable[Tensor]) -> Tensor:
        """Return the probabilities of the classes, computed for a few clips at a time.

        Args:
            clips: Clips ``[T, C, H, W]``; of an iterator, only a few are in memory at once.

        Returns:
            float64 ``[n, K]``, on the CPU.

        Raises:
            StateError: The model returns values that are not finite.
            UnsupportedModelError: The model has no classes.
        """
        anatomy = self._wrapped.state.anatomy
        waiting: Iterator[Tensor] = iter(clips)
        found = []
        with evaluating(self._called), torch.no_grad():
            while some := list(islice(waiting, _CLIPS)):
                logits = pooled_output(self._called(**{anatomy.input_name: torch.cat(some)}), anatomy.pooled_outputs)
                require_classes(self._wrapped, logits)
                found.append(logits.cpu().double().softmax(1))  # a copy: a captured model overwrites its output
        probabilities = torch.cat(found)
        if not probabilities.isfinite().all():
            raise StateError("the model returns values that are not finite; look at the clips and at what was trained")
        return probabilities


def class_of(names: tuple[str, ...]) -> str:
    """Return how a headline calls the classes of clips.

    Args:
        names: The name of each clip's class.
    """
    return repr(names[0]) if len(set(names)) == 1 else f"the classes of {len(names)} clips"
