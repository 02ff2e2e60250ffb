"""The containers that hold everything of ours inside a model, so that it is declared and never guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.config import AIMConfig, Execution
from aim_adapters.core.foreign import inside
from aim_adapters.core.records import Layout, RootCall, WrapRecord
from aim_adapters.errors import StateError
from aim_adapters.layers import Adapter, TemporalConv, average_frames

if TYPE_CHECKING:
    from aim_adapters.core.graphs import Graphs

# Name of the child of the root's container that holds the adapters that do not run.
_SHELF = "idle"


class AIMState(nn.Module):
    """What is ours at one place of an image model, registered there under the name ``aim``.

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
            if not name.startswith(f"{_SHELF}.")
        }


class AdapterSet(nn.Module):
    """One whole adapter that does not run at the moment: its containers, taken out of the image model.

    Args:
        containers: The container of the root first, then those of blocks and norm.
    """

    def __init__(self, containers: Sequence[AIMState]) -> None:
        super().__init__()
        self.containers = nn.ModuleList(containers)

    @property
    def state(self) -> RootState:
        """The container of the root, which knows name, settings and layout of the adapter."""
        state = self.parts()[0]
        assert isinstance(state, RootState)
        return state

    def parts(self) -> list[AIMState]:
        """Return the containers, without what other tools have put around them.

        Raises:
            StateError: Something else is in the place of one.
        """
        parts = []
        for name, held in inside(self.containers).named_children():
            part = inside(held)
            if not isinstance(part, AIMState):
                raise StateError(
                    f"part {name} of an adapter that does not run is a {type(held).__name__}, in place of its tensors; "
                    "delete_adapter it, and load or add it again"
                )
            parts.append(part)
        return parts

    def declared(self) -> dict[str, Tensor]:
        """Return every declared tensor by its key in a checkpoint."""
        return _merge(self.parts())

    def rest(self) -> None:
        """Freeze an adapter that stops running, or is new and does not run yet; remember what of it trains."""
        self.state.trains = frozenset(key for key, tensor in self.declared().items() if tensor.requires_grad)
        self.requires_grad_(False)


class RootState(AIMState):
    """What the whole model shares: settings, the temporal embedding, the classification layers, the idle adapters.

    Lives on the root. The parts that need it hold it in a plain tuple: a registered reference would appear twice
    in the state dict, and a reference to the root would be a cycle.

    Args:
        config: The settings the model was wrapped with.
        temporal_embedding: ``[1, T, D]``, or None.
        name: Name of the adapter.
        record: What unwrapping has to put back.
        execution: How blocks run.
        bypassed: Names, below the root, of the image model's parameters in whose place our copies run.
    """

    temporal_embedding: nn.Parameter | None
    layout: Layout

    def __init__(
        self,
        config: AIMConfig,
        temporal_embedding: nn.Parameter | None,
        *,
        name: str,
        record: WrapRecord,
        execution: Execution,
        bypassed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.record = record
        self.execution = execution
        self.bypassed = bypassed
        self.enabled = True
        self.call: RootCall | None = None  # while the root's own forward runs
        self.headless = False  # classification layers are left out for a while
        self.unseen = True  # no batch was looked at yet
        self.graphs: Graphs | None = None  # what replays recorded calls of the model
        self.num_frames = config.attention_frames
        self.labels: Any = None  # the image model's own while the adapter runs, from the anatomy's `relabel`
        self.own_labels: Any = None  # those of an adapter that ran and rests: the caller may have named its classes
        self.trains: frozenset[str] | None = None  # keys that train when the adapter runs; None: all
        self.clip: Mapping[
            str, Any
        ] = {}  # what is known of its clips beside the image model: stride, mean, std, labels
        self.origin: Mapping[str, Any] = {}  # config of the checkpoint that it was made from
        # What the audit knows of the image model: parameters that were seen to train, with their versions then; and
        # what it has said.
        self.thawed: dict[str, int] = {}
        self.warned: set[str] = set()
        self.register_parameter("temporal_embedding", temporal_embedding)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy: adapters disabled for a while are not disabled in a copy, and CUDA graphs stay."""
        return {**self.__dict__, "enabled": True, "call": None, "headless": False, "graphs": None}

    @property
    def anatomy(self) -> BackboneAnatomy:
        """The anatomy of the image model."""
        return self.record.anatomy

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

    def idle_adapters(self) -> dict[str, AdapterSet]:
        """Return the adapters that the model holds beside the one that runs, by name."""
        shelf = self._modules.get(_SHELF)
        children = {} if shelf is None else {name: inside(held) for name, held in inside(shelf).named_children()}
        return {name: adapter for name, adapter in children.items() if isinstance(adapter, AdapterSet)}

    @property
    def shelf(self) -> nn.Module | None:
        """What holds the idle adapters, or None."""
        return self._modules.get(_SHELF)

    def shelve(self, adapter: AdapterSet) -> None:
        """Put an adapter that rests beside the one that runs, under its own name."""
        if self._modules.get(_SHELF) is None:
            self.add_module(_SHELF, nn.Module())
        shelf = inside(self.get_submodule(_SHELF))
        shelf.add_module(adapter.state.name, adapter)
        shelf.train(self.training)

    def unshelve(self, name: str) -> AdapterSet:
        """Take out one of `idle_adapters`."""
        adapter, shelf = self.idle_adapters()[name], inside(self.get_submodule(_SHELF))
        delattr(shelf, name)
        if not shelf._modules:
            delattr(self, _SHELF)
        return adapter

    def take_over_shelf(self, other: RootState) -> None:
        """Hold the idle adapters that another root's container has held until now, and what it knows of the model."""
        self.thawed, self.warned = other.thawed, other.warned
        self.graphs, other.graphs = other.graphs, None
        if (shelf := other._modules.get(_SHELF)) is not None:
            delattr(other, _SHELF)
            self.add_module(_SHELF, shelf)


class BlockState(AIMState):
    """The adapters of one block, or none.

    Args:
        key: ``"blocks.{i}."``.
        adapters: By name: ``"temporal_conv"``, ``"temporal"``, ``"temporal_input"``, ``"spatial"``, ``"joint"``.
        root: The container of the root.
        drop_path: Stochastic depth rate of this block.
        enters: The temporal embedding is added to this block's input.
        last: It is the image model's last block.
        temporal_bias: Relative bias along time ``[2T-1, H]``, or None.
    """

    temporal_conv: TemporalConv | None
    temporal: Adapter | None
    temporal_input: Adapter | None
    spatial: Adapter | None
    joint: Adapter | None
    temporal_bias: nn.Parameter | None

    def __init__(
        self,
        key: str,
        adapters: Mapping[str, nn.Module],
        *,
        root: RootState,
        drop_path: float,
        enters: bool,
        last: bool,
        temporal_bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__(key)
        self._root = (root,)
        self.drop_path = drop_path
        self.enters = enters
        self.last = last
        self.narrowed = False  # whether it returned the [class] token alone when it last ran
        self.decisions: dict[Any, Any] = {}  # how the block runs for tokens of a kind, remembered
        for name in ("temporal_conv", "temporal", "temporal_input", "spatial", "joint"):
            self.register_module(name, adapters.get(name))
        self.register_parameter("temporal_bias", temporal_bias)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy: a copy decides for itself."""
        return {**self.__dict__, "decisions": {}}

    @property
    def index(self) -> int:
        """The block's place among the image model's blocks, from 0."""
        return int(self.key.split(".")[1])

    @property
    def adapted(self) -> bool:
        """Whether the block has adapters; else it is in here to run as the others do."""
        return any(True for _ in self.children())

    @property
    def root_state(self) -> RootState:
        """The container of the root."""
        return self._root[0]


class NormState(AIMState):
    """The trained copy of a final norm.

    Args:
        norm: The copy.
        root: The container of the root.
    """

    def __init__(self, norm: nn.Module, *, root: RootState) -> None:
        super().__init__()
        self._root = (root,)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, ``[..., D]``."""
        out: Tensor = self.norm(x)
        return out

    @property
    def root_state(self) -> RootState:
        """The container of the root."""
        return self._root[0]


@contextlib.contextmanager
def by_modules(state: RootState) -> Iterator[None]:
    """Run every branch as the image model's own modules for a while, and keep all that they compute."""
    before, graphs = state.execution, state.graphs
    state.execution, state.graphs = replace(before, fused=False, memory="fast", frozen_precision="auto"), None
    try:
        yield
    finally:
        state.execution, state.graphs = before, graphs


@contextlib.contextmanager
def without_classifiers(state: RootState) -> Iterator[None]:
    """Leave the classification layers out for a while: what they would read is returned in place of their output."""
    before, state.headless = state.headless, True
    try:
        yield
    finally:
        state.headless = before


def container_of(module: nn.Module) -> AIMState | None:
    """Return our container in a module, without what other tools have put around it; None if there is none."""
    held = module._modules.get("aim")
    found = None if held is None else inside(held)
    return found if isinstance(found, AIMState) else None


def states(model: nn.Module) -> Iterator[AIMState]:
    """Yield every container of the adapters that run in ``model``, in the order of its modules."""
    modules = list(model.modules())
    idle = {id(module) for each in modules if isinstance(each, AdapterSet) for module in each.modules()}
    for module in modules:
        if isinstance(module, AIMState) and id(module) not in idle:
            yield module


def own_parameters(model: nn.Module) -> set[int]:
    """Return the ids of all parameters that are ours, of adapters that run or rest."""
    return {id(p) for module in model.modules() if isinstance(module, AIMState) for p in module.parameters()}


def declared_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every declared tensor of the adapter that runs by its key in a checkpoint, whatever wraps the model."""
    return _merge(states(model))


def _merge(containers: Iterable[AIMState]) -> dict[str, Tensor]:
    return {key: tensor for container in containers for key, tensor in container.declared().items()}
