"""A tiny image model, and a folder of tiny videos, for runs of a second or two."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.video import VideoFolder
from tests.tiny import base
from tests.video.videos import write

CLASSES = ("left", "right", "up")
FRAMES = 4


@functools.cache
def videos() -> Path:
    """Write the videos once in a process: eight of each class to train on, three to test on; one is broken."""
    root = Path(tempfile.mkdtemp(prefix="aim-videos-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for part, count in (("train", 8), ("test", 3)):
        for place, name in enumerate(CLASSES):
            for index in range(count):
                write(root / part / name / f"{index}.mp4", count=10, height=24, width=32, seed=10 * place + index)
    (root / "train" / "up" / "7.mp4").write_bytes(b"broken")
    return root


def folder(part: str, root: Path | None = None, **settings: Any) -> VideoFolder:
    return VideoFolder((root or videos()) / part, num_frames=FRAMES, labels=CLASSES, **settings)


def model(**settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image_model = base("vit_tiny_patch16_224.test")
        return aim.wrap_image_model(image_model, FRAMES, **{"labels": CLASSES, **settings})


def fit(net: nn.Module, out: Path, root: Path | None = None, **settings: Any) -> aim.FitResult:
    """Train for two epochs of four steps."""
    settings = {"epochs": 2, "batch_size": 6, "workers": 0, "progress": False, "max_skipped": 0.1, **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "up/7.mp4")
        train = settings.pop("train", None) or folder("train", root)
        return aim.fit(net, train, settings.pop("test", None), out=out, **settings)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in aim.trainable_parameters(net)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
