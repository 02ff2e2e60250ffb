"""Teaches a pre-trained image transformer what happens in time, on real video files, in minutes on a CPU.

The classes come in pairs (zoom in / out, fade in / out, focus in / out). Played backwards, a clip of one class is a
clip of its twin, so the frames alone do not tell: an image model that looks at them one at a time can at best see what
moves, and has to guess which way. AIM's adapters let the same frozen model also attend over time, and it sees both.

    python examples/quickstart.py            # or: make quickstart
    python examples/quickstart.py --help     # your own photographs, more epochs, larger frames, ...
"""

from __future__ import annotations

import argparse
import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.video import VideoFolder, open_video, uniform_indices
from motion_videos import CLASSES, make_videos
from photographs import find_photographs
from picture import Answer, Strip, draw
from pretrained import load_dinov2_small

LADDER = {"Frozen": (), "AIM": ("temporal", "spatial", "joint")}  # what is added to the image model
FINAL = "AIM"


@dataclass(frozen=True)
class Result:
    """Says how one model did.

    Attributes:
        trainable: number of trained parameters.
        training: what `aim.fit` returned.
        test: its answers on the test clips.
        motion: how often it sees what happens: zoom, fade or focus.
        direction: where it does, how often it also sees which way; 0.5 is a coin.
    """

    trainable: int
    training: aim.FitResult
    test: aim.Evaluation
    motion: float
    direction: float


def prepare(args: argparse.Namespace, photographs: list[Path]) -> tuple[VideoFolder, VideoFolder]:
    """Make the training and the test videos; no photograph is in both."""
    random.Random(args.seed).shuffle(photographs)
    held_out = max(len(photographs) // 4, 1)
    parts = {"train": (photographs[held_out:], args.clips), "test": (photographs[:held_out], args.test_clips)}
    folders = []
    for name, (part, count) in parts.items():
        folder = args.cache / "videos" / f"{name}-{count}-seed{args.seed}"
        print(f"{count} {name} videos (H.264) of {len(part)} photographs: {folder}")
        make_videos(part, folder, clips=count, seed=args.seed)
        folders.append(VideoFolder(folder, num_frames=args.frames, labels=CLASSES))
    return folders[0], folders[1]


def assess(model: nn.Module, test: VideoFolder, training: aim.FitResult) -> Result:
    """Test a trained model."""
    found = aim.evaluate(model, test, views="1x1", progress=False)
    motion, right = found.answers // 2 == found.targets // 2, found.answers == found.targets
    return Result(
        trainable=aim.count_parameters(model).trainable,
        training=training,
        test=found,
        motion=motion.float().mean().item(),
        direction=right[motion].float().mean().item(),
    )


def print_table(results: dict[str, Result]) -> None:
    """Print what each rung of the ladder reaches on the test clips."""
    print(f"\n{'':30}{'trained':>10}{'what moves':>13}{'which way':>12}{'both':>9}{'seconds':>10}")
    print(f"{'Guessing':30}{'':10}{1 / 3:13.1%}{1 / 2:12.1%}{1 / 6:9.1%}")
    for name, r in results.items():
        scores = f"{r.motion:13.1%}{r.direction:12.1%}{r.test.top1:9.1%}"
        print(f"{name:30}{r.trainable:10,}{scores}{r.training.seconds:10.0f}")


def draw_picture(path: Path, results: dict[str, Result], test: VideoFolder, *, share: float) -> None:
    """Show the first test clip of each class with the answers of the first and the last model."""
    strips = []
    for label, truth in enumerate(CLASSES):
        index = results[FINAL].test.targets.tolist().index(label)
        answers = {}
        for name in ("Frozen", FINAL):
            confidence, answer = results[name].test.probabilities[index].max(0)
            answers[name] = Answer(CLASSES[answer], confidence.item(), right=answer.item() == label)
        with open_video(test.samples[index].source) as video:
            frames = video.get_frames(uniform_indices(len(video), test.num_frames)[0])
        strips.append(Strip(frames, truth, answers))
    draw(
        path,
        strips=strips,
        losses={name: result.training.losses for name, result in results.items()},
        accuracies={name: result.test.top1 for name, result in results.items()},
        chance=1 / len(CLASSES),
        subtitle="Played backwards, a clip of one class is a clip of its twin: the frames alone do not tell which. "
        f"AIM trains {share:.1%} of the parameters.",
    )


def reload(folder: Path, fresh: nn.Module, test: VideoFolder, expected: aim.Evaluation) -> None:
    """Put what was saved onto a fresh copy of the image model, and compare the answers."""
    saved = (folder / "adapter_model.safetensors").stat().st_size
    whole = sum(value.numel() * value.element_size() for value in fresh.state_dict().values())
    print(f"Saved {folder}: {saved / 1e6:.1f} MB; the backbone has {whole / 1e6:.1f} MB.")
    aim.load_adapters(fresh, folder)
    found = aim.evaluate(fresh, test, views="1x1", progress=False)
    if not torch.equal(found.probabilities, expected.probabilities):
        raise RuntimeError("The adapters, loaded into a fresh backbone, predict something else. Please report this.")
    print(f"Loaded into a fresh backbone: the same predictions on {found.count} test clips, to the bit.")


@functools.cache
def fast_precision(device: str) -> str:
    """Time a matrix product on a CPU: one without bfloat16 instructions emulates them slowly."""
    if device != "cpu":
        return "auto"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            _ = x @ weight
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return "bf16" if seconds[torch.bfloat16] < seconds[torch.float32] else "fp32"


def use_plain_attention(model: nn.Module) -> nn.Module:
    """Let timm's blocks attend without the fused kernel, whose CPU gradients are slow for so few tokens."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = prepare(args, list(photographs or find_photographs(args.cache, photos=args.photos)))

    def load() -> nn.Module:
        model = load_backbone(args.size) if load_backbone else load_dinov2_small(args.size, cache=args.cache)
        return use_plain_attention(model) if device == "cpu" else model.to(device)

    backbone = load()
    results: dict[str, Result] = {}
    for name, components in LADDER.items():
        torch.manual_seed(args.seed)
        model = aim.wrap_image_model(
            backbone,
            num_frames=args.frames,
            labels=CLASSES,
            layers="top_half",
            components=components,
            attention="eager" if device == "cpu" else "auto",
        )
        print(f"\n{name}: ", end="")
        aim.print_trainable_parameters(model)
        training = aim.fit(
            model,
            train,
            recipe="small-data",
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            precision=fast_precision(device),
            seed=args.seed,
            out=args.out / name.lower(),
            resume=args.resume,
        )
        results[name] = assess(model, test, training)
        if name != FINAL:
            aim.unwrap_image_model(model)  # exactly the image model it was

    print_table(results)
    reload(args.out / FINAL.lower(), load(), test, results[FINAL].test)
    share = aim.count_parameters(model).trainable / aim.count_parameters(model).total
    draw_picture(args.out / "quickstart.png", results, test, share=share)
    print(f"Picture: {args.out / 'quickstart.png'}")
    return results


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--epochs", type=int, default=3, help="epochs of each model (%(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="highest learning rate (%(default)s)")
    add("--clips", type=int, default=2400, help="training videos (%(default)s)")
    add("--test-clips", type=int, default=300, help="test videos (%(default)s)")
    add("--size", type=int, default=42, help="pixels of a frame as the model sees it, a multiple of 14 (%(default)s)")
    add("--frames", type=int, default=8, help="frames of a clip as the model sees it (%(default)s)")
    add("--photos", type=Path, help="folder of photographs of your own")
    add("--cache", type=Path, default=Path.home() / ".cache" / "aim-adapters", help="downloads, videos (%(default)s)")
    add("--out", type=Path, default=Path("out") / "quickstart", help="adapters and picture (%(default)s)")
    add("--seed", type=int, default=0, help="of videos and training (%(default)s)")
    add("--resume", default="auto", help="'auto' goes on with an interrupted run in --out (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
