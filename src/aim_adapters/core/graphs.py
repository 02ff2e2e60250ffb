"""The recorded calls of one model: which of them fits a call, and why a call runs eagerly where none can."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.core.graph_capture import Backend, Lane, Recording
from aim_adapters.core.graph_cuda import CudaGraphs
from aim_adapters.core.graph_signature import (
    Parts,
    describe,
    named_arguments,
    observed,
    signature,
    surroundings,
)
from aim_adapters.core.patches import gives_patches, named_inputs
from aim_adapters.core.state import RootState
from aim_adapters.errors import AIMError, warn

# Forward passes that may wait for their backward passes at one time, as of two views of a clip. Each has memory of its
# own.
_LANES = 2
# A recording that none of the last so many calls used makes room for another: with more kinds of calls than recordings,
# recording again and again would take longer than running eagerly.
_IDLE_CALLS = 100
_PATCHES = "it reads patches cut beforehand, and where they lie is looked at in every call"


class GraphRow(NamedTuple):
    """One kind of call of a graphed model.

    Attributes:
        call: Mode, arguments, and dtype of autocast.
        runs: ``"graph"`` or ``"eager"``.
        calls: How often it ran so.
        seconds: What recording took, or None.
        memory: What its graph holds in bytes, beside memory that it shares with others; or None.
        reason: Why it runs eagerly, or None.
    """

    call: str
    runs: str
    calls: int
    seconds: float | None
    memory: int | None
    reason: str | None


class Graphs:
    """Runs the calls of a wrapped model as recordings, which it makes at the first call of each kind.

    Args:
        root: The wrapped image model.
        most: How many recordings are kept.
        backend: How calls are recorded.
    """

    def __init__(self, root: nn.Module, most: int, backend: Backend | None = None) -> None:
        self.most = most
        self._backend: Backend = CudaGraphs() if backend is None else backend
        self._parts: list[Parts] = []  # the last ones first
        # Its blocks lead back to here: with the model the recordings go at once, not when Python looks for cycles.
        me = weakref.ref(self)
        self._root = weakref.ref(root, lambda _: _release(me()))
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()
        self._calls = 0
        self._eager: Counter[tuple[str, str]] = Counter()  # by call and reason

    def __call__(self, root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call of the root's ``forward``.

        Args:
            root: The wrapped image model.
            args: Arguments by place.
            kwargs: Arguments by name.
        """
        if observed():
            return root.aim_forward(*args, **kwargs)
        state: RootState = root.aim
        names, values = named_arguments(args, kwargs)
        with self._lock:
            found = _PATCHES if _gives_patches(root, args, kwargs) else self._find(root, names, values)
            if isinstance(found, Recording):
                if state.unseen:
                    root._flatten(args[0] if args else kwargs[state.anatomy.input_name])
                return found.run(values)
        out = root.aim_forward(*args, **kwargs)  # first: an error of its own says more
        call = _title(state, names, values)
        if not any(reason == found for _, reason in self._eager):
            warn(f"aim.graph: this call runs eagerly, as {found} (said once; aim.explain_graphs(model) tells of each)")
        self._eager[call, found] += 1
        return out

    def forget(self, state: RootState) -> None:
        """Drop the recordings of an adapter that is deleted.

        Args:
            state: Its container of the root.
        """
        self._parts = [parts for parts in self._parts if not parts.of(state)]

    def rows(self) -> list[GraphRow]:
        """Return one row for each kind of call."""
        rows = [
            GraphRow(each.title, "graph", each.replays, round(each.seconds, 2), each.memory, None)
            for parts in self._parts
            for each in parts.recorded.values()
        ]
        eager = [GraphRow(call, "eager", count, None, None, why) for (call, why), count in self._eager.items()]
        return rows + eager

    def _find(self, root: Any, names: Sequence[str], values: Sequence[Any]) -> Recording | str:
        """Return the recording of a call, made if there is none; or why there can be none."""
        self._calls += 1
        parts = self._current(root)
        why_not = parts.why_not or self._backend.why_not(parts.device) or parts.watched(root)
        if why_not is not None:
            return why_not
        arguments = signature(names, values, parts.device)
        if isinstance(arguments, str):
            return arguments
        around = surroundings(root.aim, parts.device.type)
        key = (parts.modes(root), around, arguments)
        lane = self._free_lane(parts.device)
        if lane is None:
            return f"{_LANES} forward passes wait for their backward passes already"
        recording: Recording | None = parts.recorded.get((id(lane), key))
        if recording is None:
            if (failure := parts.failed.get(key)) is not None:
                return failure
            if not self._make_room():
                return f"{self.most} other kinds of calls are recorded; pass max_graphs= for more"
            made = self._record(root, parts, lane, names, values)
            if isinstance(made, str):
                parts.failed[key] = made
                return made
            recording = parts.recorded[id(lane), key] = made
        recording.used = self._calls
        return recording

    def _current(self, root: Any) -> Parts:
        """Return the parts that the model has now."""
        for index, parts in enumerate(self._parts):
            if parts.hold(root):
                if index:
                    self._parts.insert(0, self._parts.pop(index))
                return parts
        self._parts = [Parts(root), *(parts for parts in self._parts if parts.recorded)]
        return self._parts[0]

    def _free_lane(self, device: torch.device) -> Lane | None:
        lanes = [lane for lane in self._lanes if lane.device == device]
        for lane in lanes:
            if not lane.busy():
                return lane
        if len(lanes) == _LANES:
            return None
        self._lanes.append(Lane(self._backend.new_pool(device), device))
        return self._lanes[-1]

    def _make_room(self) -> bool:
        """Return whether there is room for one recording more, after dropping one that was not used for long."""
        held = [(each.used, parts, key) for parts in self._parts for key, each in parts.recorded.items()]
        if len(held) < self.most:
            return True
        used, parts, key = min(held, key=lambda each: each[0])
        if self._calls - used <= _IDLE_CALLS or parts.recorded[key].lane.busy():
            return False
        del parts.recorded[key]
        return True

    def _record(
        self, root: Any, parts: Parts, lane: Lane, names: Sequence[str], values: Sequence[Any]
    ) -> Recording | str:
        """Record a call, or return why it cannot be."""
        state, places = root.aim, sum(name.isdigit() for name in names)
        unseen, state.unseen = state.unseen, False  # the first batch is looked at in its own call
        trained = parts.trained if torch.is_grad_enabled() else []
        leaves = parts.leaves() if trained else []

        def call(values: Sequence[Any]) -> Any:
            with parts.holding(leaves) if leaves else contextlib.nullcontext():
                return root.aim_forward(*values[:places], **dict(zip(names[places:], values[places:], strict=True)))

        try:
            with _unchanged(parts.buffers):
                recording = Recording(lane, call, values, trained=trained, leaves=leaves, device=parts.device)
        except RuntimeError as error:
            if isinstance(error, AIMError):
                raise
            return f"it cannot be captured: {type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        finally:
            state.unseen = unseen
            parts.settle()
        recording.title = _title(state, names, values)
        return recording


def _gives_patches(root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    anatomy = root.aim.anatomy
    return gives_patches(anatomy, named_inputs(root.aim_inputs, args, kwargs), anatomy.input_name)


def _release(graphs: Graphs | None) -> None:
    if graphs is not None:
        graphs._parts.clear()


@contextlib.contextmanager
def _unchanged(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Put back the values of buffers that change meanwhile."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in buffers if not buffer.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, values in before:
                if buffer._version != version:
                    buffer.copy_(values)


def _title(state: RootState, names: Sequence[str], values: Sequence[Any]) -> str:
    """Return what kind of call this is."""
    words = ["training" if state.training else "evaluation"]
    words += [] if torch.is_grad_enabled() else ["no gradients"]
    words += [] if state.enabled else ["adapters disabled"]
    words += list(describe(names, values))
    device = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        words.append(f"autocast {str(torch.get_autocast_dtype(device)).removeprefix('torch.')}")
    return ", ".join(words)
