"""The class that an explanation is about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aim_adapters.arguments import read_items, shown
from aim_adapters.clip_spec import known_labels
from aim_adapters.core import WrappedModel
from aim_adapters.errors import ConfigError, UnsupportedModelError

Target = int | str | Sequence[int] | Sequence[str] | Tensor


def target_indices(wrapped: WrappedModel, logits: Tensor, target: Target) -> Tensor:
    """Return the index of a class for each clip.

    Args:
        wrapped: The model.
        logits: What it answered, ``[B, K]``.
        target: A class by index or name, or one for each clip.

    Returns:
        int64 ``[B]``, on the device of ``logits``.

    Raises:
        ConfigError: There is no such class, or the number of classes is not that of the clips.
        UnsupportedModelError: The model has no classes.
    """
    require_classes(wrapped, logits)
    clips, count = logits.shape
    several = not isinstance(target, (int, str)) and not (isinstance(target, Tensor) and target.ndim == 0)
    refusal = "target must be the index or the name of a class, or one for each clip"
    items = read_items(target, refusal) if several else [target.item() if isinstance(target, Tensor) else target]
    if several and len(items) != clips:
        raise ConfigError(f"target must be one class, or one for each of {clips} clips, got {len(items)}")
    labels = known_labels(wrapped, wrapped.find(None), wrapped.state.anatomy.model_name)
    indices = [_index(item, count, labels) for item in items]
    return torch.tensor(indices * (1 if several else clips), device=logits.device)


def require_classes(wrapped: WrappedModel, logits: Tensor) -> None:
    """Refuse a model that answers with features, not with classes.

    Args:
        wrapped: The model.
        logits: What it answered.

    Raises:
        UnsupportedModelError: It has no classification layer.
    """
    state = wrapped.state
    layers = {head.name: wrapped.root.get_submodule(head.path) for head in state.anatomy.heads if head.classifier}
    classifies = any(not isinstance(layer, nn.Identity) for layer in layers.values())
    classifies |= any(state.classifier(name) is not None for name in ("head", *layers))
    # num_classes=0 takes the image model's own layer out of the call, and leaves it where it is.
    if logits.ndim != 2 or not classifies or state.config.num_classes == 0:
        raise UnsupportedModelError(
            f"the model has no classes: it returns features {list(logits.shape)}; wrap it with num_classes or labels"
        )


def _index(item: object, count: int, labels: Sequence[str] | None) -> int:
    if isinstance(item, str):
        if labels is None:
            raise ConfigError(
                f"target {shown(item)} is a name, but the model knows no names; pass an index below {count}"
            )
        if item not in labels:
            known = ", ".join(map(repr, labels[:8])) + ", …" * (len(labels) > 8)
            raise ConfigError(f"target must be one of the model's classes, {known}; got {shown(item)}")
        return list(labels).index(item)
    if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < count:
        raise ConfigError(f"target must be the index of one of {count} classes, or a name, got {shown(item)}")
    return item
