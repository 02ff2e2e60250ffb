"""Write an adapter into a directory, and nothing else of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from aim_adapters.checkpoint.card import write_card
from aim_adapters.checkpoint.snapshot import take_snapshot
from aim_adapters.core import only_root
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, replace_text, write_weights


def save_adapters(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write one adapter, its config and a short card into a directory; nothing of the image model.

    Each file is replaced atomically; the weights come last and carry the whole config in their header, so that a save
    that is interrupted, even killed, leaves the old checkpoint or the new one. A ``README.md`` that exists is brought
    up to date if it holds the section that a save or push wrote, and else left alone. With FSDP2 every rank must call,
    and rank 0 writes.

    Args:
        model: A wrapped model.
        directory: Made if it does not exist.
        name: Which adapter, of several; by default the one that runs.
        base_model_name_or_path: Name of the base model; by default the one its library knows.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Frames from one sampled frame to the next, for whoever makes clips later.
        labels: Names of the classes in the order of the outputs.

    Returns:
        The directory.

    Raises:
        StateError: The model is not wrapped, holds several wrapped models, or has no weights (meta device).
        CheckpointError: ``directory`` is a file.
        ConfigError: There is no adapter of this name; ``labels`` is a string, or does not have as many names as the
            adapter has classes; or ``frame_stride`` is no number of frames.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; save_adapters expects a directory")
    snapshot = take_snapshot(
        model,
        only_root(model),
        name=name,
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
    )
    if snapshot is None:
        return path
    path.mkdir(parents=True, exist_ok=True)
    write_card(path / CARD_NAME, snapshot.config, parameters=snapshot.parameters)
    replace_text(path / CONFIG_NAME, snapshot.config_text())
    write_weights(path / WEIGHTS_NAME, snapshot.state, snapshot.metadata())
    return path
