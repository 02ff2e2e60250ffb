"""A backend that records calls of a model on a CPU: each replay calls the model again, on the tensors of the recording.

Like a CUDA graph it reads and writes memory of its own, and forgets what it kept for a backward pass as soon as another
recording of its pool is replayed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core.graph_capture import Taped
from tests.backbones.cases import loss
from tests.tiny import trained, video

EAGERLY = "this call runs eagerly, as {} "


class FakeGraphs:
    """Records anything on a CPU."""

    def why_not(self, device: torch.device) -> str | None:
        return None

    def new_pool(self, device: torch.device) -> FakePool:
        return FakePool()


class FakePool:
    """Memory of which one recording at a time has the use."""

    def __init__(self) -> None:
        self.kept: tuple[object, list[Tensor]] | None = None

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def memory(self) -> int:
        return 0

    def tape(
        self, forward: Callable[[], list[Tensor]], backward: Callable[[list[Tensor]], list[Tensor]] | None
    ) -> Taped:
        recorded = torch.is_grad_enabled()
        with torch.random.fork_rng():
            found = forward()
            gradients = backward(found) if backward and any(each.requires_grad for each in found) else []
        outputs, me = [each.detach().clone() for each in found], object()

        def again() -> None:
            with torch.set_grad_enabled(recorded):
                fresh = forward()
            _fill(outputs, fresh)
            self.kept = me, fresh

        def back() -> None:
            assert self.kept is not None and self.kept[0] is me, "what the forward pass kept is gone"
            fresh, self.kept = self.kept[1], None
            with torch.enable_grad():
                _fill(gradients, backward(fresh))  # type: ignore[misc]

        return Taped(outputs, gradients, again, back if gradients else None)


def _fill(targets: list[Tensor], values: list[Any]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)


def pair(**arguments: Any) -> tuple[Any, Any]:
    """Return an eager model and an equal one with graphs."""
    eager = trained(**arguments).train()
    return eager, aim.graph(copy.deepcopy(eager), video())


def ways(model: nn.Module) -> list[tuple[str, int]]:
    """Return of each kind of call how it runs, and how often it did."""
    return [(row.runs, row.calls) for row in aim.explain_graphs(model)]


def step(model: nn.Module, *videos: Tensor) -> list[Tensor]:
    """Run forward and backward passes, and return copies of the gradients."""
    for each in videos:
        loss(model(each)).backward()
    return [p.grad.clone() for p in aim.trainable_parameters(model) if p.grad is not None]


def same(model: nn.Module, other: nn.Module) -> None:
    """Hold the parameters and gradients of two models to be the same."""
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)
