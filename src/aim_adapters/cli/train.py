"""The command that trains."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aim_adapters.cli.baselines import BASELINES, build_named_baseline
from aim_adapters.cli.choices import (
    LAYERS,
    choice,
    complete_model,
    complete_recipe,
    completed,
    parse_layers,
    parse_size,
    require_layers,
    require_size,
)
from aim_adapters.cli.data import AllowEmpty, Data, MaxSkipped, Nested, Workers, open_videos
from aim_adapters.cli.models import DEFAULT_MODEL, Memory, build_image_model, record_model
from aim_adapters.cli.output import Debug, Json, Output, command

if TYPE_CHECKING:
    from aim_adapters.recipes import Recipe

_BOTTLENECK = 0.25
_FRAMES = 8  # the paper's, where neither recipe nor user say


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the run: adapters, checkpoints, settings.")],
    test: Annotated[Path | None, typer.Option(help="Videos to evaluate on, with the same classes.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Image model, library:name or library:directory; `aim-adapters backbones` lists names.",
            show_default=DEFAULT_MODEL,
            autocompletion=complete_model,
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; by default the recipe's, or 8.", min=1)] = None,
    recipe: Annotated[
        str, typer.Option(help="Recipe; `aim-adapters recipes` lists them.", autocompletion=complete_recipe)
    ] = "small-data",
    epochs: Annotated[int | None, typer.Option(help="Passes through the videos.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips of a device in one pass.", min=1)] = None,
    accumulate: Annotated[int | None, typer.Option(help="Passes in a step of the optimizer.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="By default the recipe's, scaled to the batch.")] = None,
    precision: Annotated[str, choice("auto, fp32, bf16, fp16 or fp8.", "auto", "fp32", "bf16", "fp16", "fp8")] = "auto",
    memory: Memory = None,
    bottleneck: Annotated[float, typer.Option(help="Width of adapters, as a share of the model's.")] = _BOTTLENECK,
    layers: Annotated[
        str,
        typer.Option(
            help="all, bottom_half, top_half, alternate, or blocks: 8,9,10,11.",
            callback=require_layers,
            autocompletion=completed(*LAYERS),
        ),
    ] = "all",
    temporal: Annotated[
        str | None,
        choice("How time is seen: attention, conv or both; by default the recipe's.", "attention", "conv", "both"),
    ] = None,
    conv_kernel: Annotated[int | None, typer.Option(help="Frames that the convolution over time sees: odd.")] = None,
    conv_layers: Annotated[
        str | None,
        typer.Option(
            help="Blocks with the convolution, as --layers; by default those.",
            callback=require_layers,
            autocompletion=completed(*LAYERS),
        ),
    ] = None,
    adapter_activation: Annotated[
        str | None, choice("gelu or none: linear adapters; by default the recipe's.", "gelu", "none")
    ] = None,
    baseline: Annotated[
        str | None,
        choice(
            f"Train something else, to compare adapters with: {', '.join(BASELINES[:-1])} or {BASELINES[-1]}.",
            *BASELINES,
        ),
    ] = None,
    cache_gib: Annotated[
        float | None, typer.Option(help="Train a probe on features kept on the device, in at most so many GiB.")
    ] = None,
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is random.", min=0)] = 0,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume", help="Go on with the run in --out, or refuse one; by default go on if there is one."
        ),
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights, such as 0.999.")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Size of frames: 224, or height x width: 192x320.", callback=require_size)
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained/--no-pretrained", help="Published weights; or random ones, to try a command out."),
    ] = True,
    dummy_data: Annotated[bool, typer.Option("--dummy-data", help="Time training without decoding.")] = False,
    sharding: Annotated[str | None, choice("Over several devices: ddp or fsdp2.", "ddp", "fsdp2")] = None,
    log_with: Annotated[str | None, choice("tensorboard, wandb or trackio.", "tensorboard", "wandb", "trackio")] = None,
    nested: Nested = False,
    allow_empty: AllowEmpty = False,
    max_skipped: MaxSkipped = 0.05,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an image model on videos.

    Adapters, checkpoints and settings are written to --out. Run again, the same command goes on where it was
    interrupted. SIGTERM ends it with exit code 0 after a checkpoint was written, Ctrl-C with 130. Started by torchrun,
    it trains on all devices.
    """
    with command(as_json=as_json, debug=debug) as output:
        size, chosen_layers = parse_size(image_size), parse_layers(layers)
        from aim_adapters.core import is_wrapped
        from aim_adapters.errors import ConfigError
        from aim_adapters.execution import set_execution
        from aim_adapters.recipes import get_recipe
        from aim_adapters.training import fit
        from aim_adapters.wrapping import wrap_image_model

        convolved = None if conv_layers is None else parse_layers(conv_layers)
        chosen = {
            "temporal": temporal,
            "conv_kernel": conv_kernel,
            "conv_layers": convolved,
            "adapter_activation": adapter_activation,
        }
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        plan = _with_frames(get_recipe(recipe), frames, output)
        if temporal == "conv" and plan.temporal_input_adapter:
            output.note(
                "warning",
                f"the recipe {plan.name} has an adapter before temporal attention, of which --temporal conv has none: "
                "it is left out",
            )
            plan = dataclasses.replace(plan, temporal_input_adapter=False)
        plan = dataclasses.replace(plan, **given)
        settings: dict[str, Any] = {"num_frames": frames or _FRAMES, **plan.wrap_settings()}
        count: int = settings["num_frames"]
        videos = open_videos(data, count, labels=None, nested=nested, allow_empty=allow_empty)
        tests = test and open_videos(test, count, labels=videos.labels, nested=nested, allow_empty=allow_empty)
        if not pretrained:
            output.note(
                "warning", "--no-pretrained: the image model is random and stays so; accuracies will mean nothing"
            )
        about: dict[str, Any] = {"image_size": size, "pretrained": pretrained}
        compared: dict[str, Any] | None = None
        if baseline is not None:
            compared = {"name": baseline, "recipe": plan.name, "frames": count, "labels": list(videos.labels)}
            own = ["bottleneck"] * (bottleneck != _BOTTLENECK) + ["layers"] * (layers != "all") + list(given)
            if own:
                options = ", ".join(f"--{name.replace('_', '-')}" for name in own)
                raise ConfigError(f"a --baseline has adapters of its recipe or none; leave out {options}")
            network = build_named_baseline(**{**compared, "recipe": plan}, model=model, **about)
        else:
            network = build_image_model(model or DEFAULT_MODEL, **about)
            wrap_image_model(network, **settings, bottleneck=bottleneck, layers=chosen_layers, labels=videos.labels)
        if memory is not None:
            if not is_wrapped(network):
                raise ConfigError(f"the baseline {baseline} has no memory modes; leave out --memory")
            set_execution(network, memory=memory)  # type: ignore[arg-type]  # which checks it

        @functools.cache  # once, as soon as something is trained
        def remember() -> None:
            if output.rank == 0:
                record_model(out.expanduser(), model, baseline=compared, **about)

        going_on: Literal["auto"] | bool = "auto" if resume is None else resume
        try:
            result = fit(
                network,
                videos,
                tests or None,
                out=out.expanduser(),
                recipe=plan,
                epochs=epochs,
                resume=going_on,
                batch_size=batch_size,
                accumulate=accumulate,
                learning_rate=learning_rate,
                ema=ema,
                precision=precision,
                sharding=sharding,
                workers=workers,
                seed=seed,
                max_skipped=max_skipped,
                dummy_data=dummy_data,
                cache_gib=cache_gib,
                log_with=log_with,
                callbacks=[lambda _: remember()],
            )
        except (KeyboardInterrupt, SystemExit) as stopped:
            output.result({"out": str(out), "stopped": True}, f"stopped; run the same command again to go on in {out}")
            raise stopped
        output.result(result.to_dict(), str(result))


def _with_frames(recipe: Recipe, frames: int | None, output: Output) -> Recipe:
    """Return the recipe for the number of frames that was asked for."""
    if frames is None or recipe.frames in (None, frames):
        return recipe
    output.note("warning", f"the recipe {recipe.name} is for {recipe.frames} frames; training with --frames {frames}")
    return dataclasses.replace(recipe, frames=frames)
