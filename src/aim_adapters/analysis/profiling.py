"""What a wrapped model costs on this very machine: parameters, arithmetic, time and memory, and what runs where."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.analysis.complexity import count_root_flops
from aim_adapters.arguments import require_choice, require_integer
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError
from aim_adapters.execution import BlockAttention, BlockExecution, explain_attention, explain_execution
from aim_adapters.parameters import count_parameters, trainable_parameters
from aim_adapters.table import BlockTable, fact_lines, in_bytes

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WARM_UPS = 2


class Cost(NamedTuple):
    """Time and memory of one pass.

    Attributes:
        seconds: Median over repetitions.
        peak: Bytes at the peak, or None where they are not measured.
    """

    seconds: float
    peak: int | None


@dataclass(frozen=True)
class Profile:
    """What a model costs here: ``print`` shows it, `to_dict` returns it as JSON-ready values.

    Args:
        model: Its class.
        device: Where it ran.
        precision: ``"fp32"``, or the dtype of autocast.
        memory: What a training step keeps, of `aim.set_execution`.
        batch_size: Clips in a pass.
        frames: Frames of a clip.
        image_size: Height and width of a frame.
        trainable: Parameters that train.
        parameters: All active parameters.
        gmacs: Multiply-accumulates of a clip's forward pass, in 10⁹.
        training: A training step: forward, backward, optimizer (AdamW).
        inference: A forward pass without gradients.
        peak_is: What the peaks are.
        attention: Which implementation of temporal attention each block runs, and why.
        execution: How the branches of each block run, and why.
    """

    model: str
    device: str
    precision: str
    memory: str
    batch_size: int
    frames: int
    image_size: tuple[int, int]
    trainable: int
    parameters: int
    gmacs: float
    training: Cost
    inference: Cost
    peak_is: str
    attention: BlockTable[BlockAttention]
    execution: BlockTable[BlockExecution]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        costs = {name: facts[name]._asdict() for name in ("training", "inference")}
        tables = {name: [row._asdict() for row in facts[name]] for name in ("attention", "execution")}
        return {**facts, **costs, **tables, "image_size": list(self.image_size)}

    def to_text(self, columns: int) -> str:
        """Return all of it as text.

        Args:
            columns: Width of the screen.
        """
        facts = {
            "model": self.model,
            "runs on": f"{self.device}, {self.precision}, memory {self.memory}",
            "clips": f"{self.batch_size} of {self.frames} frames, {self.image_size[0]} x {self.image_size[1]}",
            "parameters": f"{self.trainable:,} of {self.parameters:,} train ({self.trainable / self.parameters:.1%})",
            "arithmetic": f"{self.gmacs:,.1f} GMACs for a clip",
            "training step": self._words(self.training),
            "inference": self._words(self.inference),
            "memory is": self.peak_is,
        }
        tables = [table.to_text(columns) for table in (self.attention, self.execution)]
        return "\n\n".join([fact_lines(facts, columns), f"Attention over time\n{tables[0]}", f"Blocks\n{tables[1]}"])

    def __str__(self) -> str:
        """Return all of it as text of 120 columns."""
        return self.to_text(120)

    def _words(self, cost: Cost) -> str:
        peak = "memory not measured" if cost.peak is None else in_bytes(cost.peak)
        return f"{cost.seconds * 1e3:,.1f} ms, {self.batch_size / cost.seconds:,.2f} clips/s, {peak}"


def profile_model(
    model: nn.Module,
    *,
    batch_size: int = 1,
    precision: Precision = "fp32",
    repeats: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measure a wrapped model on the device that it is on, with random clips.

    Weights, gradients, training mode and random state are the same afterward. Of a whole CLIP model, the image tower is
    measured.

    Args:
        model: A wrapped model.
        batch_size: Clips in a pass.
        precision: ``"fp32"``: no autocast; ``"bf16"`` or ``"fp16"``: autocast to it.
        repeats: Passes that are measured, after two that are not.
        progress: Called with the number of passes that are done, and of all.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, or holds several wrapped models.
        ConfigError: An argument is invalid, the model does not know its image size, or reads patches cut beforehand.
    """
    wrapped = only_root(model)
    root, state, anatomy = wrapped.root, wrapped.state, wrapped.state.anatomy
    batch_size = require_integer("batch_size", batch_size, low=1)
    repeats = require_integer("repeats", repeats, low=1)
    require_choice("precision", precision, tuple(_DTYPES))
    if anatomy.image_size is None or anatomy.patch_inputs:
        raise ConfigError(f"this {type(root).__name__} does not say what frames it reads, so that none can be made")
    count, flops = count_parameters(model), count_root_flops(wrapped)
    parameter = next(root.parameters())
    device = parameter.device
    trains = trainable_parameters(model)
    gradients = [each.grad for each in trains]
    training = {module: module.training for module in model.modules()}
    autocast = torch.autocast(device.type, _DTYPES[precision]) if precision != "fp32" else contextlib.nullcontext()
    shape = (batch_size, state.config.num_frames, anatomy.in_channels, *anatomy.image_size)
    done, total = 0, 2 * (_WARM_UPS + repeats)

    def note() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # In the layout that needs no guess: the frames of all clips, one after the other.
        video = torch.randn(shape, device=device, dtype=parameter.dtype).flatten(0, 1)
        # A step of no length: weights keep their bits.
        optimizer = torch.optim.AdamW(trains, lr=0.0, weight_decay=0.0)

        def step() -> None:
            with autocast:
                loss = _last_tensor(root(video)).float().square().mean()
            torch.autograd.backward(loss, inputs=trains)
            optimizer.step()
            optimizer.zero_grad()

        @torch.no_grad()
        def infer() -> None:
            with autocast:
                root(video)

        try:
            for each in trains:
                each.grad = None
            model.train()
            of_training = _measure(step, device, repeats, note)
            optimizer.state.clear()
            model.eval()
            of_inference = _measure(infer, device, repeats, note)
        finally:
            for each, gradient in zip(trains, gradients, strict=True):
                each.grad = gradient
            for module, mode in training.items():
                module.training = mode
    with autocast:
        attention, execution = explain_attention(model), explain_execution(model)
    return Profile(
        model=type(model).__name__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=precision,
        memory=state.execution.memory,
        batch_size=batch_size,
        frames=state.config.num_frames,
        image_size=anatomy.image_size,
        trainable=count.trainable,
        parameters=count.total,
        gmacs=flops.gmacs,
        training=of_training,
        inference=of_inference,
        peak_is=_peak_is(device, of_training),
        attention=attention,
        execution=execution,
    )


def _last_tensor(out: Any) -> Tensor:
    """Return the last tensor of what a model returned: a loss of it also reaches models that pool nothing."""
    if isinstance(out, Tensor):
        return out
    return [value for value in (out.values() if isinstance(out, Mapping) else out) if isinstance(value, Tensor)][-1]


def _measure(run: Callable[[], None], device: torch.device, repeats: int, note: Callable[[], None]) -> Cost:
    """Return the median time of a pass and the peak of all, after some to warm up."""
    for _ in range(_WARM_UPS):
        run()
        note()
    before = _forget_peak(device)
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
        note()
    peak = _peak(device)
    return Cost(statistics.median(times), None if before is None or peak is None else peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _forget_peak(device: torch.device) -> int | None:
    """Begin a new peak; None where none is measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    if device.type != "cpu":
        return None
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not permitted
        return None
    return _peak(device)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _STATUS.is_file():
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else None


def _peak_is(device: torch.device, cost: Cost) -> str:
    if cost.peak is None:
        return f"not measured on {device.type} of this system"
    if device.type == "cuda":
        return "the most that tensors took on the GPU, weights included"
    return "the most that this process took (RSS), Python and libraries included"
