"""What methods of timm's and open_clip's models answer while a model is wrapped: `BackboneAnatomy.overrides`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def no_weight_decay(model: nn.Module, adapter: Any, original: Callable[[], set[str]]) -> set[str]:
    """Return the names of parameters that should not decay, with the temporal embedding and biases.

    Args:
        model: The model, or one that holds it.
        adapter: The adapter that runs.
        original: The model's own method.
    """
    temporal = (
        name for name, _ in model.named_parameters() if name.endswith((".temporal_embedding", ".temporal_bias"))
    )
    return {*original(), *temporal}


def get_classifier(model: nn.Module, adapter: Any, original: Callable[[], Any]) -> Any:
    """Return the classification layer that runs, or several as the model's own method does.

    Args:
        model: The model.
        adapter: The adapter that runs.
        original: The model's own method.
    """
    own = original()
    if not adapter.enabled:
        return own
    several = own if isinstance(own, tuple) else (own,)
    removed = nn.Identity() if adapter.config.num_classes is not None else None
    layers = tuple(
        adapter.classifier(head.name) or removed or layer
        for head, layer in zip(adapter.anatomy.heads, several, strict=True)
    )
    return layers if isinstance(own, tuple) else layers[0]


def group_matcher(model: nn.Module, adapter: Any, original: Callable[..., Any], coarse: bool = False) -> Any:
    """Return what groups parameters by layer, with the temporal embedding in the group of the tokens it is added to.

    What else is ours lies in the blocks, in the norm, or unmatched as the classifier is.

    Args:
        model: The model.
        adapter: The adapter that runs.
        original: The model's own method.
        coarse: As the model's own method takes it.
    """
    matcher = dict(original(coarse))
    if adapter.temporal_embedding is None:
        return matcher
    name, first = r"^aim\.temporal_embedding", adapter.config.adapted_blocks(len(adapter.anatomy.blocks))[0]
    if first == 0:
        matcher["stem"] += f"|{name}"
    else:
        matcher["blocks"] = [(name, (first,)), *matcher["blocks"]]
    return matcher


OVERRIDES = (("get_classifier", get_classifier), ("no_weight_decay", no_weight_decay), ("group_matcher", group_matcher))
