"""The model of a command: an image model by its name, or a trained one by its folder or repository."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aim_adapters.cli.choices import choice, require_views

if TYPE_CHECKING:
    from torch import nn

# What a run's folder remembers of an image model that cannot be built from its published weights.
_RECORD = "base_model.json"
DEFAULT_MODEL = "timm:vit_base_patch16_clip_quickgelu_224.openai"

Source = Annotated[str, typer.Argument(help="Folder of a run, or user/name on the Hugging Face Hub.")]
Views = Annotated[str, typer.Option(help="Clips in time x crops in space.", callback=require_views)]
Device = Annotated[str | None, typer.Option(help="Such as cuda:1; by default a GPU if there is one.")]
Precision = Annotated[
    str | None,
    choice("fp32, bf16 or fp16; by default fp32.", "fp32", "bf16", "fp16"),
]
Memory = Annotated[str | None, choice("What a step keeps: fast, balanced or low.", "fast", "balanced", "low")]
BaseModel = Annotated[
    str | None, typer.Option(help="The image model, if not the one that the run names: a name, or a directory.")
]


def build_image_model(name: str, *, image_size: Sequence[int] | None, pretrained: bool) -> nn.Module:
    """Build the image model that ``--model`` names.

    Args:
        name: Library and name, or library and directory.
        image_size: Height and width of frames, or None.
        pretrained: False: random weights, the same each time.

    Raises:
        ConfigError: There is no such model.
        CheckpointError: Its weights cannot be fetched or read.
    """
    import torch

    from aim_adapters.backbones import build_classifier
    from aim_adapters.errors import CheckpointError

    if not pretrained:
        warnings.filterwarnings("ignore", "the image model looks untrained")  # as it was asked for
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            size = None if image_size is None else (image_size[0], image_size[1])
            return build_classifier(name, image_size=size, pretrained=pretrained)
    except CheckpointError as error:
        if Path(name.partition(":")[2]).expanduser().is_dir():
            raise
        raise CheckpointError(
            f"{error}. Where the weights cannot be fetched, give a directory with the model, --model "
            f"{name.partition(':')[0]}:path/to/model; --no-pretrained tries a command out with random weights"
        ) from error


def record_model(
    out: Path,
    name: str | None,
    *,
    image_size: Sequence[int] | None,
    pretrained: bool,
    baseline: Mapping[str, Any] | None,
) -> None:
    """Note in a run's folder how to build its model, if the adapters' own config cannot tell.

    Args:
        out: Folder of the run.
        name: The image model, library and name, or library and directory; None: the default.
        image_size: Height and width of frames, or None.
        pretrained: Whether it has published weights.
        baseline: Name, recipe, frames and labels of the baseline, or None.
    """
    library, _, rest = (name or "").partition(":")
    is_folder = Path(rest).expanduser().is_dir() if rest else False
    if pretrained and not is_folder and baseline is None:
        return
    if is_folder:
        name = f"{library}:{Path(rest).expanduser().resolve()}"
    facts = {"model": name, "image_size": image_size, "pretrained": pretrained, "baseline": baseline}
    (out / _RECORD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_trained(source: str, base_model: str | None) -> nn.Module:
    """Load the video model of a run or a repository.

    Args:
        source: Folder or ``user/name``.
        base_model: The image model, if not the one that it names.

    Raises:
        CheckpointError: It cannot be loaded.
        ConfigError: ``base_model`` is no name and no directory.
    """
    from aim_adapters.checkpoint import load_adapters, load_video_model
    from aim_adapters.errors import CheckpointError

    folder = Path(source).expanduser()
    ended = any((folder / name).is_file() for name in ("adapter_config.json", "trained.safetensors"))
    if (folder / "checkpoints").is_dir() and not ended:
        best = f", or take {folder / 'best'}" if (folder / "best").is_dir() else ""
        raise CheckpointError(f"the run in {folder} has not ended: train it to its end{best}")
    place = folder.resolve()
    run = place.parent if place.name == "best" else place.parents[1] if place.parent.name == "checkpoints" else place
    record = run / _RECORD
    if base_model is not None or not record.is_file():
        return load_video_model(folder if folder.is_dir() else source, base_model=base_model)
    about, baseline = _read_record(record)
    if baseline is not None:
        from aim_adapters.cli.baselines import build_named_baseline
        from aim_adapters.training import load_baseline

        model = build_named_baseline(**about, **baseline)
        load_baseline(model, folder)
    else:
        name = about.pop("model") or DEFAULT_MODEL
        model = build_image_model(name, **about)
        load_adapters(model, folder)
    return model.eval()


def _read_record(file: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what `record_model` has written: arguments of `build_image_model`, and of a baseline besides.

    Raises:
        CheckpointError: It holds something else.
    """
    from aim_adapters.errors import CheckpointError
    from aim_adapters.storage import read_json

    facts = read_json(file)
    model, size, baseline = (facts.get(name) for name in ("model", "image_size", "baseline"))
    known = model is None or isinstance(model, str)
    known &= size is None or (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size))
    known &= baseline is None or (
        isinstance(baseline, dict) and set(baseline) == {"name", "recipe", "frames", "labels"}
    )
    if not known:
        raise CheckpointError(f"{file} does not say how the model was built; name the image model by --base-model")
    return {"model": model, "image_size": size, "pretrained": facts.get("pretrained") is not False}, baseline


def default_device(device: str | None) -> str:
    """Return the device to compute on: of several processes, each has its own.

    Args:
        device: The one that was asked for.

    Raises:
        ConfigError: It is none, or is not there.
    """
    import torch

    from aim_adapters.errors import ConfigError

    if device is not None:
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"--device {device} cannot be used: {reason}; leave it out, or take cpu") from error
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
