"""A trust check of maps: whether they point at what the answer depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.analysis.answering import ChangedClips, class_of
from aim_adapters.analysis.maps import attention_maps
from aim_adapters.analysis.targets import Target
from aim_adapters.arguments import require_choice, require_integer, shown
from aim_adapters.errors import InputError

_BLUR = 16  # times smaller, and back: what is left has no details


@dataclass(frozen=True, repr=False)
class DeletionCurves:
    """How the probability of a class falls as more and more of a clip is removed; `deletion_curves` makes it.

    ``print`` shows it in words. All curves begin with the clip as it is and end with everything removed.

    Attributes:
        fractions: Share of the patches that is removed at each step, ``[S+1]``, from 0 to 1.
        most: Probability as the most attended patches are removed first, float64 ``[B, S+1]``.
        least: The same, the least attended first.
        draws: The same in random orders, ``[draws, B, S+1]``.
        targets: Indices of the classes, int64 ``[B]``.
        names: Names of the classes; of one without a name, its index.
        remove: What removed patches are replaced with.
    """

    fractions: Tensor
    most: Tensor
    least: Tensor
    draws: Tensor
    targets: Tensor
    names: tuple[str, ...]
    remove: str

    @property
    def random(self) -> Tensor:
        """Mean over the random orders, ``[B, S+1]``."""
        return self.draws.mean(0)

    @property
    def areas(self) -> dict[str, Tensor]:
        """Area under each curve ``[B]``, from 0 to 1: of ``"most"``, ``"random"`` and ``"least"``."""
        return {name: self._area(getattr(self, name)) for name in ("most", "random", "least")}

    @property
    def verdict(self) -> str:
        """What the curves say, over all clips, in words."""
        first, last = self.most[:, 0].mean().item(), self.most[:, -1].mean().item()
        if last >= first:
            return (
                f"With everything removed the probability is no lower ({first:.2f} before, {last:.2f} after), so these "
                "curves tell nothing about the maps."
            )
        most, random = self._area(self.most).mean().item(), self._area(self.draws).mean(1)  # [draws]
        low, high = random.min().item(), random.max().item()
        numbers = f"area {most:.3f}; {len(random)} random orders: {low:.3f} to {high:.3f}"
        if most < low:
            return (
                "The maps point at what the answer depends on: the probability falls faster than in random orders "
                f"({numbers})."
            )
        if most > high:
            return (
                "The maps do not point at what the answer depends on: the probability falls more slowly than in random "
                f"orders ({numbers})."
            )
        return f"The maps say no more about the answer than random orders do ({numbers})."

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and text that JSON can hold."""
        curves = {name: getattr(self, name).tolist() for name in ("fractions", "most", "least", "draws", "targets")}
        areas = {name: area.tolist() for name, area in self.areas.items()}
        return {**curves, "names": list(self.names), "remove": self.remove, "areas": areas, "verdict": self.verdict}

    def __str__(self) -> str:
        """Return the mean curves as a table, and the verdict."""
        names = ("most", "random", "least")
        lines = [f"{'removed':>8}" + "".join(f"{name:>9}" for name in names)]
        for place, fraction in enumerate(self.fractions.tolist()):
            values = (getattr(self, name)[:, place].mean().item() for name in names)
            lines.append(f"{fraction:>8.0%}" + "".join(f"{value:>9.3f}" for value in values))
        lines.append(f"{'area':>8}" + "".join(f"{area.mean().item():>9.3f}" for area in self.areas.values()))
        return "\n".join(
            [f"Probability of {class_of(self.names)}, patches removed first:", *lines, *wrap(self.verdict, 72)]
        )

    def _area(self, curve: Tensor) -> Tensor:
        return torch.trapezoid(curve, self.fractions)


def deletion_curves(
    model: nn.Module,
    video: Tensor,
    maps: Tensor | None = None,
    *,
    target: Target | None = None,
    steps: int = 10,
    draws: int = 5,
    remove: str = "blur",
    seed: int = 0,
) -> DeletionCurves:
    """Measure how the probability of a class falls as patches are removed, the most attended ones first.

    Deletion (Petsiuk, Das and Saenko, 2018), over all frames of a clip together. If maps point at what the answer
    depends on, the probability falls faster than in random orders. A clip takes about ``(2 + draws) * steps`` calls;
    they run eight clips at a time, in evaluation mode and without gradients, as the model is set to run.

    Args:
        model: A wrapped model with classes.
        video: Clips as it reads them: ``[B, T, C, H, W]`` or another of its layouts, floating point, normalized.
        maps: What to test, ``[B, T, rows, cols]``; fewer maps than frames, as of tubelets, stand for several frames
            each. None: the attention of the last block, ``attention_maps(model, video).spatial()``.
        target: A class, by index or name, or one for each clip; None: the most probable class of each clip.
        steps: Number of steps from the clip as it is to one with everything removed.
        draws: Number of random orders.
        remove: What takes the place of a patch: ``"blur"``, the frame without details; or ``"mean"``, the mean color
            of the clip.
        seed: Seed of the random orders.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: A setting is invalid, or there is no such class.
        InputError: The video is none that the model reads, or the maps are not of it.
        StateError: The model is not wrapped, holds several wrapped models, its adapters are disabled, or it returns
            values that are not finite.
        UnsupportedModelError: The model has no classes, reads patches cut beforehand, or, without ``maps``, its
            attention cannot be recorded.
    """
    steps = require_integer("steps", steps, low=1, high=1000)
    draws = require_integer("draws", draws, low=1, high=1000)
    seed = require_integer("seed", seed, low=0)
    require_choice("remove", remove, ("blur", "mean"))
    changed = ChangedClips(model, video, target)
    clips = changed.clips
    if maps is None:
        maps = attention_maps(model, clips.flatten(0, 1), blocks=[-1]).spatial()
    _require_maps(maps, clips)
    generator = torch.Generator().manual_seed(seed)
    # Of each clip its orders, the most attended first; places are those of all its maps.
    ranked = maps.detach().cpu().flatten(1).argsort(dim=1, descending=True, stable=True)  # [B, N]
    count = ranked.shape[1]
    random = [torch.randperm(count, generator=generator).expand(len(clips), -1) for _ in range(draws)]
    orders = torch.stack([ranked, ranked.flip(1), *random])  # [2+draws, B, N]
    counts = [round(count * step / steps) for step in range(1, steps)]

    def partly() -> Iterator[Tensor]:
        for clip, order in zip(clips, orders.transpose(0, 1), strict=True):
            replacement = _replacement(clip, remove)
            for places in order:
                for first in counts:
                    yield _removed(clip, replacement, places[:first], maps.shape[1:])

    # Both ends are the same in every order.
    whole = changed.answer(_replacement(clip, remove).expand_as(clip) for clip in clips)
    curves = torch.empty(2 + draws, len(clips), steps + 1, dtype=torch.float64)
    index = changed.targets
    curves[:, :, 0] = changed.probabilities.gather(1, index[:, None])[:, 0]
    curves[:, :, -1] = whole.gather(1, index[:, None])[:, 0]
    if counts:
        between = changed.answer(partly()).unflatten(0, (len(clips), 2 + draws, len(counts)))  # [B, orders, S-1, K]
        chosen = between.gather(3, index[:, None, None, None].expand(-1, 2 + draws, len(counts), 1))[..., 0]
        curves[:, :, 1:-1] = chosen.transpose(0, 1)
    return DeletionCurves(
        fractions=torch.tensor([0, *counts, count], dtype=torch.float64) / count,
        most=curves[0],
        least=curves[1],
        draws=curves[2:],
        targets=index,
        names=changed.names,
        remove=remove,
    )


def _removed(clip: Tensor, replacement: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Return a clip ``[T, C, H, W]`` without some of the patches of maps of this shape."""
    mask = torch.zeros(shape.numel())
    mask[places] = 1
    over = F.interpolate(mask.view(shape)[:, None], size=clip.shape[2:], mode="nearest-exact")  # [M, 1, H, W]
    over = over.repeat_interleave(len(clip) // shape[0], dim=0).to(clip.device)  # [T, 1, H, W]
    return torch.where(over > 0, replacement, clip)


def _replacement(clip: Tensor, remove: str) -> Tensor:
    """Return what takes the place of removed patches, which `torch.where` can pick from."""
    if remove == "mean":
        return clip.float().mean((0, 2, 3), keepdim=True).to(clip.dtype)
    height, width = clip.shape[2:]
    small = (max(1, height // _BLUR), max(1, width // _BLUR))
    blurred = F.interpolate(clip.float(), size=small, mode="area")
    return F.interpolate(blurred, size=(height, width), mode="bilinear").to(clip.dtype)


def _require_maps(maps: object, clips: Tensor) -> None:
    count, frames = clips.shape[:2]
    expected = f"maps must be floating point [B, T, rows, cols] for {count} clips of {frames} frames"
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise InputError(f"{expected}, got {maps.dtype if isinstance(maps, Tensor) else shown(maps)}")
    if maps.ndim != 4 or not maps.numel() or len(maps) != count or frames % maps.shape[1]:
        advice = "; of one clip, pass maps[None]" if maps.ndim == 3 and count == 1 else ""
        raise InputError(f"{expected}, got the shape {list(maps.shape)}{advice}")
    if not maps.isfinite().all():
        raise InputError(f"{expected}, got values that are NaN or infinite")
