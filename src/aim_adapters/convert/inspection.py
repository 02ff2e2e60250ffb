"""What a checkpoint of the AIM reference holds, told without a model and without running anything in it."""

from __future__ import annotations

import os
from typing import Any

from aim_adapters.arguments import require_path
from aim_adapters.checkpoint import Inspection, describe_finite, describe_tensor
from aim_adapters.convert.layout import Reference, infer_config, read_reference
from aim_adapters.convert.reading import read_tensors
from aim_adapters.errors import CheckpointError


def inspect_official_checkpoint(source: str | os.PathLike[str]) -> Inspection:
    """Read what a checkpoint of the AIM reference holds.

    Args:
        source: Path of the ``.pth`` file, which is read without running any code in it.

    Raises:
        TypeError: ``source`` is not a path.
        CheckpointError: The file is missing, damaged, not of the reference, or not readable without running code in it;
            the message names what it would run.
    """
    path = require_path("source", source)
    reference = read_reference(read_tensors(path))
    adapters = reference.adapters
    broken = [key for key, tensor in adapters.items() if not tensor.isfinite().all()]
    settings, problem = _settings(reference)
    problems = [f"it cannot be converted: {problem}"] * (problem is not None)
    problems += [describe_finite(broken)] * bool(broken)
    clip: dict[str, Any] = {"frames": settings.get("num_frames"), "labels": None}
    return Inspection(
        source=str(path),
        kind=f"{reference.layout.name} of the AIM reference",
        files={path.name: path.stat().st_size},
        settings=settings,
        base={
            "tensors in the file": len(reference.base),
            "parameters in the file": sum(tensor.numel() for tensor in reference.base.values()),
            "fits": reference.layout.models,
        },
        clip=clip,
        tensors={key: describe_tensor(tensor) for key, tensor in adapters.items()},
        safety=(
            "a pickle, of which nothing was run: it holds tensors and plain values alone",
            describe_finite(broken),
            *([f"keys without a meaning: {', '.join(reference.unknown[:5])}"] if reference.unknown else []),
        ),
        loads=None,
        loads_because="`aim-adapters convert` compares it with its base model",
        problems=tuple(problems),
    )


def _settings(reference: Reference) -> tuple[dict[str, Any], str | None]:
    """Return the settings that the shapes imply, or why none do."""
    widths = []
    for index in range(sum(reference.depths)):
        inside = (key for key in reference.adapters if key.startswith(f"blocks.{index}."))
        adapter = next((key for key in inside if key.endswith(".down_proj.weight")), "")
        tensor = reference.base.get(f"blocks.{index}.norm1.weight", reference.adapters.get(adapter))
        if tensor is None or not tensor.ndim:
            return {}, f"the width of block {index} is unknown"
        widths.append(tensor.shape[-1])
    try:
        config = infer_config(reference, widths, scale=None, num_classes=None, drop_path=0.0, head_dropout=0.0)
    except CheckpointError as error:
        return {}, str(error)
    # What does not follow from shapes is left out.
    unknown = ("drop_path", "head_dropout")
    return {name: value for name, value in config.to_dict().items() if name not in unknown}, None
