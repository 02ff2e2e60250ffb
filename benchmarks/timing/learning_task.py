"""The task that is learned, as a file: clips of the quickstart and the image model that it loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aim_adapters.video import ClipReader, ClipTransform
from benchmarks.harness import ROOT, command

NAME = "learning"
PARTS, BACKBONE = ("train", "test"), "backbone."


class TaskError(ValueError):
    """Tells that a file holds no task."""


class Task(NamedTuple):
    """What is learned: frames ``[B, T, 3, H, W]``, uint8, and labels ``[B]`` of both parts, and the image model."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    backbone: dict[str, Tensor]
    about: dict[str, str]


def prepare(path: Path, *, clips: int, test_clips: int) -> None:
    """Write the task with so many of the quickstart's clips, of all classes alike; its videos and weights are used.

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
    folders = quickstart.prepare(settings, photographs)
    model = quickstart.load_dinov2_small(settings.size, cache=settings.cache)
    transform = ClipTransform((settings.size, settings.size))
    clips_of = []
    for folder, (count, _) in zip(folders, wanted.values(), strict=True):
        data = folder.with_reader(ClipReader(settings.frames, transform=transform))
        clips, labels = zip(*(data[index * len(data) // count] for index in range(count)), strict=True)
        clips_of.append((torch.stack(clips).contiguous(), torch.tensor(labels)))
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
