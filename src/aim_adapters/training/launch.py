"""The processes that train together, as ``accelerate launch`` or ``torchrun`` has started them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from aim_adapters.arguments import require_choice
from aim_adapters.errors import ConfigError
from aim_adapters.training.running import PRECISIONS

SHARDINGS = ("ddp", "fsdp2")
TRACKERS = ("tensorboard", "wandb", "trackio")


class Launch(NamedTuple):
    """How processes were started.

    Attributes:
        accelerator: Accelerate's ``Accelerator``.
        sharding: How they hold the model.
        accumulate: Passes in a step.
        precision: Precision of products; ``"auto"`` if nobody has chosen one.
    """

    accelerator: Any
    sharding: str
    accumulate: int
    precision: str


def launch(*, sharding: str | None, accumulate: int | None, precision: str, log_with: str | None, out: Path) -> Launch:
    """Join the processes; what the caller leaves open is as ``accelerate launch`` was told.

    Args:
        sharding: ``"ddp"``, ``"fsdp2"`` or None.
        accumulate: Passes in a step, or None.
        precision: Precision of products.
        log_with: A tracker, or None.
        out: Folder of the run.

    Raises:
        ConfigError: One is unknown, or Accelerate is set up in a way that `fit` does not know.
        ImportError: accelerate or the tracker is not installed.
    """
    require_choice("precision", precision, PRECISIONS)
    if log_with is not None:
        require_choice("log_with", log_with, TRACKERS)
    if sharding is not None:
        require_choice("sharding", sharding, SHARDINGS)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError("fit needs accelerate: pip install aim-adapters[train]") from error
    if log_with is not None and importlib.util.find_spec(log_with) is None:
        raise ImportError(f"log_with={log_with!r} needs {log_with}: pip install {log_with}")
    # torchrun says nothing of devices, and Accelerate then takes processes without a GPU for one each.
    only_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=only_cpus, log_with=log_with, project_dir=out)
    kind = accelerator.distributed_type.value
    if kind in ("DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise ConfigError(f"fit trains with DDP or FSDP2, and accelerate was told to use {kind}; choose FSDP or none")
    told = accelerator.mixed_precision
    return Launch(
        accelerator,
        sharding=sharding or ("fsdp2" if kind == "FSDP" else "ddp"),
        accumulate=accelerator.gradient_accumulation_steps if accumulate is None else accumulate,
        precision=told if precision == "auto" and told != "no" else precision,
    )


def require_agreement(facts: dict[str, Any], *, world: int) -> None:
    """Refuse to begin where processes were told different things, or see different files.

    Args:
        facts: What must be the same everywhere, by name.
        world: Number of processes.

    Raises:
        ConfigError: They differ, on all processes.
    """
    if world == 1:
        return
    found: list[Any] = [None] * world
    dist.all_gather_object(found, facts)
    for rank, others in enumerate(found):
        for name, value in found[0].items():
            if others[name] != value:
                raise ConfigError(
                    f"the processes differ in {name}: process 0 has {value!r:.200}, process {rank} "
                    f"{others[name]!r:.200}; call fit alike in all, with data and out on a disk that they share"
                )


def require_writable(out: Path) -> None:
    """Make the folder of a run, or say now that it cannot be written.

    Args:
        out: The folder.

    Raises:
        ConfigError: It cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"out={str(out)!r} cannot be made: {error}; choose another folder") from error
    if not writable:
        raise ConfigError(f"out={str(out)!r} cannot be written; choose another folder")
