"""The callback for Lightning, which keeps frozen weights out of checkpoints and puts adapters beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from aim_adapters.checkpoint import save_adapters
from aim_adapters.core import (
    canonical_path,
    find_changes,
    find_roots,
    is_own_name,
    is_sharded,
    listed,
    sample_weights,
)
from aim_adapters.errors import CheckpointError, StateError, warn
from aim_adapters.integrations.decay import warn_decayed

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback  # type: ignore[assignment]  # the same under its older name

_KEY, _SUFFIX, _FORMAT = "aim_adapters", ".aim", 1


class LightningAdapterCallback(Callback):
    """A callback for Lightning's ``Trainer``: ``Trainer(callbacks=[LightningAdapterCallback()])``.

    Checkpoints hold what trains, the state of the optimizer and of the loops, but not the frozen weights of the image
    model, which are some hundred megabytes each time. ``trainer.fit(module, ckpt_path=...)``, ``test``, ``validate``
    and ``predict`` take those of the module, compare them with what the checkpoint was made with, and load strictly.
    Beside each ``NAME.ckpt`` there is a folder ``NAME.aim`` with the adapters, for `load_adapters`, which is removed
    with it.

    Weights that are sharded stay in the checkpoint. A wrapped model that is in evaluation mode when training starts is
    put into training mode, which Lightning would not do. Of modules in evaluation mode Lightning warns all the same:
    they are the frozen ones.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let checkpoints pass through this callback.

        Args:
            trainer: The trainer.
            pl_module: The ``LightningModule``.
            stage: What is about to run.
        """
        files = trainer.strategy.checkpoint_io
        inner = files.inner if isinstance(files, _CheckpointFiles) else files
        trainer.strategy.checkpoint_io = _CheckpointFiles(inner, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See to it that the adapters train.

        Args:
            trainer: The trainer.
            pl_module: The ``LightningModule``.

        Raises:
            StateError: Nothing in the module is wrapped.
        """
        for wrapped in find_roots(pl_module):
            if not wrapped.root.training:
                wrapped.root.train()
                warn(
                    f"{wrapped.path!r} was in evaluation mode, without dropout and stochastic depth, and is now in "
                    "training mode; call train() on it before trainer.fit"
                )
        warn_decayed(
            pl_module,
            trainer.optimizers,
            "the optimizer decays the temporal embedding; make it in configure_optimizers from "
            "aim.adapter_param_groups(model, weight_decay=...)",
        )


class _CheckpointFiles:
    """Lightning's ``CheckpointIO``, with what is frozen left out of the files; all else is as the inner one does it."""

    def __init__(self, inner: Any, module: nn.Module) -> None:
        self.inner, self.module = inner, module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, and the adapters beside it.

        Args:
            checkpoint: What the trainer has collected.
            path: Path of the file.
            storage_options: As the inner one takes them.
        """
        # A launcher that forks hands weights over as a bare state dict.
        facts, left_out = _frozen(self.module) if "state_dict" in checkpoint else ({}, set())
        if left_out:
            kept = {key: value for key, value in checkpoint["state_dict"].items() if key not in left_out}
            facts = {"format": _FORMAT, "left_out": sorted(left_out), "image_models": facts}
            checkpoint = {**checkpoint, "state_dict": kept, _KEY: facts}
        self.inner.save_checkpoint(checkpoint, path, storage_options=storage_options)
        if (folder := _folder(path)) is not None and left_out:
            try:
                save_adapters(self.module, folder)
            except StateError as error:
                warn(f"there is no folder {folder} with the adapters alone: {error}")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, and complete it with the frozen weights of the module.

        Args:
            path: Path of the file.
            *args: As the inner one takes them.
            **kwargs: The same.

        Raises:
            CheckpointError: The image model is another one.
            StateError: Nothing in the module is wrapped.
        """
        checkpoint: dict[str, Any] = self.inner.load_checkpoint(path, *args, **kwargs)
        facts = checkpoint.get(_KEY)
        if facts is None:
            return checkpoint
        roots = {wrapped.path: wrapped.root for wrapped in find_roots(self.module)}
        for name, samples in facts["image_models"].items():
            if name in roots and (changed := find_changes(samples, roots[name])):
                raise CheckpointError(
                    f"{path} was made with another image model at {name!r}: {listed(changed)} differ; build it "
                    "with the same pre-trained weights"
                )
        own = self.module.state_dict()
        left_out = {key: own[key] for key in facts["left_out"] if key in own}
        return {**checkpoint, "state_dict": {**checkpoint["state_dict"], **left_out}}

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, and the adapters beside it.

        Args:
            path: Path of the file.
        """
        self.inner.remove_checkpoint(path)
        if (folder := _folder(path)) is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _frozen(module: nn.Module) -> tuple[dict[str, Any], set[str]]:
    """Return a few values of each wrapped image model by its path, and the names of its weights that never change."""
    samples: dict[str, Any] = {}
    names: set[str] = set()
    roots = find_roots(module)
    if any(is_sharded(parameter) for parameter in module.parameters()):
        return samples, names
    for wrapped in roots:
        prefix = f"{wrapped.path}." if wrapped.path else ""
        changed = set(find_changes(wrapped.state.record.samples, wrapped.root))
        found = {
            name
            for name, parameter in wrapped.root.named_parameters()
            if not parameter.requires_grad and not is_own_name(name) and canonical_path(name) not in changed
        }
        names |= {prefix + name for name in found}
        plain = set(map(canonical_path, found))
        samples[wrapped.path] = {key: row for key, row in sample_weights(wrapped.root).items() if key in plain}
    return samples, names


def _folder(path: Any) -> Path | None:
    """Return the folder for the adapters beside a checkpoint; None if that is not on a disk."""
    if "://" in str(path):
        return None
    file = Path(path)
    return file.with_name(file.name.removesuffix(".ckpt") + _SUFFIX)
