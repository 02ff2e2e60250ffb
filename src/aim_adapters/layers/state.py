"""Mark what is ours inside a model, so that it is declared and never guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.config import AIMConfig
from aim_adapters.layers.adapter import Adapter
from aim_adapters.layers.head import average_frames

# Name of the child of the root's container that holds the adapters that do not run.
IDLE = "idle"


class AIMState(nn.Module):
    """Hold what is ours at one place of an image model, registered there under the name ``aim``.

    Everything that trains, and everything a checkpoint holds, lies in one of these containers.

    Args:
        key: Prefix of this container's tensors in a checkpoint: ``"blocks.3."`` or ``""``.
    """

    def __init__(self, key: str = "") -> None:
        super().__init__()
        self.key = key

    def declared(self) -> dict[str, Tensor]:
        """Return what belongs to the adapter that runs, by its key in a checkpoint."""
        return {
            self.key + name: tensor
            for name, tensor in self.state_dict(keep_vars=True).items()
            if not name.startswith(f"{IDLE}.")
        }


class AdapterSet(nn.Module):
    """Hold one whole adapter that does not run at the moment: its containers, taken out of the image model.

    Args:
        containers: The container of the root first, then those of blocks and norm.
    """

    def __init__(self, containers: Sequence[AIMState]) -> None:
        super().__init__()
        self.containers = nn.ModuleList(containers)

    def declared(self) -> dict[str, Tensor]:
        """Return every declared tensor by its key in a checkpoint."""
        return _merge(container for container in self.containers if isinstance(container, AIMState))


class SharedState(AIMState):
    """Hold what the whole model shares: settings, the temporal embedding, the classification layers.

    Lives on the root. The parts that need it hold it in a plain tuple: a registered reference would appear twice
    in the state dict, and a reference to the root would be a cycle.

    Args:
        config: The settings the model was wrapped with.
        temporal_embedding: ``[1, T, D]``, or None.
        bypassed: Names, below the root, of the image model's parameters in whose place our copies run.
    """

    temporal_embedding: nn.Parameter | None

    def __init__(
        self, config: AIMConfig, temporal_embedding: nn.Parameter | None, *, bypassed: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()
        self.config = config
        self.bypassed = bypassed
        self.enabled = True
        # How it runs, not what it computes: none is saved.
        self.branches = "auto"
        self.memory = "fast"
        self.products = "auto"
        # While the root's own forward runs: of the last block's output only the [class] token is read.
        self.class_token_only = False
        self.headless = False  # classification layers are left out for a while
        self.num_frames = config.attention_frames
        self.register_parameter("temporal_embedding", temporal_embedding)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy: adapters disabled for a while are not disabled in a copy."""
        return {**self.__dict__, "enabled": True, "class_token_only": False, "headless": False}

    def classifier(self, name: str) -> nn.Module | None:
        """Return our classification layer of this name, or None."""
        return self._modules.get(name)

    def classify(self, features: Tensor, name: str = "head") -> Tensor:
        """Average per-frame features and classify the clip.

        Args:
            features: ``[B*T, ..., D]``.
            name: Which of our classification layers; without it, or while they are left out, the averaged features are
                returned.

        Returns:
            ``[B, ..., K]`` or ``[B, ..., D]``.
        """
        clips = average_frames(features, self.num_frames)  # [B, ..., D]
        layer = self.classifier(name)
        if layer is None or self.headless:
            return clips
        logits: Tensor = layer(F.dropout(clips, self.config.head_dropout, self.training))
        return logits


class BlockState(AIMState):
    """Hold the adapters of one block.

    Args:
        key: ``"blocks.{i}."``.
        adapters: By name: ``"temporal"``, ``"temporal_input"``, ``"spatial"``, ``"joint"``.
        shared: The model's shared state.
        drop_path: Stochastic depth rate of this block.
        enters: The temporal embedding is added to this block's input.
        last: It is the image model's last block.
        temporal_bias: Relative bias along time ``[2T-1, H]``, or None.
    """

    temporal: Adapter | None
    temporal_input: Adapter | None
    spatial: Adapter | None
    joint: Adapter | None
    temporal_bias: nn.Parameter | None

    def __init__(
        self,
        key: str,
        adapters: dict[str, Adapter],
        *,
        shared: SharedState,
        drop_path: float,
        enters: bool,
        last: bool,
        temporal_bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__(key)
        self.shared = (shared,)
        self.drop_path = drop_path
        self.enters = enters
        self.last = last
        self.narrowed = False  # whether it returned the [class] token alone when it last ran
        for name in ("temporal", "temporal_input", "spatial", "joint"):
            self.register_module(name, adapters.get(name))
        self.register_parameter("temporal_bias", temporal_bias)


class NormState(AIMState):
    """Hold the trained copy of a final norm.

    Args:
        norm: The copy.
        shared: The model's shared state.
    """

    def __init__(self, norm: nn.Module, *, shared: SharedState) -> None:
        super().__init__()
        self.shared = (shared,)
        self.norm = norm


@contextlib.contextmanager
def by_modules(shared: SharedState) -> Iterator[None]:
    """Run every branch as the image model's own modules for a while."""
    before, shared.branches = shared.branches, "modules"
    try:
        yield
    finally:
        shared.branches = before


@contextlib.contextmanager
def without_classifiers(shared: SharedState) -> Iterator[None]:
    """Leave the classification layers out for a while: what they would read is returned in place of their output."""
    before, shared.headless = shared.headless, True
    try:
        yield
    finally:
        shared.headless = before


def states(model: nn.Module) -> Iterator[AIMState]:
    """Yield every container of the adapters that run in ``model``, in the order of its modules."""
    idle = {id(module) for each in model.modules() if isinstance(each, AdapterSet) for module in each.modules()}
    for module in model.modules():
        if isinstance(module, AIMState) and id(module) not in idle:
            yield module


def idle_adapters(shared: SharedState) -> dict[str, AdapterSet]:
    """Return the adapters that a wrapped model holds beside the one that runs, by name."""
    shelf = shared._modules.get(IDLE)
    modules = {} if shelf is None else shelf._modules
    return {name: each for name, each in modules.items() if isinstance(each, AdapterSet)}


def declared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every declared tensor of the adapter that runs by its key in a checkpoint, whatever wraps the model."""
    return _merge(states(model))


def _merge(containers: Iterable[AIMState]) -> dict[str, Tensor]:
    return {key: tensor for container in containers for key, tensor in container.declared().items()}
