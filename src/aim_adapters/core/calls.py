"""A call of a model from outside of a training loop: its mode, and what it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from aim_adapters.errors import UnsupportedModelError


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the block, and restore the mode of each module after it.

    Args:
        model: Any module.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def pooled_output(out: Any, pooled_outputs: tuple[str, ...]) -> Tensor:
    """Return the logits or features among a model's outputs, one row per clip.

    Args:
        out: What the model returned.
        pooled_outputs: Names of outputs that are pooled over tokens, from the model's anatomy.

    Raises:
        UnsupportedModelError: There are none.
    """
    if isinstance(out, tuple):
        out = out[0]
    if isinstance(out, Tensor):
        return out
    # First the mean over several classification layers, else the output that was pooled last.
    for name in ("logits", *reversed(pooled_outputs)):
        if isinstance(pooled := getattr(out, name, None), Tensor):
            return pooled
    raise UnsupportedModelError(
        f"this model returns a {type(out).__name__} without {' or '.join(pooled_outputs)}: it pools nothing over "
        "tokens; load it with its pooling layer"
    )
