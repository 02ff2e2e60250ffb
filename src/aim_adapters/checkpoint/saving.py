"""Adapters saved to a directory, without the image model."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from aim_adapters.arguments import require_path
from aim_adapters.checkpoint.card import directory_card
from aim_adapters.checkpoint.snapshot import take_snapshot
from aim_adapters.core import only_root
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import CARD_NAME, file_mode, write_checkpoint


def save_adapters(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    allow_nonfinite: bool = False,
) -> Path:
    """Write one adapter, its config and a short model card into a directory; nothing of the image model.

    A save that fails, or is killed at any moment, leaves the old checkpoint or the new one: no file is replaced before
    all are complete on the disk, and a config is there only beside the weights that it describes (they hold it too, and
    can be loaded without it). The same adapter gives the same bytes each time. An existing ``README.md`` is updated if
    it has the section that a save or push wrote, and otherwise left alone. With FSDP2 every rank must call, and rank 0
    writes.

    Args:
        model: A wrapped model.
        directory: The directory; created if it does not exist.
        name: Name of the adapter; by default the one that runs.
        base_model_name_or_path: Name of the base model; by default its name in its library.
        base_model_revision: Revision of the base model's weights.
        frame_stride: Distance between sampled frames, in frames of the video; recorded for making clips later.
        labels: Names of the classes in the order of the outputs; by default those that the image model knows, such as
            transformers' ``id2label``.
        mean: Mean of each channel by which frames are normalized, for pixels in [0, 1]; by default that of the image
            model, if known.
        std: Standard deviation of each channel, likewise.
        allow_nonfinite: Whether NaN and infinities are saved; by default a run that diverged replaces nothing.

    Returns:
        The directory.

    Raises:
        TypeError: ``model`` is not a module, or ``directory`` not a path.
        StateError: The model is not wrapped, holds several wrapped models, or has no weights (meta device); or its
            adapters alone would give another model, as another tool has replaced parts of it or made parameters of the
            image model train.
        CheckpointError: ``directory`` is a file, or cannot be written, as on a full disk; `load_adapters` would not
            read the adapter, as a part of it was replaced, pruned, quantized or holds NaN; or the image model was
            changed after it was wrapped. What was there is unchanged.
        ConfigError: There is no adapter of this name; ``labels`` is a string, or does not have as many names as the
            adapter has classes; ``frame_stride`` is not an integer >= 1; ``mean`` or ``std`` is not a number
            for each channel; or a name cannot be written.
    """
    path = require_path("directory", directory)
    mode = file_mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path} is a file; save_adapters expects a directory")
    snapshot = take_snapshot(
        model,
        only_root(model),
        name=name,
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
        mean=mean,
        std=std,
        allow_nonfinite=allow_nonfinite,
    )
    if snapshot is None:
        return path
    card = directory_card(path / CARD_NAME, snapshot.config, parameters=snapshot.parameters)
    write_checkpoint(path, snapshot.tensors, snapshot.metadata(), config=snapshot.config_text(), card=card)
    return path
