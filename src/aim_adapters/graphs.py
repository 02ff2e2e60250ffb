"""CUDA graphs without a compiler: calls of a wrapped model recorded once, and replayed without Python."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aim_adapters.arguments import read_items, require_integer, shown
from aim_adapters.core import GraphRow, Graphs, only_root, require_bare
from aim_adapters.errors import ConfigError, InputError, StateError
from aim_adapters.table import Table

ModelT = TypeVar("ModelT", bound=nn.Module)


def graph(model: ModelT, example: Any, *, max_graphs: int = 8) -> ModelT:
    """Let a wrapped model replay CUDA graphs of its calls, in place: forward and backward, without a compiler.

    The first call of each kind is recorded, which takes about as long as ten eager calls, and from then on replayed;
    the kind of `example` is recorded at once. Kinds differ in shapes and dtypes of the arguments, mode, gradients,
    autocast, adapter and `set_execution`. Parameters are read anew by each replay, dropout and stochastic depth draw
    anew, and outputs and gradients are the caller's own. Where a call cannot be recorded it runs eagerly, which is said
    once by name: on a CPU, with hooks inside the model, with weights sharded by FSDP2 or quantized, or where more than
    two forward passes wait for their backward passes. Attributes of layers that are numbers, strings or flags are
    compared, too; after a change of others, or of an attribute of the model itself, call `graph` again. Distribute with
    DDP afterwards; ``torch.compile``, ``torch.export`` and copies see the model without graphs.

    Args:
        model: A wrapped model, or a model that holds one; in the mode, and called under the autocast, in which it will
            run.
        example: A batch as the model reads it, on the model's device: a tensor such as ``[B, T, C, H, W]``, a tuple of
            arguments, or a dictionary of arguments by name. Values do not matter.
        max_graphs: How many kinds of calls are kept, >= 1; the one that was used last the longest ago makes room.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        ConfigError: ``max_graphs`` is not an integer >= 1, or the example is not what the model's ``forward`` takes.
        InputError: The video among it has another shape or dtype than the model reads.
        StateError: The model is not wrapped, holds several wrapped models, or is compiled, sharded or distributed.
    """
    wrapped = only_root(model)
    require_integer("max_graphs", max_graphs, low=1)
    require_bare(model, "graph", "graph the model first, then distribute it; a compiled model needs no graphs")
    args, kwargs = _arguments(model, example)
    state, before = wrapped.state, wrapped.state.graphs
    state.graphs, unseen, done = Graphs(wrapped.root, max_graphs), state.unseen, False
    state.unseen = False  # the example may be noise
    devices = [parameter.device for parameter in wrapped.root.parameters() if parameter.is_cuda][:1]
    try:
        with torch.random.fork_rng(devices):
            model(*args, **kwargs)
        done = True
    except InputError as error:
        raise InputError(f"example: {error}") from error
    finally:
        state.unseen = unseen
        if not done:
            state.graphs = before
    return model


def ungraph(model: ModelT) -> ModelT:
    """Let a model run eagerly again, and free the memory of its CUDA graphs.

    Args:
        model: A wrapped model; one without graphs stays as it is.

    Returns:
        The same object.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    only_root(model).state.graphs = None
    return model


def explain_graphs(model: nn.Module) -> Table[GraphRow]:
    """Return which kinds of calls of a graphed model run as graphs, and why others do not.

    Args:
        model: A wrapped model that was given to `graph`.

    Returns:
        A list with one row for each kind of call, which shows itself as a table in a terminal and in a notebook.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, holds several wrapped models, or has no graphs.
    """
    graphs = only_root(model).state.graphs
    if graphs is None:
        raise StateError("the model has no graphs; call aim.graph(model, example) first")
    return Table(graphs.rows())


def _arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, by place and by name, that an example stands for."""
    refusal = "example must be a batch as the model reads it: a tensor, a tuple of arguments, or a dictionary by name"
    if isinstance(example, dict):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = (example,) if isinstance(example, Tensor) else tuple(read_items(example, refusal, most=64)), {}
    values = (*args, *kwargs.values())
    if not any(isinstance(value, Tensor) for value in values) or not all(isinstance(name, str) for name in kwargs):
        raise ConfigError(f"{refusal}, got {shown(example)}")
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"example: {type(model).__name__}.forward does not take these arguments: {error}") from error
    return args, kwargs
