"""Training by one recorded step, several models side by side, and their test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.motion.task import Clips

WARM = 3  # steps before the recording


class Plan(NamedTuple):
    """How a model trains.

    Attributes:
        steps: Steps of the optimizer.
        batch: Clips of a step, a multiple of ``together``.
        rate: Highest learning rate; it rises linearly, then falls along a cosine to zero.
        warmup: Share of the steps in which it rises.
        weight_decay: Of AdamW.
        ema: Decay of the averaged weights that are tested; 0: the weights themselves.
        together: Consecutive clips that are always in one step: those of a scene.
        record: Whether steps are recorded as a CUDA graph; else each runs on its own.
    """

    steps: int
    batch: int
    rate: float
    warmup: float = 0.1
    weight_decay: float = 0.05
    ema: float = 0.0
    together: int = 1
    record: bool = True


class Training:
    """A model that trains on clips.

    Args:
        model: Maps normalized clips ``[B, T, 3, S, S]`` to logits ``[B, K]``.
        groups: What trains, as an optimizer's groups with their ``share`` of the learning rate.
        clips: What it trains on, on its device.
        plan: How.
        seed: Of the order of the clips.
        normalize: Turns uint8 frames into what the model reads.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        clips: Clips,
        plan: Plan,
        *,
        seed: int,
        normalize: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.clips, self.plan, self.normalize = model, clips, plan, normalize
        device = clips.frames.device
        self.device, self.cuda = device, device.type == "cuda"
        self.order = _order(len(clips.labels), plan, seed).to(device)  # [steps, batch]
        self.rates = torch.tensor([rate_at(step, plan) for step in range(plan.steps)], device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(plan.steps, device=device)
        self.shares = [group.pop("share") for group in groups]
        self.optimizer = torch.optim.AdamW(
            [group | {"lr": torch.zeros((), device=device)} for group in groups],
            weight_decay=plan.weight_decay,
            fused=self.cuda,
            capturable=self.cuda,
        )
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.average = [parameter.detach().clone() for parameter in self.trained] if plan.ema else []
        self.stream = torch.cuda.Stream(device) if self.cuda else None
        self.graph: torch.cuda.CUDAGraph | None = None
        model.train()

    def start(self) -> None:
        """Take the first steps, and record one on a GPU."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for _ in range(WARM):
            self.advance()
        if self.stream is not None and self.plan.record:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=self.stream):
                self._take()
            self.graph = recorded

    def advance(self) -> None:
        """Take one step; on a GPU, without waiting for it."""
        with torch.cuda.stream(self.stream):  # None: no stream
            if self.graph is not None:
                self.graph.replay()
                return
            self._take()
            self.optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """Wait for all steps, and put averaged weights in place.

        Raises:
            ArithmeticError: A loss is not finite.
        """
        if self.stream is not None:
            self.stream.synchronize()
        self.graph = None
        self.optimizer.zero_grad(set_to_none=True)
        if not bool(self.losses.isfinite().all()):
            raise ArithmeticError("a loss is not finite")
        for parameter, mean in zip(self.trained, self.average, strict=False):
            parameter.data.copy_(mean)

    def _take(self) -> None:
        chosen = self.order.index_select(0, self.step)[0]  # [batch]
        rate = self.rates.index_select(0, self.step)[0]
        video = self.normalize(self.clips.frames.index_select(0, chosen))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False):
            logits = self.model(video)
        loss = F.cross_entropy(logits.float(), self.clips.labels.index_select(0, chosen))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"].copy_(rate * share)
        self.optimizer.step()
        if self.average:
            # Early on, the average forgets faster: there is little worth keeping.
            forgotten = (9 / (10 + self.step[0])).clamp(min=1 - self.plan.ema)
            moved = torch._foreach_sub([parameter.detach() for parameter in self.trained], self.average)
            torch._foreach_mul_(moved, forgotten)
            torch._foreach_add_(self.average, moved)
        self.losses.index_copy_(0, self.step, loss.detach()[None])
        self.step += 1


def _order(count: int, plan: Plan, seed: int) -> Tensor:
    """Return which clips each step trains on, ``[steps, batch]``: all, in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    scenes = count // plan.together
    passes = math.ceil(plan.steps * plan.batch / (scenes * plan.together))
    order = torch.cat([torch.randperm(scenes, generator=generator) for _ in range(passes)])  # [scenes]
    clips = order[:, None] * plan.together + torch.arange(plan.together)  # [scenes, together]
    return clips.flatten()[: plan.steps * plan.batch].view(plan.steps, plan.batch)


def rate_at(step: int, plan: Plan) -> float:
    """Return the learning rate of a step."""
    rising = max(1, round(plan.warmup * plan.steps))
    if step < rising:
        return plan.rate * (step + 1) / rising
    return plan.rate * (1 + math.cos(math.pi * (step - rising) / max(1, plan.steps - rising))) / 2


def train_together(trainings: Sequence[Training]) -> None:
    """Train models side by side, each on a stream of its own."""
    for training in trainings:
        training.start()
    for _ in range(max(training.plan.steps for training in trainings) - WARM):
        for training in trainings:
            training.advance()
    for training in trainings:
        training.finish()


@torch.no_grad()
def predict(model: nn.Module, clips: Clips, *, normalize: Callable[[Tensor], Tensor], batch: int = 200) -> Tensor:
    """Return the predicted class of each clip, ``[B]``."""
    model.eval()
    cuda = clips.frames.is_cuda
    found = []
    for frames in clips.frames.split(batch):
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=cuda):
            found.append(model(normalize(frames)).argmax(-1))
    return torch.cat(found)
