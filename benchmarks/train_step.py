"""How long does a training step take, and how much memory, beside those of the peers?

``python -m benchmarks.train_step`` on a GPU. A step is forward pass, cross-entropy, backward pass and fused AdamW, in
bf16 autocast. Each peer is built, warmed up and timed; then all of a size take turns, several rounds, so that drift of
the clocks meets all alike, and the medians are of those. A peer is named ``<model>/<mode>``:

- models: ``triton`` and ``sdpa``, a wrapped ViT by its temporal attention; the same with ``-bf16``, whose frozen
  weights are held in bf16; ``full``, fine-tuning of the whole ViT on frames, whose logits are averaged;
  ``timesformer``, fine-tuning of the whole TimeSformer of transformers;
- modes: ``eager``; ``blocks``, each block compiled; ``whole``, the model compiled.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.harness import Target, Timing, reason, record, write

NAME = "train_step"
BACKEND = "inductor"
DTYPE = torch.bfloat16  # of autocast
# How many times as far from float32 as those of `sdpa` the gradients of `triton` may be, both in bf16.
TOLERANCE = 1.5
COMPILED = ("blocks", "whole")


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    name: str
    clips: int
    frames: int = 8
    resolution: int = 224
    classes: int = 400

    def build(self, **settings: Any) -> nn.Module:
        """Return the image model."""
        import timm

        return timm.create_model(self.name, img_size=self.resolution, **settings)

    def batch(self, device: str) -> tuple[Tensor, Tensor]:
        """Return random clips ``[B, T, 3, H, W]`` and labels."""
        video = torch.randn(self.clips, self.frames, 3, self.resolution, self.resolution, device=device)
        return video, torch.randint(self.classes, (self.clips,), device=device)


BASE, LARGE = Size("vit_base_patch16_clip_224", 32), Size("vit_large_patch14_clip_224", 16)
PEERS = {
    "base": (
        "triton/blocks", "sdpa/blocks", "timesformer/blocks", "triton-bf16/blocks", "sdpa-bf16/blocks", "full/blocks",
        "triton/eager", "sdpa/eager", "timesformer/eager", "full/eager", "timesformer/whole", "triton/whole",
    ),
    "large": ("triton/blocks", "sdpa/blocks", "triton-bf16/blocks", "sdpa-bf16/blocks", "triton/eager", "sdpa/eager"),
}  # fmt: skip


# Models


class ImageModelOnFrames(nn.Module):
    """Average an image model's logits over the frames of a clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of clips ``[B, T, 3, H, W]``."""
        return self.model(video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


class Logits(nn.Module):
    """Return the logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of clips ``[B, T, 3, H, W]``."""
        return self.model(video).logits


def wrapped(size: Size, attention: str, *, frozen: torch.dtype | None = None) -> nn.Module:
    """Return a wrapped ViT; its frozen weights may be held in another dtype."""
    model = aim.wrap_image_model(size.build(), size.frames, num_classes=size.classes, attention=attention)
    for parameter in model.parameters():
        if frozen is not None and not parameter.requires_grad:
            parameter.data = parameter.data.to(frozen)
    return model


def timesformer(size: Size) -> nn.Module:
    """Return TimeSformer with divided space-time attention, as wide and deep as the ViT."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    vit = size.build()
    config = TimesformerConfig(
        image_size=size.resolution,
        patch_size=vit.patch_embed.patch_size[0],
        num_frames=size.frames,
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=vit.blocks[0].attn.num_heads,
        intermediate_size=vit.blocks[0].mlp.fc1.out_features,
        attention_type="divided_space_time",
        num_labels=size.classes,
    )
    return Logits(TimesformerForVideoClassification(config))


MODELS: dict[str, Callable[[Size], nn.Module]] = {
    "triton": lambda size: wrapped(size, "triton"),
    "sdpa": lambda size: wrapped(size, "sdpa"),
    "triton-bf16": lambda size: wrapped(size, "triton", frozen=DTYPE),
    "sdpa-bf16": lambda size: wrapped(size, "sdpa", frozen=DTYPE),
    "full": lambda size: ImageModelOnFrames(size.build(num_classes=size.classes)),
    "timesformer": timesformer,
}


def compile_model(model: nn.Module, mode: str) -> None:
    """Compile in place: nothing, each block, or the whole model."""
    if mode == "whole":
        model.compile(dynamic=False, backend=BACKEND)
    elif mode == "blocks":
        blocks = max((m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential))), key=len)
        for block in blocks:
            block.compile(dynamic=False, backend=BACKEND)


# Steps


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the cross-entropy, in autocast to a dtype if that is not float32."""
    video, labels = batch
    with torch.autocast(video.device.type, dtype, enabled=dtype != torch.float32):
        return F.cross_entropy(model(video), labels)


def make_step(peer: str, size: Size, device: str) -> Callable[[], Tensor]:
    """Return what does one training step of a peer and returns its loss."""
    name, mode = peer.split("/")
    torch.manual_seed(0)
    model = MODELS[name](size).to(device).train()
    compile_model(model, mode)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    batch = size.batch(device)

    def step() -> Tensor:
        loss = loss_of(model, batch, DTYPE)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def agreement(size: Size, device: str) -> dict[str, float]:
    """Return how far the gradients of temporal adapters are from those in float32, by either path.

    Each adapter's sees what temporal attention computed, and in lower layers the gradients that it passed on.
    """
    small = replace(size, clips=2)
    torch.manual_seed(0)
    model = wrapped(small, "sdpa").to(device).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # those that start at zero would hide everything behind them
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    inputs = [parameter for name, parameter in trained.items() if ".temporal." in name]
    batch = small.batch(device)

    def gradients(attention: str, dtype: torch.dtype) -> Tensor:
        aim.set_attention(model, attention)
        found = torch.autograd.grad(loss_of(model, batch, dtype), inputs)
        return torch.cat([gradient.flatten() for gradient in found])

    exact = gradients("sdpa", torch.float32)
    return {
        attention: float((gradients(attention, DTYPE) - exact).norm() / exact.norm())
        for attention in ("sdpa", "triton")
    }


class Gpu:
    """Time steps and count memory on a GPU."""

    device = "cuda"

    def times(self, step: Callable[[], Any], repeats: int) -> list[float]:
        """Return the seconds of steps that follow one another, as in training: the host may run ahead."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        return [1e-3 * a.elapsed_time(b) for a, b in pairwise(events)]

    def held(self) -> int:
        """Return the bytes allocated now, and count the peak anew."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the most bytes that were allocated."""
        return torch.cuda.max_memory_allocated()

    def forget(self) -> None:
        """Give free memory back."""
        gc.collect()
        torch.cuda.empty_cache()


class Cpu:
    """Time steps on a CPU, whose memory is not counted."""

    device = "cpu"

    def times(self, step: Callable[[], Any], repeats: int) -> list[float]:
        """Return the seconds of each step."""
        stamps = [time.perf_counter()]
        for _ in range(repeats):
            step()
            stamps.append(time.perf_counter())
        return [b - a for a, b in pairwise(stamps)]

    def held(self) -> int:
        """Return nothing held."""
        return 0

    def peak(self) -> int:
        """Return nothing held."""
        return 0

    def forget(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Effort:
    """How many steps are timed: at first, and then in each round of turns."""

    warmup: int = 3
    first: int = 5
    rounds: int = 4
    turn: int = 4


def measure_size(
    size: Size, peers: Sequence[str], machine: Gpu | Cpu, effort: Effort, save: Callable[[dict[str, Any], str], None]
) -> None:
    """Time the peers of one size; `save` gets the table whenever it has grown, and a line about it."""
    torch.compiler.reset()
    table: dict[str, Any] = {"size": asdict(size), "peers": {}}
    try:
        table["agreement"] = agreement(size, machine.device)
    except Exception as error:  # the peers' times do not depend on it
        table["agreement"] = {"error": reason(error)}
    save(table, f"{size.name}, {size.clips} clips: errors of gradients {table['agreement']}")
    steps: dict[str, Callable[[], Tensor]] = {}
    for peer in peers:
        before = machine.held()
        start = time.perf_counter()
        try:
            step = make_step(peer, size, machine.device)
            losses = [float(step()) for _ in range(effort.warmup)]
            ready = time.perf_counter() - start
            machine.held()  # a compiler's trials do not count
            first = machine.times(step, effort.first)
            table["peers"][peer] = {**summary(first, size), "peak_bytes": machine.peak() - before}
            table["peers"][peer] |= {"seconds_until_ready": ready, "losses": losses}
            steps[peer] = step
        except Exception as error:  # out of memory, or no compiler: that is its result
            table["peers"][peer] = {"error": reason(error)}
        step = None
        machine.forget()
        save(table, describe(peer, table["peers"][peer]))
    turns: dict[str, list[float]] = {peer: [] for peer in steps}
    for _ in range(effort.rounds):
        for peer, step in steps.items():
            machine.times(step, 1)
            turns[peer] += machine.times(step, effort.turn)
    for peer, seconds in turns.items():
        table["peers"][peer] |= summary(seconds, size)
        save(table, f"in turn: {describe(peer, table['peers'][peer])}")


def summary(seconds: Sequence[float], size: Size) -> dict[str, float]:
    """Return the times of steps, and the clips trained on in a second."""
    timing = Timing.of(seconds)
    return {**asdict(timing), "clips_per_second": size.clips / timing.median}


def describe(peer: str, entry: dict[str, Any]) -> str:
    """Return a line about a peer."""
    if "error" in entry:
        return f"  {peer:<20} {entry['error'][:160]}"
    return (
        f"  {peer:<20} {1e3 * entry['median']:8.2f} ms  {entry['clips_per_second']:7.1f} clips/s"
        f"  {entry['peak_bytes'] / 2**30:6.2f} GiB  ready after {entry['seconds_until_ready']:.0f} s"
    )


def best(table: dict[str, Any], *names: str) -> dict[str, Any] | None:
    """Return the fastest compiled peer of some models, or None."""
    entries = [
        entry
        for peer, entry in table["peers"].items()
        if "median" in entry and peer.split("/")[0] in names and peer.split("/")[1] in COMPILED
    ]
    return min(entries, key=lambda entry: entry["median"], default=None)


def targets(tables: Sequence[dict[str, Any]]) -> list[Target]:
    """Hold our fastest compiled step against the fastest compiled ones of the peers, where both were measured."""
    goals = {
        BASE.name: {("timesformer",): 2.2, ("sdpa", "sdpa-bf16"): 1.7, ("full",): 1.0},
        LARGE.name: {("sdpa", "sdpa-bf16"): 1.55},
    }
    found = []
    for table in tables:
        ours = best(table, "triton", "triton-bf16")
        for names, goal in goals.get(table["size"]["name"], {}).items():
            peer = best(table, *names)
            if ours is not None and peer is not None:
                what = f"{table['size']['name']}, {table['size']['clips']} clips: times as fast as {names[0]}, compiled"
                found.append(Target(what, peer["median"] / ours["median"], goal))
    return found


def agree(errors: dict[str, Any]) -> bool:
    """Say whether the kernels' gradients are as good as those of SDPA."""
    return "error" not in errors and errors["triton"] <= TOLERANCE * errors["sdpa"]


def measure(
    sizes: Sequence[tuple[Size, Sequence[str]]], folder: Path | None, *, machine: Gpu | Cpu, effort: Effort
) -> int:
    """Measure every size, write the result as it grows, and return the exit status."""
    started = time.perf_counter()
    # Blocks share their code; each peer's and each mode's is one more version of it.
    torch._dynamo.config.recompile_limit = 256
    tables: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "benchmark": NAME,
        "command": f"python -m benchmarks.{NAME}",
        "question": "time and peak memory of a training step in bf16 autocast",
        "complete": False,
        "ran_on": record(),
        "tables": tables,
    }

    def save(table: dict[str, Any] | None, note: str) -> None:
        if table is not None and not any(table is other for other in tables):
            tables.append(table)
        write(NAME, result, folder)
        print(f"[{time.perf_counter() - started:5.0f} s] {note}", flush=True)

    for size, peers in sizes:
        measure_size(size, peers, machine, effort, save)
        machine.forget()
    held = targets(tables)
    wrong = [table for table in tables if not agree(table["agreement"])]
    met = not wrong and all(target.met for target in held)
    result |= {"targets": [{**asdict(target), "met": target.met} for target in held], "met": met, "complete": True}
    save(None, "\n".join(("targets:", *map(str, held), *(f"paths disagree: {t['agreement']}" for t in wrong))))
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--quick", action="store_true", help="two peers of the base model, few steps")
    parser.add_argument("--sizes", nargs="+", choices=tuple(PEERS), default=tuple(PEERS))
    parser.add_argument("--peers", nargs="+", metavar="MODEL/MODE", help="only these, of every size")
    parser.add_argument("--clips", nargs="+", type=int, help="numbers of clips, instead of 32 (base) and 16 (large)")
    arguments = parser.parse_args(argv)
    for peer in arguments.peers or ():
        name, _, mode = peer.partition("/")
        if name not in MODELS or mode not in ("eager", *COMPILED):
            parser.error(f"a peer is one of {', '.join(MODELS)} and /eager, /blocks or /whole, got {peer!r}")
    if not torch.cuda.is_available():
        parser.error("the times are those of a GPU, and there is none")
    sizes = []
    for key in arguments.sizes[:1] if arguments.quick else arguments.sizes:
        size = {"base": BASE, "large": LARGE}[key]
        peers = arguments.peers or (PEERS[key][:2] if arguments.quick else PEERS[key])
        sizes += [(replace(size, clips=clips), peers) for clips in arguments.clips or [size.clips]]
    effort = Effort(first=3, rounds=2) if arguments.quick else Effort()
    return measure(sizes, arguments.out, machine=Gpu(), effort=effort)


if __name__ == "__main__":
    sys.exit(main())
