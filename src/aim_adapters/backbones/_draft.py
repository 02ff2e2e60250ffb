"""A base model without memory, compared with what is expected before its weights are fetched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from aim_adapters.backbones._assign import Idle
from aim_adapters.backbones._limits import MOST_PARAMETERS, most_parameters
from aim_adapters.backbones.descriptor import BaseRequest
from aim_adapters.errors import CheckpointError


def check_draft(create: Callable[[], nn.Module], request: BaseRequest) -> int:
    """Build a model without weights on the meta device, where it takes no memory, and let the request check it.

    Args:
        create: Builds the model without weights.
        request: The request.

    Returns:
        The number of values in its parameters and buffers, for `require_filled`; 0 if the request checks nothing.

    Raises:
        CheckpointError: The model is larger than any image transformer.
        As ``create``, and as ``request.check``.
    """
    if request.check is None:
        return 0
    thread, root = threading.get_ident(), logging.getLogger()

    def is_from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread  # libraries note that a model has no weights

    root.addFilter(is_from_elsewhere)
    try:
        with torch.device("meta"), Idle():
            draft = create()
    except CheckpointError:
        raise
    except RuntimeError:  # its constructor computes with values
        return 0
    finally:
        root.removeFilter(is_from_elsewhere)
    request.check(draft)
    values = sum(tensor.numel() for tensors in (draft.parameters(), draft.buffers()) for tensor in tensors)
    if values > MOST_PARAMETERS:
        raise CheckpointError(f"it asks for {values:,} values, the most that is built is {MOST_PARAMETERS:,}")
    return values


def require_filled(values: int, weights: Sequence[Path]) -> None:
    """Refuse a model that has far more values than its weights: memory would be taken before they are missed.

    Args:
        values: The number of values in the model.
        weights: The files with its weights.

    Raises:
        CheckpointError: It has far more.
    """
    if values > (most := most_parameters(weights)):
        raise CheckpointError(f"it asks for {values:,} values, but its weights hold less than {most:,}")
