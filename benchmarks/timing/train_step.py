"""How long does a training step take, and how much memory, beside those of the peers?

``python -m benchmarks.timing.train_step`` on a GPU; without one, a small model on the processor. A step is forward
pass, cross-entropy, backward pass and fused AdamW, in bf16 autocast (on a CPU in float32). Each peer is built, warmed
up and measured alone; then all of a size take turns, several rounds, so that drift of the clocks meets all alike, and
the times are of those. A peer is named ``<model>/<mode>``.

Models:

- ``aim``: a wrapped model whose blocks run fused, frozen weights held in bf16; ``aim-balanced`` and ``aim-low``: the
  same with less memory; ``aim-fp32``: the same with frozen weights held in float32;
- ``plain``: the same model over SDPA, layer by layer, frozen weights held in bf16; ``reference``: layer by layer,
  written-out attention over frames, all in float32 under autocast;
- ``full``: fine-tuning of the whole ViT on frames, whose logits are averaged; ``timesformer``: fine-tuning of the whole
  TimeSformer of transformers; ``swin3d``: fine-tuning of the whole Video Swin-B of torchvision.

Modes: ``eager``; ``recorded``, replayed from CUDA graphs of ``aim.graph``, without a compiler; ``blocks``, each block
compiled; ``whole``, the model compiled; ``graph``, the same replayed from CUDA graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Step, Target
from benchmarks.timing.goals import Against, Goal, fastest
from benchmarks.timing.peers import Batch, Size
from benchmarks.timing.step_command import SMALL, begin, jobs, key_of, measure_all, parser
from benchmarks.timing.steps import Job, sweep
from benchmarks.timing.tasks import Task

BASE = Size("vit_base_patch16_clip_224", 32)
SIZES = {
    "base-8": BASE,
    "base-16": replace(BASE, frames=16, clips=16),
    "base-32": replace(BASE, frames=32, clips=8),
    "base-64": replace(BASE, frames=64, clips=4),
    "large-8": Size("vit_large_patch14_clip_224", 16),
    "swin-32": Size("swin_base_patch4_window7_224", 8, frames=32, tubelet=2),
    SMALL: Size("vit_small_patch16_224", 1, dtype="float32"),
}
LONGER = ("aim/graph", "plain/blocks", "timesformer/blocks", "aim-low/graph", "aim/eager")
PEERS = {
    "base-8": (
        "aim/graph", "plain/blocks", "timesformer/blocks", "aim-balanced/graph", "aim-low/graph", "aim/eager",
        "aim-fp8/graph", "aim-balanced/eager", "aim-low/eager", "full/blocks", "reference/eager", "aim-fp32/graph",
        "plain/eager", "plain/whole", "timesformer/whole", "aim/whole", "timesformer/eager",
    ),
    **dict.fromkeys(("base-16", "base-32", "base-64"), LONGER),
    "large-8": (
        "aim/graph", "plain/blocks", "aim-balanced/graph", "aim-low/graph", "aim/eager", "aim-fp8/graph",
        "reference/eager", "plain/whole",
    ),
    "swin-32": (
        "aim/graph", "swin3d/blocks", "aim-balanced/graph", "aim/eager", "swin3d/eager", "aim-low/graph",
        "plain/blocks", "swin3d/whole",
    ),
    SMALL: ("aim/eager", "reference/eager", "plain/eager"),
}  # fmt: skip
FEW = (
    "reference/eager", "plain/eager", "aim/eager", "aim/recorded", "aim/graph", "plain/graph", "aim/blocks",
)  # fmt: skip
SWEPT = ("aim/eager", "aim-balanced/eager", "aim-low/eager", "plain/eager")
FRAMES = ("aim/graph", "plain/blocks")
STRAIGHT, GIB_OF_LARGE = 1.05, 16


def fits(key: str, peers: dict[str, Any]) -> list[Target]:
    """Hold the fastest of ours that stays below 16 GiB against `plain`."""
    ours = {label: entry for label, entry in peers.items() if entry.get("peak_bytes", 2**63) <= GIB_OF_LARGE * 2**30}
    best, other = fastest(ours, ("aim", "aim-balanced", "aim-low")), fastest(peers, ("plain",), ("blocks", "whole"))
    if other is None or not any(label.startswith("aim") for label in peers):
        return []
    name, speed = ("none of ours", 0.0) if best is None else (best[0], other[1]["median"] / best[1]["median"])
    return [Target(f"{key}: in {GIB_OF_LARGE} GiB, {name} against {other[0]}, times as fast", speed, at_least=1.3)]


def straight(key: str, peers: dict[str, Any]) -> list[Target]:
    """Hold our longest step against our shortest, with the same number of frames in clips of different lengths."""
    ours = [entry["median"] for label, entry in peers.items() if label.startswith("aim/") and "median" in entry]
    if len(ours) < 2:
        return []
    return [Target(f"{key}: aim, longest step against shortest", max(ours) / min(ours), at_most=STRAIGHT)]


GOALS: dict[str, tuple[Goal, ...]] = {
    "base-8": (
        Against("aim", "timesformer", speed=2.2),
        Against("aim", "plain", speed=1.7, memory=0.75),
        Against("aim-balanced", "plain", speed=1.45, memory=0.45),
        Against("aim-low", "timesformer", speed=1.55, memory=1 / 8),
        Against("aim-fp8", "aim", speed=1.15),
    ),
    "large-8": (Against("aim", "plain", speed=1.55), fits),
    "swin-32": (Against("aim", "swin3d", time=0.45, memory=0.38),),
    # On a CPU attention over so few frames is faster written out than by SDPA.
    SMALL: tuple(Against("aim", peer, speed=1.0, modes=("eager",)) for peer in ("reference", "plain")),
}
FEW_GOALS = (Against("aim", "reference", speed=3.0, modes=("eager",)),)
EAGER = ("eager",)


def peers_of(name: str, size: Size) -> Sequence[str]:
    """Return the peers of a size; of the base model with few clips those that differ there."""
    return FEW if name == "base-8" and size.clips <= 8 else PEERS[name]


def eager_goals(size: Size, share: float) -> tuple[Goal, ...]:
    """Return what is asked of eager calls: never slower than layer by layer, and with up to 4 clips a share."""
    plain = Against("aim", "plain", time=1.0, modes=EAGER, our_modes=EAGER)
    reference = Against("aim", "reference", time=share, modes=EAGER, our_modes=EAGER)
    return (reference, plain) if size.clips <= 4 else (plain,)


def goals_of(name: str, size: Size) -> tuple[Goal, ...]:
    """Return what is asked of a size; every target names its number of clips."""
    if name == "base-8" and size.clips <= 8:
        return (*FEW_GOALS, *eager_goals(size, 0.6))
    return GOALS.get(name, ()) if size.clips == SIZES[name].clips else ()


def loss_of(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Return the cross-entropy, in autocast to a dtype if that is not float32."""
    video, labels = batch
    with torch.autocast(video.device.type, dtype, enabled=dtype != torch.float32):
        return F.cross_entropy(model(video), labels)


def prepare(model: nn.Module, batch: Batch, size: Size) -> Step:
    """Return what does one training step and returns its loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> Tensor:
        loss = loss_of(model, batch, size.low)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def gradients(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the gradients of all that trains, as one vector for each kind of module of ours."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, list[Tensor]] = {}
    for name, gradient in zip(
        trained, torch.autograd.grad(loss_of(model, batch, dtype), list(trained.values())), strict=True
    ):
        kind = name.partition("aim.")[2].split(".")[0]
        found.setdefault(kind, []).append(gradient.flatten())
    return {kind: torch.cat(each) for kind, each in found.items()}


TASK = Task("train_step", "time and peak memory of a training step", train=True, prepare=prepare, observe=gradients)


def frames_job(peers: Sequence[str]) -> Job:
    """Return a table of clips of 8, 16, 32 and 64 frames, 256 frames in all."""
    sizes = [SIZES[f"base-{frames}"] for frames in (8, 16, 32, 64)]
    runs = {f"{peer}, T = {size.frames}": (peer, size) for peer in peers for size in sizes}
    return Job(f"{BASE.name}, {BASE.clips * BASE.frames} frames in all", runs, (straight,))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    made = parser(__doc__.splitlines()[0], SIZES)
    made.add_argument("--frames", action="store_true", help="clips of 8 to 64 frames, 256 frames in all, instead")
    made.add_argument("--profile", action="store_true", help="also the parts of a step")
    run, arguments = begin(TASK, made, argv)
    if arguments.sweep:
        for name in arguments.sizes or ["base-8"]:
            size = SIZES[name]
            sweep(run, key_of(size, arguments.device), size, arguments.peers or SWEPT)
        return 0
    if arguments.frames:
        return measure_all(run, [frames_job(arguments.peers or FRAMES)])
    return measure_all(run, jobs(arguments, SIZES, peers_of, goals_of))


if __name__ == "__main__":
    sys.exit(main())
