"""The loop: steps, evaluations and checkpoints of one run on one process, in step with the others."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.clip_spec import ClipSpec
from aim_adapters.core import is_wrapped, only_root
from aim_adapters.errors import TrainingError
from aim_adapters.recipes import Recipe
from aim_adapters.training.caching import CachedFeed
from aim_adapters.training.failures import Interruption, compiler_errors, explain_memory, not_finite
from aim_adapters.training.feeding import NO_LABEL, Batch, DummyFeed, Feed
from aim_adapters.training.progress import Progress
from aim_adapters.training.running import Way, compiled, replayed
from aim_adapters.training.schedule import AveragedWeights, make_groups, rate_at, set_rate
from aim_adapters.training.settings import RunSettings
from aim_adapters.training.snapshots import (
    Saved,
    Standing,
    copy_into,
    fill_optimizer,
    save_weights,
    trained_parameters,
    write_snapshot,
)
from aim_adapters.video import Evaluation, Normalize, clip_seed


class Run:
    """One run of training on this process.

    Args:
        model: The model, on the CPU or on its device, not distributed.
        accelerator: Accelerate's ``Accelerator``.
        feed: Where clips come from.
        settings: Settings of the run.
        recipe: The recipe.
        spec: What the model reads.
        way: How steps run.
        sharding: ``"ddp"`` or ``"fsdp2"``.
        out: Folder of the run.
        keep: How many checkpoints stay.
        evaluate: Evaluates the model; None: there is nothing to evaluate on.
        progress: What is said.
        callbacks: Called after each step with its record.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Any,
        feed: Feed | DummyFeed | CachedFeed,
        *,
        settings: RunSettings,
        recipe: Recipe,
        spec: ClipSpec,
        way: Way,
        sharding: str,
        out: Path,
        keep: int,
        evaluate: Callable[[nn.Module], Evaluation] | None,
        progress: Progress,
        callbacks: Sequence[Callable[[dict[str, Any]], None]],
    ) -> None:
        self.model, self.accelerator, self.feed, self.settings, self.recipe = model, accelerator, feed, settings, recipe
        self.way, self.sharding, self.out, self.keep = way, sharding, out, keep
        self.evaluate, self.progress, self.callbacks = evaluate, progress, callbacks
        self.device: torch.device = accelerator.device
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.read: nn.Module = model  # what is called with a batch
        self.normalize: nn.Module = Normalize(spec.mean, spec.std).to(self.device)
        if isinstance(feed, CachedFeed):
            self.read, self.normalize = feed.probe, nn.Identity()
        self.step, self.history, self.best = 0, [], None  # type: tuple[int, list[dict[str, Any]], float | None]
        self._stopped = False
        self._start()

    def _start(self) -> None:
        """Place the model, distribute it, and make the optimizer."""
        settings, model = self.settings, self.model.to(self.device)
        if self.sharding == "fsdp2" and self.world > 1:
            _shard(model)
        self.parameters = trained_parameters(model)
        groups = make_groups(
            model, rate=settings.learning_rate, head_rate=settings.head_learning_rate,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, fused=self.device.type == "cuda" and self.sharding == "ddp")
        self.average = None if settings.ema is None else AveragedWeights(self.parameters, settings.ema)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        model.train()
        self.called = self._called()
        if self.sharding == "ddp" and self.world > 1:
            self.called = _distributed(self.called, self.device)

    def restore(self, saved: Saved, standing: Standing) -> None:
        """Go on from a checkpoint, whose weights the model holds already.

        Args:
            saved: Its tensors.
            standing: What it says.
        """
        self.step, self.history, self.best = standing.step, list(standing.history), standing.best
        fill_optimizer(self.optimizer, self.parameters, saved.optimizer)
        if self.average is not None and saved.average is not None:
            copy_into(self.average.values, saved.average)
        if standing.scale:
            self.scaler.load_state_dict(standing.scale)

    def train(self, *, save_every: int, evaluate_every: int, stop: Interruption) -> None:
        """Take all steps that are left.

        Args:
            save_every: Steps between two checkpoints.
            evaluate_every: Epochs between two evaluations; 0: none before the end.
            stop: Notes a signal that asks to stop.

        Raises:
            TrainingError: A loss is not finite, or memory ran out.
            SystemExit: SIGTERM came; a checkpoint was written.
            KeyboardInterrupt: SIGINT came; a checkpoint was written.
        """
        settings = self.settings
        while True:
            done, skip = divmod(self.step, settings.steps_per_epoch)
            # Also where a run goes on that was ended in the middle of this evaluation.
            if self.step and not skip and self.evaluate is not None and evaluate_every and done % evaluate_every == 0:
                self.assess(done)
                if self._ends(stop):
                    self._leave(stop)
            if self.step >= settings.steps:
                return
            self.model.train()
            for batches, waited in self._steps(done, skip):
                self._step(batches, done, waited=waited, stopped=stop.signal is not None)
                ends = self._ends(stop)
                if self.step % save_every == 0 or self.step == settings.steps or ends:
                    self.save()
                if ends:
                    self._leave(stop)
            self.feed.note_skipped()

    def _ends(self, stop: Interruption) -> bool:
        """Return whether a process was asked to stop, in which all agree."""
        return self._stopped or (self.world == 1 and stop.signal is not None)

    def _leave(self, stop: Interruption) -> None:
        """End the program; the run is saved."""
        self.progress.say(f"stopped by a signal after step {self.step}; a checkpoint is in {self.out}")
        stop.leave()

    def _steps(self, epoch: int, skip: int) -> Iterator[tuple[list[Batch], float]]:
        """Yield the passes of each step of an epoch, and how long they were waited for."""
        batches = iter(self.feed.epoch(epoch, skip))
        for _ in range(self.settings.steps_per_epoch - skip):
            begun = time.perf_counter()
            found = list(islice(batches, self.settings.accumulate))
            yield found, time.perf_counter() - begun

    def _step(self, batches: Sequence[Batch], epoch: int, *, waited: float, stopped: bool) -> None:
        begun, settings = time.perf_counter(), self.settings
        # Dropout and stochastic depth of a step depend on nothing but the run, the step and the process.
        torch.manual_seed(clip_seed(settings.seed, self.step, f"rank {self.rank}"))
        share = rate_at(
            self.step,
            steps=settings.steps,
            warmup=round(settings.warmup_epochs * settings.steps_per_epoch),
            start=self.recipe.warmup_start,
        )
        set_rate(self.optimizer, share)
        with explain_memory(settings.batch_size, settings.accumulate, self._memory):
            loss, clips = self._passes(batches)
            # One message and one wait for the device in a step: loss, clips, and who was asked to stop.
            flag = loss.new_tensor(float(stopped))
            total, count, stops = self._sum(torch.stack([loss, clips, flag])).tolist()
            if not count:
                raise TrainingError(
                    f"the data of epoch {epoch} ended after {self.step - epoch * settings.steps_per_epoch} of "
                    f"{settings.steps_per_epoch} steps; tell a stream its true length="
                )
            total *= settings.total_batch / count
            rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            if not math.isfinite(total):  # on all processes alike, and before weights are touched
                own = not bool(torch.isfinite(loss))
                names = [name for batch in batches for name in batch.names]
                raise not_finite(total, self.step + 1, names if own else [], rates)
            self.scaler.unscale_(self.optimizer)
            if count != settings.total_batch:
                gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
                torch._foreach_mul_(gradients, settings.total_batch / count)
            norm = None if settings.max_norm is None else self._clip(settings.max_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.update()
        self.step, self._stopped = self.step + 1, bool(stops)
        seconds = time.perf_counter() - begun + waited
        record: dict[str, Any] = {"step": self.step, "epoch": epoch, "loss": total, "lr": max(rates)}
        if norm is not None:
            record["norm"] = norm
        self.history.append(record)
        self.progress.advance(
            self.step, loss=total, rate=record["lr"], clips=int(count), seconds=seconds, waited=waited
        )
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)
        for callback in self.callbacks:
            callback(dict(record))

    def _clip(self, most: float) -> float:
        """Clip the gradients, and return their norm before."""
        norm: Any = nn.utils.clip_grad_norm_(self.parameters.values(), most)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _passes(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Run all passes of a step forwards and backwards.

        Returns:
            This process's part of the mean loss of a full step, and the number of its clips.
        """
        total = torch.zeros((), device=self.device)
        clips = torch.zeros((), device=self.device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.ExitStack() as stack:
                if not last and isinstance(self.called, nn.parallel.DistributedDataParallel):
                    stack.enter_context(self.called.no_sync())
                video = self.normalize(batch.video)  # [B, T, C, H, W]
                with self._autocast():
                    logits = _logits(self.called(video))
                losses = F.cross_entropy(
                    logits.float(), batch.labels, label_smoothing=self.settings.label_smoothing, reduction="sum",
                    ignore_index=NO_LABEL,
                )  # fmt: skip
                loss = losses / self.settings.total_batch
                # Gradients of processes are averaged; their losses are parts of one mean.
                self.scaler.scale(loss * self.world).backward()
            total += loss.detach()
            clips += (batch.labels != NO_LABEL).sum()
        return total, clips

    @property
    def _memory(self) -> str | None:
        """The memory mode of the model, or None for a baseline."""
        return only_root(self.model).state.execution.memory if is_wrapped(self.model) else None

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.settings.precision != "fp32")

    def _called(self) -> nn.Module:
        """Return what is called in training; where compiling or capturing fails, that is the model as it is."""
        if self.way.name == "eager":
            return self.read
        # Tried before the processes depend on one another: if it fails on one, all run eagerly.
        self.called, failure, asked = self.read, None, self.way.reason == "asked for"
        with explain_memory(self.settings.batch_size, 1, self._memory):
            if self.way.name == "graphs":
                with self._autocast():
                    failure = replayed(self.model, self.normalize(self.feed.blank().video))
                if failure is not None and asked:
                    raise TrainingError(f"execution='graphs' was asked for, but {failure}; use 'auto' or 'eager'")
            else:
                self.called = compiled(self.read, self.way)
                try:
                    self._passes([self.feed.blank()])
                except compiler_errors() as error:
                    failure = f"{type(error).__name__}: {error!s:.200}"
                    if asked:
                        raise
        for parameter in self.parameters.values():
            parameter.grad = None
        if not float(self._sum(torch.tensor(float(failure is not None), device=self.device))):
            return self.called
        self.progress.say(f"runs eagerly: {failure or 'so does another process'}")
        if is_wrapped(self.model):
            only_root(self.model).state.graphs = None
        self.way = Way("eager", f"{self.way.name} failed")
        return self.read

    def assess(self, epoch: int) -> None:
        """Evaluate, and keep the best adapters.

        Args:
            epoch: Epochs finished.
        """
        assert self.evaluate is not None
        if any("top1" in record and record["step"] == self.step for record in self.history):
            return  # before this run was interrupted
        with contextlib.nullcontext() if self.average is None else self.average.in_place():
            accuracy = self.evaluate(self.model).top1
            self.history.append({"step": self.step, "epoch": epoch, "top1": accuracy})
            self.progress.say(f"epoch {epoch}: top-1 {accuracy:.1%} on the test set")
            self.accelerator.log({"top1": accuracy}, step=self.step)
            if self.best is None or accuracy > self.best:
                self.best = accuracy
                self.keep_weights(self.out / "best")

    def end(self, *, keep: bool) -> None:
        """Leave the model with the weights that are kept.

        Args:
            keep: Save them.
        """
        if self.average is not None:
            copy_into(self.parameters, self.average.values)
        if keep:
            self.keep_weights(self.out)

    def keep_weights(self, folder: Path) -> None:
        """Save what trains.

        Args:
            folder: Where to.
        """
        save_weights(folder, self.model, self.parameters, first=self.rank == 0, sharded=self._sharded)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint."""
        write_snapshot(
            self.out / "checkpoints",
            self.model,
            parameters=self.parameters,
            optimizer=self.optimizer,
            average=None if self.average is None else self.average.values,
            standing=Standing(
                self.step, self.settings.to_dict(), self.history, self.best, dict(self.scaler.state_dict())
            ),
            first=self.rank == 0,
            sharded=self._sharded,
            keep=self.keep,
        )
        self.accelerator.wait_for_everyone()

    @property
    def _sharded(self) -> bool:
        return self.sharding == "fsdp2" and self.world > 1

    def _sum(self, value: Tensor) -> Tensor:
        """Add up the values of all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value


def _logits(output: Any) -> Tensor:
    """Return the logits among a model's outputs."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TrainingError(
            f"the model returns a {type(output).__name__} without logits; wrap one that classifies, with labels=[...]"
        )
    return logits


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """Let several processes train a model whose gradients they average; nothing else of it crosses between them."""
    ddp = nn.parallel.DistributedDataParallel
    # Buffers are constants. Newer versions of PyTorch have another name for it.
    names = ("forward_sync_buffers", "broadcast_buffers")
    name = next(each for each in names if each in inspect.signature(ddp).parameters)
    settings: dict[str, Any] = {name: False, "device_ids": [device] if device.type == "cuda" else None}
    # One message: adapters have few gradients, and waiting for the slowest process costs more than sending.
    return ddp(model, gradient_as_bucket_view=True, bucket_cap_mb=1024, **settings)


def _shard(model: nn.Module) -> None:
    """Shard a model's weights over all processes, block by block."""
    from torch.distributed.fsdp import fully_shard

    if is_wrapped(model):
        wrapped = only_root(model)
        for path, _ in wrapped.state.anatomy.blocks:
            fully_shard(wrapped.root.get_submodule(path))
    fully_shard(model)
