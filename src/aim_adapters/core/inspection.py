"""Look into a call of a wrapped model: other functions in the place of its blocks' own, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from aim_adapters.anatomy import BlockAnatomy
from aim_adapters.config import COMPONENTS
from aim_adapters.core.block import AdaptedBlock
from aim_adapters.core.foreign import inside
from aim_adapters.core.lookup import WrappedModel
from aim_adapters.core.state import by_modules


@contextlib.contextmanager
def inspecting(
    wrapped: WrappedModel, replace: Callable[[int, BlockAnatomy], BlockAnatomy], components: frozenset[str]
) -> Iterator[None]:
    """Let blocks run as modules, by other functions, and only some adapters, for a while.

    What is compiled stays compiled, and is not run meanwhile.

    Args:
        wrapped: The wrapped model.
        replace: Maps the index of a block and its anatomy to the anatomy that it runs by.
        components: Adapters that run: of ``"temporal"``, ``"spatial"`` and ``"joint"``.
    """
    root, state = wrapped.root, wrapped.state
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(by_modules(state))
        idle = set(COMPONENTS) - components
        if "temporal" in idle:
            stack.enter_context(_without(state._parameters, ("temporal_embedding",)))
            idle.add("temporal_conv")
        for index, (path, anatomy) in enumerate(state.anatomy.blocks):
            block = inside(root.get_submodule(path))
            assert isinstance(block, AdaptedBlock)
            stack.enter_context(_without(block.aim._modules, idle))
            vars(block)["aim_spec"] = replace(index, anatomy)
            stack.callback(vars(block).pop, "aim_spec")
        yield


@contextlib.contextmanager
def _without(held: dict[str, Any], names: set[str] | tuple[str, ...]) -> Iterator[None]:
    """Take parameters or modules out of where they are held, and put them back in their places."""
    before = {name: held[name] for name in names}
    held.update(dict.fromkeys(names))
    try:
        yield
    finally:
        held.update(before)
