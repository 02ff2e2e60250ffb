"""One call of a model, recorded once and replayed: its forward pass, and its backward pass where it has one."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from aim_adapters.errors import StateError


class Taped(NamedTuple):
    """What a backend has recorded.

    Attributes:
        outputs: Where each replay of the forward pass writes.
        gradients: Where each replay of the backward pass writes.
        forward: Replays the forward pass.
        backward: Replays the backward pass; None: there is none.
    """

    outputs: list[Tensor]
    gradients: list[Tensor]
    forward: Callable[[], None]
    backward: Callable[[], None] | None


class Pool(Protocol):
    """The memory of recordings of which no two are in use at once."""

    def turn(self) -> AbstractContextManager[None]:
        """Let what is queued inside run after what was replayed before, also on other streams and by other threads."""
        ...

    def memory(self) -> int:
        """Return the bytes that the device's allocator holds."""
        ...

    def tape(
        self, forward: Callable[[], list[Tensor]], backward: Callable[[list[Tensor]], list[Tensor]] | None
    ) -> Taped:
        """Record a forward pass, and a backward pass if an output requires a gradient.

        Args:
            forward: Computes the outputs from tensors that stay where they are.
            backward: Computes gradients from the outputs.

        Raises:
            RuntimeError: It does something that cannot be recorded, or memory ran out.
        """
        ...


class Backend(Protocol):
    """A way to record: CUDA graphs, or in tests one that calls the model again."""

    def why_not(self, device: torch.device) -> str | None:
        """Return why nothing can be recorded on a device, or None."""
        ...

    def new_pool(self, device: torch.device) -> Pool:
        """Return new memory for recordings."""
        ...


class Lane:
    """Memory for recordings of which one at a time waits for its backward pass.

    Args:
        pool: The memory.
        device: Where it is.
    """

    def __init__(self, pool: Pool, device: torch.device) -> None:
        self.pool, self.device = pool, device
        self._waiting: weakref.ref[_Ticket] | None = None

    def busy(self) -> bool:
        """Return whether a forward pass waits for its backward pass, whose tensors must stay."""
        return self._waiting is not None and self._waiting() is not None

    def ticket(self) -> _Ticket:
        """Return what keeps the lane for a backward pass, while something that could run it is alive."""
        ticket = _Ticket()
        self._waiting = weakref.ref(ticket)
        return ticket

    def free(self) -> None:
        """Let the next call have the lane."""
        self._waiting = None


class _Ticket:
    """The right to one backward pass."""

    used = False


class Recording:
    """A recorded call.

    Args:
        lane: Where it is recorded.
        call: The model's own forward pass.
        values: The arguments of the call; tensors among them are examples.
        trained: The parameters that get gradients.
        leaves: What stands for each of them in `call`.
        device: The model's device.
    """

    def __init__(
        self,
        lane: Lane,
        call: Callable[[list[Any]], Any],
        values: Sequence[Any],
        *,
        trained: Sequence[Tensor],
        leaves: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        self.lane, self._device = lane, device.type
        self._values = [_static(value) if isinstance(value, Tensor) else value for value in values]
        self.inputs = [value for value in self._values if isinstance(value, Tensor)]
        recorded = torch.is_grad_enabled()
        self._sources = [t for t in (*self.inputs, *leaves) if t.requires_grad] if recorded else []
        self._trained = trained
        self._spec: Any = None
        self._constants: list[Any] = []  # the leaves of the output that are not tensors, in their places
        self._places: list[list[int]] = []  # of the sources whose gradients lie in one buffer
        self._seeds: list[Tensor | None] = []  # the gradient of each output, or None where it has none
        begun, before = time.perf_counter(), lane.pool.memory()
        self._taped = self._tape(call)
        self.seconds, self.memory = time.perf_counter() - begun, max(0, lane.pool.memory() - before)
        self.replays, self.used, self.title = 0, 0, ""

    def run(self, values: Sequence[Any]) -> Any:
        """Replay the call with other values.

        Args:
            values: As the recorded ones.
        """
        self.replays += 1
        tensors = [value for value in values if isinstance(value, Tensor)]
        if self._taped.backward is None:
            with torch.no_grad():
                outputs: Sequence[Tensor] = self.forward(tensors)
        else:
            outputs = _Replay.apply(self, *tensors, *self._trained)
        each = iter(outputs)
        return tree_unflatten([next(each) if leaf is _OUTPUT else leaf for leaf in self._constants], self._spec)

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Replay the forward pass, and return copies of its outputs."""
        with self.lane.pool.turn():
            for static, tensor in zip(self.inputs, tensors, strict=True):
                static.copy_(tensor)
            self._taped.forward()
            return [output.clone() for output in self._taped.outputs]

    def backward(self, ticket: _Ticket, seeds: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replay the backward pass, and return copies of the gradients of inputs and of what trains.

        Args:
            ticket: That of the forward pass.
            seeds: The gradient of each output; None: zero.

        Raises:
            StateError: It ran already.
        """
        if ticket.used:
            raise StateError(
                "the backward pass of a graphed call can run once, as the memory of its forward pass is used again; "
                "add the losses up and call backward once, or aim.ungraph(model)"
            )
        ticket.used = True
        assert self._taped.backward is not None
        with self.lane.pool.turn():
            for static, seed in zip(self._seeds, seeds, strict=True):
                if static is not None:
                    static.zero_() if seed is None else static.copy_(seed)
            self._taped.backward()
            # One copy for all: a gradient without other owners becomes `.grad` as it is, and so must not be written
            # again.
            copies = [flat.clone() for flat in self._taped.gradients]
        found: dict[int, Tensor] = {}
        for places, flat in zip(self._places, copies, strict=True):
            parts = _unflatten_dense_tensors(flat, [self._sources[place] for place in places])
            found.update(zip(places, parts, strict=True))
        self.lane.free()
        each = (found.get(place) for place in range(len(self._sources)))
        return [next(each) if tensor.requires_grad else None for tensor in (*self.inputs, *self._trained)]

    def differentiable(self) -> list[bool]:
        """Return of each output whether it has a gradient."""
        return [seed is not None for seed in self._seeds]

    def _tape(self, call: Callable[[list[Any]], Any]) -> Taped:
        """Record the call; whether it has a backward pass shows when it has run once."""
        leaves: list[Any] = []

        def forward() -> list[Tensor]:
            nonlocal leaves
            # As the caller has it, but for kept casts, which would not be made again after an optimizer's step.
            with _uncached(self._device):
                out = call(self._values)
            leaves, self._spec = tree_flatten(out)
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def backward(outputs: list[Tensor]) -> list[Tensor]:
            if not self._seeds:
                self._seeds = [torch.zeros_like(each) if each.requires_grad else None for each in outputs]
            with torch.autocast(self._device, enabled=False):  # where a caller has left it before the backward pass
                gradients = torch.autograd.grad(
                    [each for each in outputs if each.requires_grad],
                    self._sources,
                    [seed for seed in self._seeds if seed is not None],
                    allow_unused=True,
                )
            dtypes = list(dict.fromkeys(each.dtype for each in gradients if each is not None))
            self._places = [
                [place for place, each in enumerate(gradients) if each is not None and each.dtype == dtype]
                for dtype in dtypes
            ]
            return [_flatten_dense_tensors([gradients[place] for place in places]) for places in self._places]

        taped = self.lane.pool.tape(forward, backward if self._sources else None)
        self._constants = [_OUTPUT if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return taped


_OUTPUT = object()


class _Replay(torch.autograd.Function):
    """A replay as one step of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.recording, ctx.ticket = recording, recording.lane.ticket()
        outputs = recording.forward(tensors[: len(recording.inputs)])
        plain = [out for out, has in zip(outputs, recording.differentiable(), strict=True) if not has]
        ctx.mark_non_differentiable(*plain)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.recording.backward(ctx.ticket, gradients))


def _uncached(device: str) -> torch.autocast:
    """Return the autocast that is on for a type of device, without its cache."""
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, torch.get_autocast_dtype(device), enabled=enabled, cache_enabled=False)


def _static(tensor: Tensor) -> Tensor:
    """Return a tensor of our own, with the same values."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
