"""Does a way to compute change what is learned?

The task of ``examples/quickstart.py``: DINOv2 ViT-S/14 learns to tell what happens in a clip, with adapters in its top
half. Each way to compute trains with the same seeds, and a seed sets the adapters' start, the order of the clips and
which of them are mirrored. In two commands, as a machine with a GPU may have neither the weights nor a video decoder:

    python -m benchmarks.timing.learning --prepare FILE  # clips and image model, as the quickstart makes and loads them
    python -m benchmarks.timing.learning --task FILE     # trains, on a GPU; a CPU is for trying out, all in float32

``modules`` runs layer by layer over SDPA. Another way learns the same if the mean change of the final loss and of the
test accuracy, against ``modules`` with the same seed, are at most what two runs of ``modules`` with different seeds
differ by: the square root of 2 times their standard deviation. Were seeds the only difference, n of them would leave
the mean change a standard error of 1 / sqrt(n) of that limit, so six exceed it by chance 1 time in 17, eight 1 in 40.
More seeds do not tighten the limit; the standard error itself, and t, stand in the result for whoever wants to look
closer.

The image model is stored in float16, the same rounded weights for every way. Seconds are of several runs at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core import fp8_missing
from benchmarks.harness import ROOT, Target, command, reason, record, write

NAME = "learning"
PEER = "modules"  # what the other ways are held against
BATCH, LEARNING_RATE, WEIGHT_DECAY = 8, 1e-3, 0.05  # of the quickstart
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained
FINAL = 50  # steps whose mean is the final loss
COSINE = 0.999
LEARNED = 0.5  # all that can be known from frames alone: what moves, not which way
DIGITS = 1e-4  # of a loss in the result
PARTS, BACKBONE = ("train", "test"), "backbone."


@dataclass(frozen=True)
class Way:
    """A way to compute; on a GPU in bf16 autocast."""

    words: str
    branches: str = "auto"
    attention: str = "auto"
    held: str = "bfloat16"
    memory: str = "fast"
    products: str = "auto"


WAYS = {
    PEER: Way("layer by layer, SDPA", branches="modules", attention="sdpa", held="float32"),
    "fused": Way("fused, frozen weights in float32", held="float32"),
    "held": Way("fused"),
    "balanced": Way("fused, `balanced`", memory="balanced"),
    "low": Way("fused, `low`", memory="low"),
    "fp8": Way("fused, frozen products in fp8", products="fp8"),
}
DEFAULT = (PEER, "fused", "held", "fp8")
WITH_COSINE = "held"  # its trained models also answer with products in fp8


class TaskError(ValueError):
    """Tells that a file holds no task."""


class Task(NamedTuple):
    """What is learned: frames ``[B, T, 3, H, W]``, uint8, and labels ``[B]`` of both parts, and the image model."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    backbone: dict[str, Tensor]
    about: dict[str, str]


# The file


def prepare(path: Path, *, clips: int, test_clips: int) -> None:
    """Write the task with the first so many of the quickstart's clips; its cached videos and weights are used.

    Raises:
        TaskError: The quickstart has fewer clips.
    """
    sys.path.insert(0, str(ROOT / "examples"))
    import pretrained
    import quickstart

    settings = quickstart.parse([])
    wanted = dict(zip(PARTS, ((clips, settings.clips), (test_clips, settings.test_clips)), strict=True))
    for name, (count, most) in wanted.items():
        if not 0 < count <= most:
            raise TaskError(f"{name} clips: the quickstart has {most}, got {count}")
    photographs = quickstart.find_photographs(settings.cache, photos=None)
    parts = quickstart.prepare(settings, photographs, device=torch.device("cpu"))
    model = quickstart.load_dinov2_small(settings.size, cache=settings.cache)
    clips_of = [
        (part.frames[:count].clone(), part.labels[:count].clone())
        for part, (count, _) in zip(parts, wanted.values(), strict=True)
    ]
    about = {
        "model": pretrained.MODEL,
        "img_size": str(settings.size),
        "classes": str(len(quickstart.CLASSES)),
        "source": "examples/quickstart.py",
        "command": command(NAME, f"--prepare FILE --clips {clips} --test-clips {test_clips}".split()),
    }
    save(path, Task(*clips_of, model.state_dict(), about))


def save(path: Path, task: Task) -> None:
    """Write a task as safetensors, the image model in float16."""
    tensors = {BACKBONE + key: value.half() for key, value in task.backbone.items()}
    for part in PARTS:
        tensors |= dict(zip((f"{part}.frames", f"{part}.labels"), getattr(task, part), strict=True))
    save_file(tensors, path, metadata={"benchmark": NAME, **task.about})


def load(path: Path) -> Task:
    """Read what `save` wrote.

    Raises:
        TaskError: There is no such file, or it is another.
    """
    how = f"write one by {command(NAME, ['--prepare', 'FILE'])}"
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("benchmark") != NAME:
                raise TaskError(f"{path} holds other tensors than a task; {how}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except FileNotFoundError as error:
        raise TaskError(f"there is no file {path}; {how}") from error
    except (OSError, SafetensorError) as error:
        raise TaskError(f"{path} cannot be read as a task ({error}); {how}") from error
    train, test = ((tensors[f"{part}.frames"], tensors[f"{part}.labels"]) for part in PARTS)
    backbone = {
        key.removeprefix(BACKBONE): value.float() for key, value in tensors.items() if key.startswith(BACKBONE)
    }  # fmt: skip
    return Task(train, test, backbone, about)


# One run


def build(task: Task, way: Way, *, seed: int, device: str) -> nn.Module:
    """Return the wrapped model; a seed gives every way the same adapters."""
    model = timm.create_model(task.about["model"], img_size=int(task.about["img_size"]), num_classes=0)
    model.load_state_dict(task.backbone)
    torch.manual_seed(seed)
    frames, classes = task.train[0].shape[1], int(task.about["classes"])
    aim.wrap_image_model(model, num_frames=frames, num_classes=classes, layers="top_half", attention=way.attention)
    aim.set_execution(model, branches=way.branches, memory=way.memory, products=way.products)
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


def train(task: Task, name: str, seed: int, *, steps: int, device: str) -> dict[str, Any]:
    """Train in one way with one seed, and test."""
    clips, (test, labels) = (tuple(x.to(device) for x in part) for part in (task.train, task.test))
    model = build(task, WAYS[name], seed=seed, device=device)
    start = time.perf_counter()
    losses = fit(model, clips, seed=seed, steps=steps)
    entry: dict[str, Any] = {"loss": statistics.fmean(losses[-FINAL:]), "seconds": time.perf_counter() - start}
    logits = answers(model, test)
    entry["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
    if name == WITH_COSINE and why_not("fp8", device) is None:
        aim.set_execution(model, products="fp8")
        cosines = F.cosine_similarity(answers(model, test).double(), logits.double())
        entry["cosine"] = {"mean": float(cosines.mean()), "least": float(cosines.min())}
    return entry | {"losses": [round(loss, 4) for loss in losses]}


def why_not(name: str, device: str) -> str | None:
    """Say why a way cannot run on a device, or None."""
    if WAYS[name].products != "fp8":
        return None
    return "float8 needs a CUDA device" if device == "cpu" else fp8_missing()


def apart(path: Path, name: str, seed: int, *, steps: int, device: str, threads: int | None) -> dict[str, Any]:
    """Train in a process of its own, on some number of threads; whatever befalls it, the other runs go on.

    Raises:
        RuntimeError: It failed.
    """
    command = [
        sys.executable,
        "-m",
        f"benchmarks.timing.{NAME}",
        "--task",
        str(path.resolve()),
        "--one",
        name,
        str(seed),
    ]
    command += ["--steps", str(steps), "--device", device]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return entry


# All runs


def summary(numbers: Sequence[float]) -> dict[str, float] | None:
    """Return mean and standard deviation, None of fewer than two numbers."""
    return {"mean": statistics.fmean(numbers), "sd": statistics.stdev(numbers)} if len(numbers) > 1 else None


def change(pairs: Iterable[tuple[float, float]]) -> dict[str, float | None] | None:
    """Return the mean difference of pairs, its standard error and their ratio, None of fewer than two pairs."""
    differences = [ours - other for ours, other in pairs]
    found = summary(differences)
    if found is None:
        return None
    error = found["sd"] / math.sqrt(len(differences))
    return {"mean": found["mean"], "se": error, "t": found["mean"] / error if error else None}


def summarise(ways: Mapping[str, dict[str, Any]]) -> None:
    """Write into each way what its runs come to, and how they differ from those of `PEER` with the same seeds."""
    ended = {
        name: {seed: run for seed, run in way["runs"].items() if "error" not in run} for name, way in ways.items()
    }  # fmt: skip
    for name, way in ways.items():
        ours, peers = ended[name], ended[PEER]
        both = [seed for seed in ours if seed in peers]
        for what in ("loss", "accuracy"):
            way[what] = summary([run[what] for run in ours.values()])
            if name != PEER:
                way[f"{what}_change"] = change((ours[seed][what], peers[seed][what]) for seed in both)
        cosines = [run["cosine"] for run in ours.values() if "cosine" in run]
        if cosines:
            means, least = ([each[key] for each in cosines] for key in ("mean", "least"))
            way["cosine"] = {"mean": statistics.fmean(means), "least": min(least)}


def targets(result: Mapping[str, Any]) -> list[Target]:
    """Hold the ways against `PEER`: see the top of the file."""
    ways, peer = result["ways"], result["ways"][PEER]
    runs = [run for way in ways.values() for run in way["runs"].values()]
    ended = sum("error" not in run for run in runs)
    found = [Target("share of runs that ended", ended / max(1, len(runs)), at_least=1)]
    if peer["accuracy"] is not None:
        found.append(Target(f"{PEER}: test accuracy", peer["accuracy"]["mean"], at_least=LEARNED))
    floors = {"loss": DIGITS, "accuracy": 1 / int(result["task"]["test_clips"])}  # what the result can tell apart
    for name, way in ways.items():
        for what, floor in floors.items():
            if peer[what] is not None and way.get(f"{what}_change") is not None:
                limit = math.sqrt(2) * max(peer[what]["sd"], floor)
                words = f"{name}: mean change of the {'final loss' if what == 'loss' else 'test accuracy'}"
                share = abs(way[f"{what}_change"]["mean"]) / limit
                found.append(Target(f"{words}, as a share of what two seeds differ by", share, at_most=1))
        if "cosine" in way:
            words = f"{name}: mean cosine of test logits with products in fp8 to those without"
            found.append(Target(words, way["cosine"]["mean"], at_least=COSINE))
    return found


def describe(name: str, seed: int, entry: Mapping[str, Any]) -> str:
    """Return a line about a run."""
    if "error" in entry:
        return f"{name:<9} seed {seed}: {entry['error']}"
    line = (
        f"{name:<9} seed {seed}: loss {entry['loss']:.4f}, accuracy {entry['accuracy']:.3f}, {entry['seconds']:.0f} s"
    )
    return line + (", cosine {mean:.5f}, least {least:.5f}".format(**entry["cosine"]) if "cosine" in entry else "")


def measure(
    run: Callable[[str, int], dict[str, Any]],
    ways: Sequence[str],
    *,
    seeds: int,
    jobs: int,
    folder: Path | None,
    about: Mapping[str, Any],
    left_out: Mapping[str, str] | None = None,
) -> int:
    """Train every way with every seed, so many at once, write the result as it grows, and return the exit status.

    Args:
        run: Trains a way with a seed, and returns its entry.
        ways: Their names, `PEER` among them.
        seeds: How many.
        jobs: How many runs go on at a time.
        folder: Of the result.
        about: Further entries of the result, ``task`` with its ``test_clips`` among them.
        left_out: Ways that cannot run, and why.
    """
    started = time.perf_counter()
    result: dict[str, Any] = {
        "benchmark": NAME,
        "question": "final loss and test accuracy of ways to compute, against what seeds change",
        **about,
        "complete": False,
        "ran_on": record(),
        "left_out": dict(left_out or {}),
        "ways": {name: {"words": WAYS[name].words, "runs": {}} for name in ways},
    }

    def keep(**more: Any) -> list[Target]:
        summarise(result["ways"])
        held = targets(result)
        result.update(targets=[each.entry() for each in held], **more)
        write(NAME, result, folder)
        return held

    keep()
    with ThreadPoolExecutor(jobs) as pool:
        # All ways of a seed before the next seed: what is cut short still has pairs.
        futures: dict[Future[dict[str, Any]], tuple[str, int]] = {
            pool.submit(run, name, seed): (name, seed) for seed in range(seeds) for name in ways
        }
        try:
            for future in as_completed(futures):
                name, seed = futures[future]
                try:
                    entry = future.result()
                except Exception as error:  # a run that fails is a result
                    entry = {"error": reason(error)}
                result["ways"][name]["runs"][str(seed)] = entry
                keep()
                print(f"[{time.perf_counter() - started:4.0f} s] {describe(name, seed, entry)}", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # who interrupts does not wait for the rest
    for way in result["ways"].values():
        way["runs"] = dict(sorted(way["runs"].items(), key=lambda item: int(item[0])))
    held = keep(complete=not result["left_out"])
    met = all(target.met for target in held)
    keep(met=met)
    for name, why in result["left_out"].items():
        print(f"{name} was left out: {why}")
    print("\n".join(("targets:", *map(str, held))))
    return 0 if met else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Write the task, or train and write the result; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FILE", help="write the task")
    what.add_argument("--task", type=Path, metavar="FILE", help="train on it")
    add = parser.add_argument
    add("--clips", type=int, default=1200, help="with --prepare: training clips (%(default)s)")
    add("--test-clips", type=int, default=300, help="with --prepare: test clips (%(default)s)")
    add("--ways", nargs="+", choices=tuple(WAYS), default=DEFAULT, help=f"{PEER} among them")
    add("--seeds", type=int, default=6, help="runs of each way (%(default)s)")
    add("--steps", type=int, default=600, help="of each run (%(default)s)")
    add(
        "--jobs", type=int, default=8, help="runs at once, as small models leave a GPU waiting for Python (%(default)s)"
    )
    add("--out", type=Path, help="folder of the result")
    add("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--one", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)  # what `apart` calls
    arguments = parser.parse_args(argv)
    path, ways, seeds, steps, device = (
        getattr(arguments, name) for name in ("task", "ways", "seeds", "steps", "device")
    )  # fmt: skip
    try:
        if arguments.prepare:
            prepare(arguments.prepare, clips=arguments.clips, test_clips=arguments.test_clips)
            print(f"wrote {arguments.prepare}: {arguments.prepare.stat().st_size / 2**20:.0f} MiB")
            return 0
        task = load(path)
    except TaskError as error:
        parser.error(str(error))
    if arguments.one:
        name, seed = arguments.one
        print(json.dumps(train(task, name, int(seed), steps=steps, device=device)))
        return 0
    if PEER not in ways:
        parser.error(f"--ways: the others are held against {PEER}, which is missing")
    if seeds < 2:
        parser.error(f"--seeds: the noise is that between seeds, so at least 2 are needed, got {seeds}")
    if min(steps, arguments.jobs) < 1:
        parser.error(f"--steps and --jobs must be at least 1, got {steps} and {arguments.jobs}")
    left_out = {name: why for name in ways if (why := why_not(name, device)) is not None}
    about = {
        "command": f"python -m benchmarks.timing.{NAME} --task FILE --ways {' '.join(ways)} "
        f"--seeds {seeds} --steps {steps}",
        "task": {**task.about, "train_clips": len(task.train[1]), "test_clips": len(task.test[1])},
        "settings": {"device": device, "steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE},
    }
    run = partial(apart, path, steps=steps, device=device, threads=1 if arguments.jobs > 1 else None)
    chosen = [name for name in ways if name not in left_out]
    return measure(
        run, chosen, seeds=seeds, jobs=arguments.jobs, folder=arguments.out, about=about, left_out=left_out
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
