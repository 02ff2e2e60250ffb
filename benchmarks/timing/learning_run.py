"""One run of the task: a way to compute trains with a seed, and is tested."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core import fp8_missing
from benchmarks.timing.learning_task import Task

PEER = "modules"  # what the other ways are held against
BATCH, LEARNING_RATE, WEIGHT_DECAY = 8, 1e-3, 0.05  # of the quickstart
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained
FINAL = 50  # steps whose mean is the final loss
WINDOW = 25  # steps whose mean loss is a number of the result


@dataclass(frozen=True)
class Way:
    """A way to compute; on a GPU in bf16 autocast."""

    words: str
    fused: bool | str = "auto"
    attention: str = "auto"
    held: str = "bfloat16"
    memory: str = "fast"
    frozen_precision: str = "auto"


WAYS = {
    PEER: Way("layer by layer, SDPA", fused=False, attention="sdpa", held="float32"),
    "fused": Way("fused, frozen weights in float32", held="float32"),
    "held": Way("fused"),
    "balanced": Way("fused, `balanced`", memory="balanced"),
    "low": Way("fused, `low`", memory="low"),
    "fp8": Way("fused, frozen products in fp8", frozen_precision="fp8"),
}
DEFAULT = (PEER, "fused", "held", "fp8")
WITH_COSINE = "held"  # its trained models also answer with products in fp8


def build(task: Task, way: Way, *, seed: int, device: str) -> nn.Module:
    """Return the wrapped model; a seed gives every way the same adapters."""
    model = timm.create_model(task.about["model"], img_size=int(task.about["img_size"]), num_classes=0)
    model.load_state_dict(task.backbone)
    torch.manual_seed(seed)
    frames, classes = task.train[0].shape[1], int(task.about["classes"])
    aim.wrap_image_model(model, num_frames=frames, num_classes=classes, layers="top_half", attention=way.attention)
    aim.set_execution(model, fused=way.fused, memory=way.memory, frozen_precision=way.frozen_precision)
    if device == "cpu":
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # whose gradients are slow there for so few tokens
    else:
        aim.set_base_dtype(model, getattr(torch, way.held))
    return model.to(device)


def logits_of(model: nn.Module, frames: Tensor) -> Tensor:
    """Return what a model answers to frames ``[B, T, 3, H, W]``, uint8."""
    mean, std = (torch.tensor(value, device=frames.device).view(3, 1, 1) for value in (MEAN, STD))
    with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.device.type != "cpu"):
        return model((frames / 255 - mean) / std)


def fit(model: nn.Module, clips: tuple[Tensor, Tensor], *, seed: int, steps: int) -> list[float]:
    """Train, and return the loss of each step.

    Raises:
        ArithmeticError: A loss is not finite.
    """
    frames, labels = clips
    generator = torch.Generator().manual_seed(seed)
    passes = math.ceil(steps * BATCH / len(labels))
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(passes)]).to(labels.device)
    mirrored = (torch.rand(steps, generator=generator) < 0.5).tolist()
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=WEIGHT_DECAY), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    losses = []
    model.train()
    for step in range(steps):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        video = frames[chosen].flip(-1) if mirrored[step] else frames[chosen]
        loss = F.cross_entropy(logits_of(model, video).float(), labels[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    found: list[float] = torch.stack(losses).tolist()
    if not all(map(math.isfinite, found)):
        raise ArithmeticError(f"the loss is not finite, first at step {[*map(math.isfinite, found)].index(False)}")
    return found


@torch.inference_mode()
def answers(model: nn.Module, frames: Tensor, batch: int = 50) -> Tensor:
    """Return logits ``[B, classes]``, float32."""
    model.eval()
    return torch.cat([logits_of(model, part).float() for part in frames.split(batch)])


def means(losses: Sequence[float], window: int) -> list[float]:
    """Return the mean loss of every so many steps; the last mean is of those that are left."""
    return [round(statistics.fmean(losses[start : start + window]), 6) for start in range(0, len(losses), window)]


def train(task: Task, name: str, seed: int, *, steps: int, device: str, window: int = WINDOW) -> dict[str, Any]:
    """Train in one way with one seed, and test; of the losses the means over a window are kept."""
    clips, (test, labels) = (tuple(x.to(device) for x in part) for part in (task.train, task.test))
    model = build(task, WAYS[name], seed=seed, device=device)
    start = time.perf_counter()
    losses = fit(model, clips, seed=seed, steps=steps)
    entry: dict[str, Any] = {"loss": statistics.fmean(losses[-FINAL:]), "seconds": time.perf_counter() - start}
    logits = answers(model, test)
    entry["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
    if name == WITH_COSINE and why_not("fp8", device) is None:
        aim.set_execution(model, frozen_precision="fp8")
        cosines = F.cosine_similarity(answers(model, test).double(), logits.double())
        entry["cosine"] = {"mean": float(cosines.mean()), "least": float(cosines.min())}
    return entry | {"mean_losses": means(losses, window)}


def why_not(name: str, device: str) -> str | None:
    """Say why a way cannot run on a device, or None."""
    if WAYS[name].frozen_precision != "fp8":
        return None
    return "float8 needs a CUDA device" if device == "cpu" else fp8_missing()
