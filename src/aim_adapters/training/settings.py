"""The settings of a run, completed from its recipe and checked against model and data before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aim_adapters.arguments import require_integer, require_number
from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import ConfigError
from aim_adapters.recipes import Recipe

# Settings that a run which continues must have had before: with another value it would be another run.
SAME = (
    "recipe_settings", "dummy_data", "data", "videos", "labels", "epochs", "total_batch", "learning_rate",
    "head_learning_rate", "weight_decay", "max_norm", "ema", "precision", "seed", "cached",
)  # fmt: skip


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run, all of them decided.

    Args:
        recipe: Name of the recipe.
        epochs: Passes through the data.
        batch_size: Clips of one process in one pass through the model.
        accumulate: Passes of a step.
        total_batch: Clips of a step, of all processes.
        learning_rate: Highest rate of the adapters.
        head_learning_rate: Highest rate of the classifier.
        weight_decay: Weight decay.
        label_smoothing: Label smoothing.
        warmup_epochs: Epochs of the warm-up.
        max_norm: Greatest norm of the gradients, or None.
        ema: Decay of averaged weights, or None.
        precision: Precision of products.
        seed: Seed.
        videos: Number of training videos.
        labels: Names of the classes.
        recipe_settings: The whole recipe, as JSON holds it.
        data: A digest of the names and classes of the training videos; empty for a stream.
        dummy_data: Whether clips are random.
        cached: Whether a probe trains on features that are kept.
    """

    recipe: str
    epochs: int
    batch_size: int
    accumulate: int
    total_batch: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    label_smoothing: float
    warmup_epochs: float
    max_norm: float | None
    ema: float | None
    precision: str
    seed: int
    videos: int
    labels: tuple[str, ...]
    recipe_settings: dict[str, Any]
    data: str
    dummy_data: bool
    cached: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch. Clips that do not fill a step are left out: in each epoch it is others."""
        return max(self.videos // self.total_batch, 1)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Return how these settings differ from those of a run that is to be continued.

        Args:
            saved: What `to_dict` returned for that run.
        """
        saved = {"cached": False, **saved}  # runs of versions that could not
        pairs = {name: (saved.get(name), value) for name, value in self.to_dict().items() if name in SAME}
        before, now = pairs.pop("recipe_settings")
        if isinstance(before, dict):  # settings of the recipe one by one
            # A setting that recipes did not have then was what it is by default.
            before = {each.name: each.default for each in dataclasses.fields(Recipe)} | before
            pairs = {f"{name} of the recipe": (before.get(name), value) for name, value in now.items()} | pairs
        return [f"{name} was {was!r:.80}, is {is_!r:.80}" for name, (was, is_) in pairs.items() if was != is_]


def decide_settings(
    recipe: Recipe,
    *,
    epochs: int | None,
    batch_size: int | None,
    accumulate: int,
    learning_rate: float | None,
    max_norm: float | None,
    ema: float | None,
    precision: str,
    seed: int,
    processes: int,
    data: Any,
    dummy_data: bool,
    labels: Sequence[str],
) -> RunSettings:
    """Complete the settings of a run from its recipe. The learning rate grows with the number of clips in a step.

    Args:
        recipe: The recipe.
        epochs: Passes through the data, or None.
        batch_size: Clips of one process in one pass, or None.
        accumulate: Passes of a step.
        learning_rate: Highest learning rate of the adapters, or None.
        max_norm: Greatest norm of the gradients, or None.
        ema: Decay of averaged weights, or None.
        precision: Precision of products.
        seed: Seed.
        processes: Number of processes.
        data: The training data.
        dummy_data: Whether clips are random instead.
        labels: Names of the classes.

    Raises:
        ConfigError: One has a value that it cannot have, or nobody knows how many videos there are.
    """
    accumulate = require_integer("accumulate", accumulate, low=1)
    if batch_size is None:
        batch_size = max(recipe.batch_size // (processes * accumulate), 1)
    batch_size = require_integer("batch_size", batch_size, low=1)
    total = batch_size * accumulate * processes
    scale = total / recipe.batch_size
    rate = recipe.learning_rate * scale
    head = (recipe.head_learning_rate or recipe.learning_rate) * scale
    if learning_rate is not None:
        given = require_number("learning_rate", learning_rate, low=0.0)
        rate, head = given, given * head / rate
    if ema is not None:
        ema = require_number("ema", ema, low=0.0, high=1.0)
    if max_norm is not None:
        max_norm = require_number("max_norm", max_norm, low=0.0, open_low=True)
    epochs = recipe.epochs if epochs is None else require_integer("epochs", epochs, low=1)
    return RunSettings(
        recipe=recipe.name,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        total_batch=total,
        learning_rate=rate,
        head_learning_rate=head,
        weight_decay=recipe.weight_decay,
        label_smoothing=recipe.label_smoothing,
        warmup_epochs=recipe.warmup_epochs * epochs / recipe.epochs,  # the same part of a shorter run
        max_norm=max_norm,
        ema=ema,
        precision=precision,
        seed=require_integer("seed", seed, low=0),
        videos=_length(data),
        labels=tuple(labels),
        recipe_settings=recipe.to_dict(),
        data=_digest(data),
        dummy_data=dummy_data,
    )


def _length(data: Any) -> int:
    try:
        length = len(data)
    except TypeError as error:
        raise ConfigError(f"the learning rate needs to know how many clips there are: {error}") from error
    if not length:
        raise ConfigError("train holds no videos")
    return length


def _digest(data: Any) -> str:
    """Return a digest of the videos and their order, on which depends which clips a step draws."""
    digest = hashlib.blake2b(digest_size=8)
    samples = getattr(data, "samples", None)
    if samples is None:
        return ""
    for sample in samples:
        digest.update(f"{sample.label} {sample.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def agree_on_labels(spec: ClipSpec, train: Any, test: Any) -> tuple[str, ...]:
    """Return the names of the classes, in which model and data agree.

    Args:
        spec: What the model reads.
        train: The training data.
        test: The test data, or None.

    Raises:
        ConfigError: They do not agree.
    """
    own = spec.labels
    for name, data in {"train": train, "test": test}.items():
        labels = tuple(getattr(data, "labels", ()) or ())
        if not labels or data is None:
            continue
        if own is not None and labels != own:
            only = {"the model": sorted({*own} - {*labels}), name: sorted({*labels} - {*own})}
            found = "; ".join(f"only in {where}: {names[:5]}" for where, names in only.items() if names)
            raise ConfigError(
                f"the classes of {name} are not those of the model: {found or 'another order'}. Give the data the "
                "model's order, VideoFolder(..., labels=train.labels), and wrap the model with labels=train.labels"
            )
        own = own or labels
    if own is None:
        raise ConfigError("neither the model nor train names its classes; wrap with labels=[...]")
    return own
