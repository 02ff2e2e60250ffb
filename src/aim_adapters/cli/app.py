"""The commands, and what they share: help, version, completion."""

from __future__ import annotations

from typing import Annotated

import typer

from aim_adapters.cli.check import check
from aim_adapters.cli.convert import convert
from aim_adapters.cli.env import env
from aim_adapters.cli.evaluate import evaluate
from aim_adapters.cli.explain import explain
from aim_adapters.cli.inspect import inspect
from aim_adapters.cli.lists import backbones, recipes
from aim_adapters.cli.predict import predict
from aim_adapters.cli.profile import profile
from aim_adapters.cli.push import push
from aim_adapters.cli.train import train
from aim_adapters.cli.verify import verify
from aim_adapters.version import __version__

app = typer.Typer(
    name="aim-adapters",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train, evaluate, predict, explain, check, inspect, profile, convert, push, recipes, backbones, verify, env,
):  # fmt: skip
    app.command()(command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train image transformers on videos with adapters, evaluate them, and use them."""
