"""What is timed: a step of training or of inference; and whether our ways to compute it agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.harness import Step
from benchmarks.timing.peers import MODELS, Batch, Size, compile_model, wrapped

# How many times as far from float32 as those of `plain` our results may be, in low precision; and how far in float32.
TOLERANCE, ROUNDING = 1.5, 1e-5


@dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
        name: Of the benchmark.
        question: What is measured, in words.
        train: It trains.
        prepare: Returns what does one step with a model and a batch, and returns its loss or logits.
        observe: Returns, by name, what a model computes of a batch in some dtype and two paths have to agree on.
    """

    name: str
    question: str
    train: bool
    prepare: Callable[[nn.Module, Batch, Size], Step]
    observe: Callable[[nn.Module, Batch, torch.dtype], dict[str, Tensor]]


def make_step(task: Task, peer: str, size: Size, device: str) -> Step:
    """Return what does one step of a peer."""
    return step_of(task, make_model(task, peer, size, device), peer, size, device)


def make_model(task: Task, peer: str, size: Size, device: str) -> nn.Module:
    """Return the model of a peer, always with the same weights."""
    name, mode = peer.split("/")
    model = copy.deepcopy(_built(MODELS[name], replace(size, clips=1))).to(device).train(task.train)
    compile_model(model, mode)
    torch.manual_seed(0)
    return model


@lru_cache(maxsize=4)
def _built(make: Callable[[Size], nn.Module], size: Size) -> nn.Module:
    """Return a new model; drawing its weights takes longer than measuring steps of few clips."""
    torch.manual_seed(0)
    return make(size)


def step_of(task: Task, model: nn.Module, peer: str, size: Size, device: str) -> Step:
    """Return what does one step of a peer's model with random clips."""
    batch = size.batch(device)
    if peer.endswith("/recorded"):
        with (
            torch.set_grad_enabled(task.train),
            torch.autocast(device, size.low, enabled=size.low != torch.float32),
        ):
            aim.graph(model, batch[0])
    step = task.prepare(model, batch, size)
    return replayed(step) if peer.endswith("/graph") else step


def replayed(step: Step) -> Step:
    """Say at each step that the memory of the last one's results may be used anew, as CUDA graphs need."""

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return run


def agreement(task: Task, size: Size, device: str) -> dict[str, Any]:
    """Return how far what our ways compute in low precision is from `plain` in float32, by its parts, and `plain`."""
    small = replace(size, clips=2)
    torch.manual_seed(0)
    model = wrapped(small, attention="sdpa", fused=False, held="float32").to(device).train(task.train)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):  # those that start at zero would hide all behind them
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = small.batch(device)
    exact = task.observe(model, batch, torch.float32)
    aim.set_base_dtype(model, small.low)
    errors: dict[str, Any] = {}
    for name, memory in {"plain": "fast", "aim": "fast", "aim-balanced": "balanced", "aim-low": "low"}.items():
        aim.set_attention(model, "sdpa" if name == "plain" else "auto")
        aim.set_execution(model, fused=False if name == "plain" else "auto", memory=memory)
        got = task.observe(model, batch, small.low)
        errors[name] = {key: float((got[key] - x).norm() / x.norm()) for key, x in exact.items()}
    return errors


def agree(errors: dict[str, Any]) -> bool:
    """Say whether all our ways are as near to float32 as `plain` is."""
    return "error" not in errors and all(
        error <= max(TOLERANCE * errors["plain"][key], ROUNDING)
        for name, found in errors.items()
        for key, error in found.items()
        if name != "plain"
    )
