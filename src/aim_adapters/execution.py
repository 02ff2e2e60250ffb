"""Choose how adapted blocks run, and what dtype the frozen weights are held in; neither changes what is computed."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from aim_adapters.errors import ConfigError
from aim_adapters.fused import Branch, fp8_missing, fused_branches
from aim_adapters.guards import only_root
from aim_adapters.layers.state import AIMState, BlockState, idle_adapters
from aim_adapters.plan import place_of, root_state

BRANCHES = ("auto", "fused", "modules")
MEMORY = ("fast", "balanced", "low")
PRODUCTS = ("auto", "fp8")
_BASE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Branches = Literal["auto", "fused", "modules"]
Memory = Literal["fast", "balanced", "low"]
Products = Literal["auto", "fp8"]


class BlockExecution(NamedTuple):
    """Say how one block runs.

    Attributes:
        block: Index of the block.
        temporal: ``"fused"``, or ``"fused, fp8"``; ``"-"`` where there is none; or why this branch runs as the image
            model's modules.
        spatial: The same.
        mlp: The same.
    """

    block: int
    temporal: str
    spatial: str
    mlp: str


def set_execution(
    model: nn.Module,
    *,
    branches: Branches | None = None,
    memory: Memory | None = None,
    products: Products | None = None,
) -> None:
    """Choose how adapted blocks run. All ways compute the same, to rounding, and nothing of it is saved.

    A fused branch calls the frozen layers' weights, not the layers: hooks on them would not run, so a layer with hooks
    makes its branch run as modules. It holds for every adapter of the model. A compiled model compiles once more.

    Args:
        model: A wrapped model.
        branches: ``"auto"``: fused where a branch is made of plain layers, as modules elsewhere; ``"fused"``: fused,
            and an error where that cannot be; ``"modules"``: every layer of the image model is called. None: no change.
        memory: What a training step keeps from the forward pass. ``"fast"``: all but what is cheap to compute again;
            ``"balanced"``: the tokens between branches and those of spatial attention, not what is attended along time
            nor what the MLP activates; ``"low"``: each block's input alone. None: no change.
        products: By frozen weights. ``"auto"``: in the dtype of tokens or autocast; ``"fp8"``: in float8, each row
            scaled, where that is faster, forwards and for the gradient of the tokens; adapters and what is stored stay
            as they are. It rounds more coarsely, needs an Ada or Hopper GPU and bfloat16 tokens, and is an error at the
            call where a branch cannot run so. None: no change.

    Raises:
        ConfigError: A name is unknown.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, _, shared = only_root(model)
    asked = (("branches", branches, BRANCHES), ("memory", memory, MEMORY), ("products", products, PRODUCTS))
    for name, value, choices in asked:
        if value is not None and value not in choices:
            raise ConfigError(f"{name} must be {', '.join(map(repr, choices))} or None, got {value!r}")
    for each in (shared, *(root_state(adapter) for adapter in idle_adapters(shared).values())):
        each.branches = branches or each.branches
        each.memory = memory or each.memory
        each.products = products or each.products
    if products == "fp8":
        fp8_missing()  # before a compiler traces it


def explain_execution(model: nn.Module) -> list[BlockExecution]:
    """Print how each block runs and why, and return the same.

    It holds for the weights' device and dtype, or the dtype of an autocast that is on while this is called.

    Args:
        model: A wrapped model.

    Raises:
        UnsupportedKernelError: ``branches="fused"`` or ``products="fp8"`` was asked for and cannot be.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, root, shared = only_root(model)
    anatomy, rows = shared.record.anatomy, []
    for index, ((path, _), width) in enumerate(zip(anatomy.blocks, anatomy.block_widths, strict=True)):
        block = root.get_submodule(path)
        if not isinstance(getattr(block, "aim", None), BlockState):
            rows.append(BlockExecution(index, "-", *["not adapted: the image model's own block"] * 2))
            continue
        tokens = torch.empty(shared.num_frames, 1, width, **place_of(block))
        found = fused_branches(block, tokens, positions=False)
        fused = "fused, fp8" if shared.products == "fp8" else "fused"
        words = [fused if isinstance(each, Branch) else each or "-" for each in found]
        rows.append(BlockExecution(index, *words))
    _print(rows)
    return rows


def set_base_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the frozen weights of the image model in another dtype; what trains stays as it is.

    Meant for training and inference under ``torch.autocast`` to the same dtype: half the memory, no casts of weights,
    and the tokens between the blocks have this dtype too. It cannot be undone: the image model that unwrapping gives
    back holds the rounded weights, and so does its ``state_dict``. Checkpoints of adapters are not concerned.

    Args:
        model: A wrapped model. Of a whole CLIP model, the image tower changes.
        dtype: ``torch.bfloat16``, ``torch.float16`` or ``torch.float32``.

    Raises:
        ConfigError: Another dtype.
        StateError: The model is not wrapped, or holds several wrapped models.
    """
    _, root, _ = only_root(model)
    if dtype not in _BASE_DTYPES:
        raise ConfigError(f"dtype must be {', '.join(map(str, _BASE_DTYPES))}, got {dtype!r}")
    ours = {id(p) for module in root.modules() if isinstance(module, AIMState) for p in module.parameters()}
    with torch.no_grad():
        for parameter in root.parameters():
            if id(parameter) not in ours and not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def _print(rows: list[BlockExecution]) -> None:
    """Print neighbouring blocks that do the same together."""
    start = 0
    for index, row in enumerate(rows):
        if index + 1 == len(rows) or rows[index + 1][1:] != row[1:]:
            first = rows[start].block
            print(f"blocks {first}" if first == row.block else f"blocks {first}-{row.block}")
            for name, words in zip(("temporal", "spatial", "mlp"), row[1:], strict=True):
                print(f"  {name:<9} {words}")
            start = index + 1
