"""The command that measures what a model costs on this machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from aim_adapters.cli.choices import complete_model
from aim_adapters.cli.models import (
    BaseModel,
    Device,
    Memory,
    Precision,
    build_image_model,
    default_device,
    load_trained,
)
from aim_adapters.cli.output import Debug, Json, columns, command

_FRAMES = 8
_LIBRARIES = ("open_clip:", "timm:", "torchvision:", "transformers:")


def profile(
    source: Annotated[
        str,
        typer.Argument(
            help="Image model, library:name, which is wrapped first; or folder of a run, or user/name on the Hub.",
            autocompletion=complete_model,
        ),
    ],
    frames: Annotated[
        int | None, typer.Option(help="Frames of a clip; by default the run's, or 8.", min=1, max=512)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Clips in a pass.", min=1)] = 1,
    device: Device = None,
    precision: Precision = None,
    memory: Memory = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--no-pretrained", help="Published weights; or random ones, which take the same time."
        ),
    ] = False,
    base_model: BaseModel = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what a model costs here.

    Parameters, arithmetic, time and memory of a training step and of inference, and which kernel runs in which block,
    and why.
    """
    with command(as_json=as_json, debug=debug) as output:
        from aim_adapters.analysis import profile_model
        from aim_adapters.execution import set_execution
        from aim_adapters.frames import set_num_frames
        from aim_adapters.wrapping import wrap_image_model

        where = default_device(device)
        output.step(f"building {source}")
        is_name = source.startswith(_LIBRARIES) or "/" not in source  # without a library: the error says what is near
        if is_name and not Path(source).expanduser().exists():
            model = build_image_model(source, image_size=None, pretrained=pretrained)
            wrap_image_model(model, frames or _FRAMES)
        else:
            model = load_trained(source, base_model)
            if frames is not None:
                warnings.filterwarnings("ignore", "temporal .* interpolated")  # nothing of it is kept
                set_num_frames(model, frames)
        model.to(where)
        if memory is not None:
            set_execution(model, memory=memory)  # type: ignore[arg-type]  # which checks it
        dtype: Any = precision or "fp32"
        found = profile_model(model, batch_size=batch_size, precision=dtype, progress=output.progress)
        output.result(found.to_dict(), found.to_text(columns()))
