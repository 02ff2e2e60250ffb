"""A trust check of video models: whether the order of frames matters to the answer."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor, nn

from aim_adapters.analysis.answering import ChangedClips, class_of
from aim_adapters.analysis.targets import Target
from aim_adapters.arguments import require_integer
from aim_adapters.errors import ConfigError

_ROUNDING = 0.01  # of a probability that is computed in bfloat16


@dataclass(frozen=True, repr=False)
class FrameOrder:
    """What a model answers when the frames of a clip come in another order; `frame_order` makes it.

    ``print`` shows it in words. Probabilities are those of the target class, classes the most probable ones.

    Attributes:
        original: Probability for the clip as it is, float64 ``[B]``.
        reversed: For the clip played backwards, ``[B]``.
        shuffled: For its frames in random orders, ``[B, shuffles]``.
        still: For its middle frame, repeated, ``[B]``.
        changed: Whether another class is the most probable one, by these names: bool ``[B]``, ``[B, shuffles]``,
            ``[B]``.
        targets: Indices of the target classes, int64 ``[B]``.
        names: Their names; of one without a name, its index.
    """

    original: Tensor
    reversed: Tensor
    shuffled: Tensor
    still: Tensor
    changed: dict[str, Tensor]
    targets: Tensor
    names: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What the numbers say, over all clips, in words."""
        clips = len(self.targets)
        moved = torch.cat([self.reversed[:, None], self.shuffled], 1) - self.original[:, None]
        most = moved.abs().max().item()
        changed = torch.cat([self.changed["reversed"][:, None], self.changed["shuffled"]], 1)
        which = "this clip" if clips == 1 else f"these {clips} clips"
        if most < _ROUNDING and not changed.any():
            return (
                f"The order of frames does not matter to the model for {which}: the most probable class stays, and the "
                f"probability changes by at most {most:.1g}."
            )
        share = changed.double().mean().item()
        return (
            f"The model reads the order of frames of {which}: in other orders the most probable class changes in "
            f"{share:.0%} of the cases, and the probability by up to {most:.2f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and text that JSON can hold."""
        names = ("original", "reversed", "shuffled", "still", "targets")
        values = {name: getattr(self, name).tolist() for name in names}
        changed = {name: flags.tolist() for name, flags in self.changed.items()}
        return {**values, "changed": changed, "names": list(self.names), "verdict": self.verdict}

    def __str__(self) -> str:
        """Return the mean probabilities and how often the class changes as a table, and the verdict."""
        lines = [f"{'':10}{'probability':>12}{'class changes':>16}"]
        for name in ("original", "reversed", "shuffled", "still"):
            share = f"{self.changed[name].double().mean().item():.0%}" if name in self.changed else ""
            lines.append(f"{name:10}{getattr(self, name).mean().item():>12.3f}{share:>16}".rstrip())
        return "\n".join(
            [f"Probability of {class_of(self.names)}, frames in another order:", *lines, *wrap(self.verdict, 72)]
        )


def frame_order(
    model: nn.Module, video: Tensor, *, target: Target | None = None, shuffles: int = 8, seed: int = 0
) -> FrameOrder:
    """Measure what the order of frames does to the answer: reversed, shuffled, and one frame repeated.

    A model whose temporal adapters have not been trained averages over frames, so that no order changes its answer but
    for rounding. It runs eight clips at a time, in evaluation mode and without gradients, as the model is set to run.

    Args:
        model: A wrapped model with classes.
        video: Clips as it reads them: ``[B, T, C, H, W]`` or another of its layouts, floating point, normalized.
        target: A class, by index or name, or one for each clip; None: the most probable class of each clip.
        shuffles: Number of random orders, the same for all clips; none of them is the order of the clip.
        seed: Seed of the random orders.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: A setting is invalid, there is no such class, or clips have a single frame.
        InputError: The video is none that the model reads.
        StateError: The model is not wrapped, holds several wrapped models, its adapters are disabled, or it returns
            values that are not finite.
        UnsupportedModelError: The model has no classes, or reads patches cut beforehand.
    """
    shuffles = require_integer("shuffles", shuffles, low=1, high=1000)
    seed = require_integer("seed", seed, low=0)
    changed = ChangedClips(model, video, target)
    clips, index = changed.clips, changed.targets
    frames = clips.shape[1]
    if frames == 1:
        raise ConfigError("the model reads clips of 1 frame, which have no order; wrap it with num_frames of 2 or more")
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(frames).flip(0), *(_shuffle(frames, generator) for _ in range(shuffles))]
    orders.append(torch.full((frames,), frames // 2))
    answers = changed.answer(clip[order.to(clip.device)] for clip in clips for order in orders)
    answers = answers.unflatten(0, (len(clips), len(orders)))  # [B, 2+shuffles, K]
    found = answers.gather(2, index[:, None, None].expand(-1, len(orders), 1))[..., 0]
    others = answers.argmax(2) != changed.probabilities.argmax(1)[:, None]
    return FrameOrder(
        original=changed.probabilities.gather(1, index[:, None])[:, 0],
        reversed=found[:, 0],
        shuffled=found[:, 1:-1],
        still=found[:, -1],
        changed={"reversed": others[:, 0], "shuffled": others[:, 1:-1], "still": others[:, -1]},
        targets=index,
        names=changed.names,
    )


def _shuffle(frames: int, generator: torch.Generator) -> Tensor:
    """Draw an order of two or more frames that is not the one they have."""
    while True:
        order = torch.randperm(frames, generator=generator)
        if not torch.equal(order, torch.arange(frames)):
            return order
