"""What a way costs: a training step, its memory, an answer, a file; alone on the GPU, at the usual image size."""

from __future__ import annotations

import gc
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core import is_wrapped
from benchmarks.motion.task import Clips
from benchmarks.motion.trainer import WARM, Plan, Training
from benchmarks.motion.ways import BACKBONES, build, groups_of, normalized

SIZE, BATCH, CLASSES, FRAMES = 224, 16, 24, 8
REPEATS = 10


class Cost(NamedTuple):
    """What a way costs with clips of 8 frames of 224 x 224 pixels.

    Attributes:
        trained: Parameters that train.
        total: All parameters.
        step_ms: Median time of a training step of 16 clips, recorded as a CUDA graph, in milliseconds.
        peak_mib: Most memory that a step takes, in MiB, weights and optimizer included.
        inference_ms: Median time of 16 clips' logits, recorded, in milliseconds.
        file_kib: What is saved, in KiB.
    """

    trained: int
    total: int
    step_ms: float
    peak_mib: float
    inference_ms: float
    file_kib: float


def measure(way: str, image_model: nn.Module, backbone: str) -> Cost:
    """Measure a way on the GPU that an image model for 224 x 224 pixels is on."""
    device = next(image_model.parameters()).device
    frames = torch.randint(0, 256, (BATCH, FRAMES, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    clips = Clips(frames, torch.arange(BATCH, device=device) % CLASSES)

    def normalize(frames: Tensor) -> Tensor:
        return normalized(frames, BACKBONES[backbone])

    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    model = build(way, image_model, classes=CLASSES, frames=FRAMES, options={})
    training = Training(
        model, groups_of(model, way, 0.05), clips, Plan(REPEATS + 2 * WARM, BATCH, 1e-4), seed=0, normalize=normalize
    )
    torch.cuda.reset_peak_memory_stats(device)
    training.start()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    step = _time(training.advance, training.stream)
    training.finish()
    trained = sum(parameter.numel() for parameter in training.trained)
    total = trained_and_frozen(model)
    size = file_size(model)
    merge(way, model)
    model.eval()
    video = normalize(frames)
    stream = torch.cuda.Stream(device)
    answers = torch.cuda.CUDAGraph()

    def answer() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            model(video)

    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            answer()
    with torch.cuda.graph(answers, stream=stream):
        answer()
    inference = _time(answers.replay, stream)
    return Cost(trained, total, step, peak / 2**20, inference, size / 1024)


def merge(way: str, model: nn.Module) -> None:
    """Merge what answers need not compute by itself."""
    if way == "linear":
        aim.merge_adapters(model)
    elif way in ("lora", "lora-temporal"):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()


def trained_and_frozen(model: nn.Module) -> int:
    """Return all parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def file_size(model: nn.Module) -> int:
    """Return how many bytes are saved of a model: of a wrapped one its adapters, of others what trains."""
    with tempfile.TemporaryDirectory() as folder:
        if is_wrapped(model):
            aim.save_adapters(model, folder)
            return (Path(folder) / "adapter_model.safetensors").stat().st_size
        trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        save_file(trained, Path(folder) / "trained.safetensors")
        return (Path(folder) / "trained.safetensors").stat().st_size


def _time(call: Any, stream: Any) -> float:
    times = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            start.record()
            call()
            end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])
