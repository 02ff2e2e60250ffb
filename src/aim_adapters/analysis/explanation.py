"""What a model sees in one video: where it looks with which adapters, what it answers, and a page that shows it."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch import Tensor, nn

from aim_adapters.analysis.faithfulness import deletion_curves
from aim_adapters.analysis.maps import AttentionMaps, attention_maps
from aim_adapters.analysis.ordering import frame_order
from aim_adapters.analysis.targets import target_indices
from aim_adapters.analysis.variants import variants_of
from aim_adapters.analysis.viewer import (
    LIMIT,
    Variant,
    build_page,
    build_scene,
    class_rows,
    describe_deletion,
    describe_order,
    pack_maps,
    ranked,
)
from aim_adapters.arguments import require_flags, require_integer, require_path, shown
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.config import AIMConfig
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.storage import replaced_when_whole
from aim_adapters.video import ClipReader, ClipTransform, Normalize, list_videos, read_views, spec_of

_NOTEBOOK_LIMIT = 4_000_000  # bytes of a page inside a notebook, which is saved with it


@dataclass(frozen=True, repr=False)
class Explanation:
    """A clip, what a model answers, and where it looks; `explain` makes it, and a notebook shows it.

    Attributes:
        title: Name of the video.
        frames: What the model saw, before normalization: uint8 ``[T, 3, H, W]``.
        target: Name of the class that the explanation is about.
        predictions: For each variant the most probable classes and their probabilities, the most probable first.
    """

    title: str
    frames: Tensor
    target: str
    predictions: Mapping[str, Sequence[tuple[str, float]]]
    _variants: Sequence[Variant]
    _scene: Mapping[str, Any]

    def __repr__(self) -> str:
        lines = [f"{name}: {answers[0][1]:.1%} {answers[0][0]}" for name, answers in self.predictions.items()]
        return "\n".join([f"Explanation of {self.title} for {self.target!r}", *lines])

    def to_html(self, *, limit: int = LIMIT) -> str:
        """Return the page: one HTML document that needs no network.

        Args:
            limit: About how many bytes it may have; what does not fit is left out, and the page says so.

        Raises:
            ConfigError: ``limit`` is no positive integer.
        """
        limit = require_integer("limit", limit, low=1)
        return build_page(self.title, self.frames, self._variants, self._scene, limit=limit)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page as one file that needs no network; a file that is there is replaced when the new one is whole.

        Args:
            path: The file, such as ``report.html``; folders that do not exist are made.

        Raises:
            TypeError: It is no path.
            ConfigError: It names no file.
            OSError: It cannot be written.
        """
        file = Path(os.path.expanduser(require_path("path", path)))  # noqa: PTH111 (Path's own may raise)
        if not file.name or "\0" in str(file):
            raise ConfigError(f"path must name a file, such as 'report.html', got {shown(path)}")
        with replaced_when_whole(file) as staged:
            staged.write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, which notebooks show."""
        page = html.escape(self.to_html(limit=_NOTEBOOK_LIMIT))
        title = html.escape(f"Where the model looks in {self.title}")
        style = "width: 100%; height: 960px; border: 0"
        return f'<iframe sandbox="allow-scripts" title="{title}" style="{style}" srcdoc="{page}"></iframe>'


def explain(
    model: nn.Module,
    source: str | os.PathLike[str] | bytes | IO[bytes] | Tensor | Any,
    *,
    top: int = 5,
    variants: bool = True,
    blocks: Sequence[int] | None = None,
    target: int | str | None = None,
    checks: bool = True,
    spec: ClipSpec | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Explanation:
    """Explain what a model answers for a video: where it looks, in space and in time, with and without its adapters.

    One clip is read, from the middle of frames, as `predict` reads it with ``views="1x1"``.

    Args:
        model: A wrapped model with classes, such as `load_video_model` returns. It stays where and as it is.
        source: One video, as `predict` takes it.
        top: How many classes to show.
        variants: Also show the model without its adapters, with the spatial ones, and with the temporal ones besides.
        blocks: Indices of the blocks to show; negative ones count from the last. None: all.
        target: The class to explain, by index or name; None: the most probable one.
        checks: Also measure what the order of frames matters, and how fast the answer falls as patches are removed.
        spec: What the model reads, if it does not say so itself.
        progress: Called with how many steps are done, of how many.

    Raises:
        TypeError: ``model`` is no module, or ``source`` is of another kind.
        ConfigError: There is no such class or block, or ``source`` is a folder of several videos.
        InputError: A tensor or array is no video.
        StateError: The model is not wrapped, has no classes, is disabled, or returns values that are not finite.
        UnsupportedModelError: Its attention cannot be recorded.
        VideoError: The video cannot be read.
    """
    spec = spec_of(model, spec)
    wrapped = only_root(model)
    top = require_integer("top", top, low=1)
    require_flags(variants=variants, checks=checks)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of two numbers, or None, got {shown(progress)}")
    frames = _read(source, spec)
    clip = _normalized(frames, spec, model)
    chosen = variants_of(model)
    if not variants:
        chosen = dict(list(chosen.items())[-1:])  # all that the model has
    steps = _Steps(progress, 1 + len(chosen) + 2 * checks)

    logits = attention_maps(model, clip, blocks=[-1]).logits
    names = spec.labels or tuple(map(str, range(logits.shape[1])))
    if len(names) != logits.shape[1]:
        raise StateError(f"the model returns {logits.shape[1]} classes, and {len(names)} have names")
    if target is None:
        index = int(logits[0].argmax())
    elif isinstance(target, str) and target in names:
        index = names.index(target)
    else:
        index = int(target_indices(wrapped, logits, target)[0])
    steps.done()

    found: list[Variant] = []
    answers: dict[str, Tensor] = {}
    for name, components in chosen.items():
        maps = attention_maps(model, clip, blocks=blocks, components=components, target=index)
        if not maps.blocks:
            raise ConfigError("blocks must name at least one block, got none; leave it out for all")
        probabilities = maps.logits[0].double().softmax(0)
        if not probabilities.isfinite().all():
            raise StateError(f"the model returns values that are not finite for {_title(source)}")
        answers[name] = probabilities
        found.append(_packed(name, maps, ranked(probabilities, names, top), wrapped.state.config))
        steps.done()

    about = (index, names[index])
    scene = build_scene(maps, frames, spec, wrapped.state, target=about, count=len(names))
    scene |= {"rows": class_rows(answers, names, index, top)}
    if checks:
        scene["order"] = describe_order(frame_order(model, clip, target=index)) if len(frames) > 1 else None
        steps.done()
        scene["deletion"] = describe_deletion(deletion_curves(model, clip, maps.relevance(), target=index))
        steps.done()
    predictions = {variant.name: variant.answers for variant in found}
    return Explanation(_title(source), frames, names[index], predictions, tuple(found), scene)


def _packed(name: str, maps: AttentionMaps, answers: tuple[tuple[str, float], ...], config: AIMConfig) -> Variant:
    if "temporal" not in maps.components:
        instead = "each frame is looked at alone"
    elif config.attends_over_frames:
        instead = "those that do were not asked for"
    else:
        instead = "a convolution relates the frames, which has no attention to show"
    return Variant(
        name,
        answers,
        maps=tuple(pack_maps(maps, relevance=True)),
        blocks=tuple((block, maps.heads[block]) for block in maps.blocks),
        temporal_blocks=maps.temporal_blocks,
        instead=instead,
    )


class _Steps:
    """A count of what is done."""

    def __init__(self, progress: Callable[[int, int], object] | None, total: int) -> None:
        self.progress, self.total, self.count = progress, total, 0

    def done(self) -> None:
        self.count += 1
        if self.progress is not None:
            self.progress(self.count, self.total)


def _read(source: Any, spec: ClipSpec) -> Tensor:
    """Return the clip, uint8 ``[T, 3, H, W]``."""
    if videos := list_videos(source):
        raise ConfigError(f"source must be one video, got a folder of {len(videos)}, such as {str(videos[0])!r}")
    transform = ClipTransform(spec.image_size)
    return read_views(source, ClipReader(spec.frames, stride=spec.stride, transform=transform))[0]


def _normalized(frames: Tensor, spec: ClipSpec, model: nn.Module) -> Tensor:
    """Return the clip as the model reads it, ``[1, T, 3, H, W]``."""
    weights = [p for p in model.parameters() if p.is_floating_point() and p.ndim > 1]
    clip: Tensor = Normalize(spec.mean, spec.std)(frames)[None]
    return clip.to(weights[0]) if weights else clip


def _title(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        # Names of files need not be UTF-8, and a page is.
        return os.fsencode(Path(source).name or os.fspath(source)).decode(errors="replace")
    name = getattr(source, "name", None)
    return _title(name) if isinstance(name, str) else "The video"
