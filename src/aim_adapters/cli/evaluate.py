"""The command that measures accuracy on a test set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aim_adapters.cli.choices import require_table_file
from aim_adapters.cli.data import AllowEmpty, Data, MaxSkipped, Nested, Workers, open_videos
from aim_adapters.cli.models import BaseModel, Device, Precision, Source, Views, default_device, load_trained
from aim_adapters.cli.output import Debug, Json, command


def evaluate(
    source: Source,
    data: Data,
    views: Views = "3x1",
    predictions: Annotated[
        Path | None,
        typer.Option(help="Write each video's answer to this file, .csv or .parquet.", callback=require_table_file),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Videos that are decoded as one batch.", min=1)] = 8,
    workers: Workers = None,
    device: Device = None,
    precision: Precision = None,
    base_model: BaseModel = None,
    nested: Nested = False,
    allow_empty: AllowEmpty = False,
    max_skipped: MaxSkipped = 0.05,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy on a test set.

    That is top-1, top-5, the mean over classes and that of each class, averaged over views of each video. Started by
    torchrun, all devices work on it.
    """
    with command(as_json=as_json, debug=debug) as output:
        import torch
        import torch.distributed as dist

        from aim_adapters.clip_spec import clip_spec
        from aim_adapters.errors import ConfigError
        from aim_adapters.video import evaluate as evaluate_videos

        if predictions is not None:
            predictions = predictions.expanduser()
            if not predictions.parent.is_dir():
                raise ConfigError(f"--predictions: there is no folder {str(predictions.parent)!r}")
        device = default_device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        model = load_trained(source, base_model).to(device)
        spec = clip_spec(model)
        videos = open_videos(data, spec.frames, labels=spec.labels, nested=nested, allow_empty=allow_empty)
        evaluation = evaluate_videos(
            model, videos, views, batch_size=batch_size, workers=workers, precision=precision, max_skipped=max_skipped
        )
        if dist.is_initialized():
            dist.destroy_process_group()
        if predictions is not None and output.rank == 0:
            evaluation.save(predictions)
        output.result(evaluation.to_dict(), str(evaluation))
