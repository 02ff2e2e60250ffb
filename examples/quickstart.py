"""Teaches a pre-trained image transformer what happens in time, on real video files, in minutes on a CPU.

The classes come in pairs (zoom in / out, fade in / out, focus in / out). Played backwards, a clip of one class is a
clip of its twin, so the frames alone do not tell: an image model that looks at them one at a time can at best see what
moves, and has to guess which way. AIM's adapters let the same frozen model also attend over time, and it sees both.

    python examples/quickstart.py            # or: make quickstart
    python examples/quickstart.py --help     # your own photographs, more steps, larger frames, ...
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import aim_adapters as aim
from motion_videos import CLASSES, decode, make_videos
from photographs import find_photographs
from picture import Answer, Strip, draw
from pretrained import load_dinov2_small

VIDEO_SIZE, VIDEO_FRAMES = 112, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained
LADDER = {"Frozen": (), "AIM": ("temporal", "spatial", "joint")}  # what is added to the image model
FINAL = "AIM"


@dataclass(frozen=True)
class Clips:
    """Holds decoded videos.

    Attributes:
        paths: video files.
        frames: `[B, T, 3, H, W]`, uint8.
        labels: `[B]`, indices into `CLASSES`.
    """

    paths: list[Path]
    frames: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Result:
    """Says how one model did.

    Attributes:
        trainable: number of trained parameters.
        seconds: time of training.
        losses: of each step.
        logits: `[B, 6]` on the test clips, float32.
        accuracy: right answers among six.
        motion: how often it sees what happens: zoom, fade or focus.
        direction: where it does, how often it also sees which way; 0.5 is a coin.
    """

    trainable: int
    seconds: float
    losses: list[float]
    logits: Tensor
    accuracy: float
    motion: float
    direction: float


def train(
    model: nn.Module, clips: Clips, *, steps: int, batch: int, learning_rate: float, name: str
) -> tuple[list[float], float]:
    """Train what the wrapped model declares as trainable; returns each step's loss, and the seconds it took."""
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    passes = math.ceil(steps * batch / len(clips.labels))
    order = torch.cat([torch.randperm(len(clips.labels)) for _ in range(passes)])

    losses: list[float] = []
    start = time.perf_counter()
    model.train()
    for step in (bar := tqdm(range(steps), desc=name, unit="step")):
        chosen = order[step * batch : (step + 1) * batch].to(clips.labels.device)
        video = normalize(clips.frames[chosen])  # [B, T, 3, H, W]
        if random.random() < 0.5:
            video = video.flip(-1)
        with autocast(video.device):
            loss = F.cross_entropy(model(video), clips.labels[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.2f}")
    return losses, time.perf_counter() - start


@torch.inference_mode()
def predict(model: nn.Module, clips: Clips, *, batch: int = 32) -> Tensor:
    """Return `[B, 6]` logits, float32, on the CPU."""
    model.eval()
    logits = []
    for frames in clips.frames.split(batch):
        with autocast(frames.device):
            logits.append(model(normalize(frames)).float().cpu())
    return torch.cat(logits)


def normalize(frames: Tensor) -> Tensor:
    """Turn uint8 frames `[B, T, 3, H, W]` into what the image model expects."""
    mean, std = (torch.tensor(value, device=frames.device).view(3, 1, 1) for value in (MEAN, STD))
    return (frames / 255 - mean) / std


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 where that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or cpu_likes_bfloat16())


@functools.cache
def cpu_likes_bfloat16() -> bool:
    """Time a matrix product in both precisions; a CPU without bfloat16 instructions emulates them slowly."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            _ = x @ weight
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def use_plain_attention(model: nn.Module) -> nn.Module:
    """Let timm's blocks attend without the fused kernel, whose CPU gradients are slow for so few tokens."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def load_clips(videos: Sequence[tuple[Path, int]], *, frames: int, size: int, device: torch.device, name: str) -> Clips:
    """Decode videos and keep them in memory."""
    paths = [path for path, _ in videos]
    clips = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(functools.partial(decode, num_frames=frames), paths)
        # Resized here and not by the pool: each thread that computes with PyTorch would start threads of its own, and
        # they would be in the way of the training.
        for clip in tqdm(decoded, total=len(paths), desc=name, unit="clip"):  # [T, 3, H, W]
            clips.append(F.interpolate(clip, size=(size, size), mode="bilinear", antialias=True))
    labels = torch.tensor([label for _, label in videos])
    return Clips(paths, torch.stack(clips).to(device), labels.to(device))


def assess(model: nn.Module, clips: Clips, *, losses: list[float], seconds: float) -> Result:
    """Test a trained model."""
    logits = predict(model, clips)
    answers, labels = logits.argmax(-1), clips.labels.cpu()
    motion, right = answers // 2 == labels // 2, answers == labels
    return Result(
        trainable=aim.count_parameters(model).trainable,
        seconds=seconds,
        losses=losses,
        logits=logits,
        accuracy=right.float().mean().item(),
        motion=motion.float().mean().item(),
        direction=right[motion].float().mean().item(),
    )


def print_table(results: dict[str, Result]) -> None:
    """Print what each rung of the ladder reaches on the test clips."""
    print(f"\n{'':30}{'trained':>10}{'what moves':>13}{'which way':>12}{'both':>9}{'seconds':>10}")
    print(f"{'Guessing':30}{'':10}{1 / 3:13.1%}{1 / 2:12.1%}{1 / 6:9.1%}")
    for name, r in results.items():
        print(f"{name:30}{r.trainable:10,}{r.motion:13.1%}{r.direction:12.1%}{r.accuracy:9.1%}{r.seconds:10.0f}")


def draw_picture(path: Path, results: dict[str, Result], test: Clips, *, frames: int, share: float) -> None:
    """Show the first test clip of each class with the answers of the first and the last model."""
    strips = []
    for label, truth in enumerate(CLASSES):
        index = test.labels.tolist().index(label)
        answers = {}
        for name in ("Frozen", FINAL):
            confidence, answer = results[name].logits[index].softmax(-1).max(-1)
            answers[name] = Answer(CLASSES[answer], confidence.item(), right=answer.item() == label)
        strips.append(Strip(decode(test.paths[index], frames), truth, answers))
    draw(
        path,
        strips=strips,
        losses={name: result.losses for name, result in results.items()},
        accuracies={name: result.accuracy for name, result in results.items()},
        chance=1 / len(CLASSES),
        subtitle="Played backwards, a clip of one class is a clip of its twin: the frames alone do not tell which. "
        f"AIM trains {share:.1%} of the parameters.",
    )


def prepare(args: argparse.Namespace, photographs: list[Path], *, device: torch.device) -> tuple[Clips, Clips]:
    """Make, decode and keep the training and the test videos; no photograph is in both."""
    random.Random(args.seed).shuffle(photographs)
    held_out = max(len(photographs) // 4, 1)
    parts = {"train": (photographs[held_out:], args.clips), "test": (photographs[:held_out], args.test_clips)}
    clips = []
    for name, (part, count) in parts.items():
        folder = args.cache / "videos" / f"{name}-{count}-seed{args.seed}"
        print(f"{count} {name} videos (H.264) of {len(part)} photographs: {folder}")
        videos = make_videos(part, folder, clips=count, size=VIDEO_SIZE, frames=VIDEO_FRAMES, seed=args.seed)
        clips.append(load_clips(videos, frames=args.frames, size=args.size, device=device, name=f"Decoding {name}"))
    return clips[0], clips[1]


def save_and_reload(model: nn.Module, fresh: nn.Module, folder: Path, *, test_clips: Clips, logits: Tensor) -> None:
    """Save what was trained, put it onto a fresh copy of the image model, and compare the predictions."""
    aim.save_adapters(model, folder)
    saved = sum(path.stat().st_size for path in folder.iterdir())
    whole = sum(value.numel() * value.element_size() for value in fresh.state_dict().values())
    print(f"Saved {folder}: {saved / 1e6:.1f} MB; the backbone has {whole / 1e6:.1f} MB.")
    aim.load_adapters(fresh, folder)
    if not torch.equal(predict(fresh, test_clips), logits):
        raise RuntimeError("The adapters, loaded into a fresh backbone, predict something else. Please report this.")
    print(f"Loaded into a fresh backbone: the same predictions on {len(logits)} test clips, to the bit.")


def main(
    argv: Sequence[str] | None = None,
    *,
    photographs: list[Path] | None = None,
    load_backbone: Callable[[int], nn.Module] | None = None,
) -> dict[str, Result]:
    """Run the quickstart.

    Args:
        argv: command line, by default the process's own.
        photographs: picture files instead of those `find_photographs` finds.
        load_backbone: loads an image model for a size in pixels, by default DINOv2 ViT-S/14.

    Returns:
        What each rung of the ladder reached.
    """
    args = parse(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_clips, test_clips = prepare(
        args, list(photographs or find_photographs(args.cache, photos=args.photos)), device=device
    )

    def load() -> nn.Module:
        model = load_backbone(args.size) if load_backbone else load_dinov2_small(args.size, cache=args.cache)
        return use_plain_attention(model) if device.type == "cpu" else model.to(device)

    backbone = load()
    results: dict[str, Result] = {}
    for name, components in LADDER.items():
        torch.manual_seed(args.seed)
        random.seed(args.seed)
        model = aim.wrap_image_model(
            backbone,
            num_frames=args.frames,
            num_classes=len(CLASSES),
            layers="top_half",
            components=components,
            attention="eager" if device.type == "cpu" else "auto",
        )
        print(f"\n{name}: ", end="")
        aim.print_trainable_parameters(model)
        losses, seconds = train(
            model, train_clips, steps=args.steps, batch=args.batch, learning_rate=args.learning_rate, name=name
        )
        results[name] = assess(model, test_clips, losses=losses, seconds=seconds)
        if name != FINAL:
            aim.unwrap_image_model(model)  # exactly the image model it was

    print_table(results)
    save_and_reload(model, load(), args.out / "adapters", test_clips=test_clips, logits=results[FINAL].logits)
    share = aim.count_parameters(model).trainable / aim.count_parameters(model).total
    draw_picture(args.out / "quickstart.png", results, test_clips, frames=args.frames, share=share)
    print(f"Picture: {args.out / 'quickstart.png'}")
    return results


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--steps", type=int, default=900, help="training steps of each model (%(default)s)")
    add("--batch", type=int, default=8, help="clips in a step (%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="peak of the one-cycle schedule (%(default)s)")
    add("--clips", type=int, default=2400, help="training videos (%(default)s)")
    add("--test-clips", type=int, default=300, help="test videos (%(default)s)")
    add("--size", type=int, default=42, help="pixels of a frame as the model sees it, a multiple of 14 (%(default)s)")
    add("--frames", type=int, default=8, help="frames of a clip as the model sees it, at most 16 (%(default)s)")
    add("--photos", type=Path, help="folder of photographs of your own")
    add("--cache", type=Path, default=Path.home() / ".cache" / "aim-adapters", help="downloads, videos (%(default)s)")
    add("--out", type=Path, default=Path("out") / "quickstart", help="adapters and picture (%(default)s)")
    add("--seed", type=int, default=0, help="of videos and training (%(default)s)")
    add("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
