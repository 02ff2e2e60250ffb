"""What a checkpoint holds, told without the base model and without running anything in it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.backbones import BaseRequest, build_base, build_failures, read_anatomy
from aim_adapters.checkpoint.agreement import require_reasonable, require_same_shapes
from aim_adapters.checkpoint.format import OpenCheckpoint, open_checkpoint
from aim_adapters.checkpoint.state_dict import compare
from aim_adapters.checkpoint.video_model import name_in, revision_in
from aim_adapters.clip_spec import require_label_count
from aim_adapters.core import build_adapter
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import CONFIG_NAME, WEIGHTS_NAME, HubOptions, locate, quotes_token
from aim_adapters.table import Table, fact_lines, in_bytes
from aim_adapters.wrapping import DEFAULT_NAME, make_record

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


class TensorFacts(NamedTuple):
    """One tensor of a checkpoint, or equal ones of several blocks."""

    tensor: str
    shape: str
    size: str


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds: ``print`` shows it, `to_dict` returns it as JSON-ready values.

    Args:
        source: Where it is.
        kind: What it is.
        files: Sizes of its files in bytes, by name.
        settings: Settings of the adapter, as `AIMConfig` has them.
        base: Name, library, revision and fingerprint of the base model, as far as they are known.
        clip: Frames, stride, size, mean, std and labels, as far as they are known.
        tensors: Shape, dtype and bytes of each trained tensor by key.
        safety: What was looked for, and what was found.
        loads: Whether its tensors are exactly those that its settings and its base model ask for; None: not known.
        loads_because: Why.
        problems: What is wrong with it.
    """

    source: str
    kind: str
    files: dict[str, int]
    settings: dict[str, Any]
    base: dict[str, Any]
    clip: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], str, int]]
    safety: tuple[str, ...]
    loads: bool | None
    loads_because: str
    problems: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of values in its trained tensors."""
        return sum(math.prod(shape) for shape, _, _ in self.tensors.values())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        rows = [
            {"name": key, "shape": list(shape), "dtype": dtype, "bytes": size}
            for key, (shape, dtype, size) in self.tensors.items()
        ]
        lists = {name: list(facts[name]) for name in ("safety", "problems")}
        return {**facts, **lists, "parameters": self.parameters, "tensors": rows}

    def to_text(self, columns: int) -> str:
        """Return all of it as text.

        Args:
            columns: Width of the screen.
        """
        labels = self.clip.get("labels")
        dtypes = sorted({dtype for _, dtype, _ in self.tensors.values()})
        shown = ", ".join((labels or [])[:5]) + ", …" * (len(labels or []) > 5)
        loads = {True: "yes", False: "no", None: "not checked"}[self.loads]
        facts = {
            "checkpoint": self.kind,
            "source": self.source,
            "files": ", ".join(f"{name} ({in_bytes(size)})" for name, size in self.files.items()),
            "parameters": f"{self.parameters:,} in {len(self.tensors)} tensors of {', '.join(dtypes)}",
            "base model": self.base,
            "settings": self.settings,
            "clips": {name: value for name, value in self.clip.items() if name != "labels"},
            "labels": f"{len(labels)}: {shown}" if labels else "none: classes are known by their index alone",
            "loads strictly": f"{loads}: {self.loads_because}",
            "safety": "; ".join(self.safety),
            **({"problems": "; ".join(self.problems)} if self.problems else {}),
        }
        return f"{fact_lines(facts, columns)}\n\n{Table(_grouped(self.tensors)).to_text(columns)}"

    def __str__(self) -> str:
        """Return all of it as text of 120 columns."""
        return self.to_text(120)


def inspect_checkpoint(source: str | os.PathLike[str], *, token: str | bool | None = None) -> Inspection:
    """Read what a checkpoint of adapters holds.

    Only its own files are read, or fetched from the Hub. The base model that it names is built without weights, to
    compare shapes; of the Hub that takes at most its config.

    Args:
        source: A directory, the path of an ``adapter_model.safetensors``, or the id of a repository on the Hub.
        token: Access token for the Hub; by default the one this machine is logged in with.

    Raises:
        TypeError: ``source`` is not a path.
        CheckpointError: There is no such checkpoint, or it is damaged or of another library.
    """
    directory = locate(source, HubOptions(token=token))
    with open_checkpoint(directory) as checkpoint:
        config, tensors, broken, untrained = checkpoint.config, {}, [], []
        for key in checkpoint.file.shapes:
            tensor = checkpoint.file.read(key)
            tensors[key] = describe_tensor(tensor)
            if not tensor.isfinite().all():
                broken.append(key)
            if ".up_proj." in key:
                untrained.append(not tensor.any())
        checkpoint.file.require_unchanged()
        loads, because = _fits(checkpoint)
        settings = checkpoint.settings().to_dict()
    safety = [f"{WEIGHTS_NAME} is safetensors, which holds no code", describe_finite(broken)]
    safety += [f"{name} may be a pickle, and is never read" for name in _pickles(directory)]
    problems = [f"it holds NaN or infinities in {_some(broken)}"] * bool(broken)
    problems += [f"it does not load: {because}"] * (loads is False)
    problems += ["every up-projection is zero: it was never trained"] * (bool(untrained) and all(untrained))
    return Inspection(
        source=str(source),
        kind=f"adapters, written by aim-adapters {config.get('aim_version', 'of an unknown version')}, format "
        f"{config['format_version']}",
        files={name: (directory / name).stat().st_size for name in _files(directory)},
        settings=settings,
        base={
            "name": config.get("base_model_name_or_path"),
            "library": config.get("base_model_library"),
            "revision": config.get("base_model_revision"),
            "fingerprint": config.get("base_fingerprint"),
        },
        clip=dict(config.get("clip", {})),
        tensors=tensors,
        safety=tuple(safety),
        loads=loads,
        loads_because=because,
        problems=tuple(problems),
    )


def describe_tensor(tensor: Tensor) -> tuple[tuple[int, ...], str, int]:
    """Return shape, name of the dtype, and bytes of a tensor.

    Args:
        tensor: The tensor.
    """
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.numel() * tensor.element_size()


def describe_finite(broken: Iterable[str]) -> str:
    """Return whether values are finite, in words.

    Args:
        broken: Keys of tensors with NaN or infinities.
    """
    keys = list(broken)
    return f"NaN or infinities in {_some(keys)}" if keys else "all values are finite"


class _Fits(CheckpointError):
    """Ends the building of a base model as soon as it was compared."""


def _fits(checkpoint: OpenCheckpoint) -> tuple[bool | None, str]:
    """Return whether a checkpoint's tensors are those of its settings in the base model that it names, and why."""
    config = checkpoint.config
    refused: list[CheckpointError] = []

    def check(draft: nn.Module) -> None:
        try:
            _require_fits(draft, read_anatomy(draft), checkpoint)
        except CheckpointError as error:
            refused.append(error)
            raise
        raise _Fits

    name = None
    try:
        name = name_in(config, checkpoint.directory, required=True)
        arguments, revision = config.get("base_model_arguments", {}), revision_in(config)
        request = BaseRequest(name, None, revision=revision, arguments=arguments, pretrained=False, check=check)
        check(build_base(config.get("base_model_library", ""), request))  # if it could not be built without memory
    except _Fits:
        return True, f"its tensors are those that its settings ask for in {name}, whose weights were not looked at"
    except build_failures() as error:
        if refused:
            return False, str(refused[0])
        reason = type(error).__name__ if quotes_token(error) else str(error)
        if name is None:
            return None, f"{reason}, as it names no model that others can build"
        return None, f"the base model {name!r:.80} cannot be built here: {reason}"
    raise AssertionError("unreachable")  # check always raises


def _require_fits(model: nn.Module, anatomy: BackboneAnatomy, checkpoint: OpenCheckpoint) -> None:
    root = model.get_submodule(anatomy.root)
    require_same_shapes(root, anatomy, checkpoint.config)
    record = make_record(model, anatomy)
    try:
        adapter = build_adapter(
            root, checkpoint.settings(), record=record, name=DEFAULT_NAME, owner=model, on_meta=True
        )
        require_label_count(checkpoint.config.get("clip", {}).get("labels"), adapter.state)
    except ConfigError as error:
        raise CheckpointError(f"its settings do not fit: {error}") from error
    targets = adapter.declared()
    require_reasonable(root, targets)
    compare(targets, checkpoint.file.shapes, strict=True)


def _files(directory: Path) -> list[str]:
    return [name for name in (WEIGHTS_NAME, CONFIG_NAME) if (directory / name).is_file()]


def _pickles(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir() if file.suffix in _PICKLES)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + f" and {len(keys) - 5} more" * (len(keys) > 5)


def _grouped(tensors: Mapping[str, tuple[tuple[int, ...], str, int]]) -> list[TensorFacts]:
    """Return a row for each tensor; those of all blocks that are alike are one row."""

    def alike(item: tuple[str, tuple[tuple[int, ...], str, int]]) -> tuple[str, Any]:
        key, facts = item
        return re.sub(r"^blocks\.\d+\.", "blocks.*.", key), facts

    rows, mixed = [], len({dtype for _, dtype, _ in tensors.values()}) > 1
    for (name, (shape, dtype, size)), group in groupby(sorted(tensors.items(), key=alike), key=alike):
        count = sum(1 for _ in group)
        text = f"{count} × {list(shape)}" if count > 1 else str(list(shape))
        rows.append(TensorFacts(name, f"{text} {dtype}" if mixed else text, in_bytes(count * size)))
    return rows
