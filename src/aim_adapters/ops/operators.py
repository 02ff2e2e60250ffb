"""Makes a launch of kernels an operator of PyTorch, which ``torch.compile``, CUDA graphs and counters know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


def register_operator(
    library: torch.library.Library,
    name: str,
    schema: str,
    *,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    on_cpu: bool,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    flops: Callable[..., int],
) -> None:
    """Register an operator of the namespace ``aim_adapters``.

    Args:
        library: The fragment of the namespace that owns it.
        name: Name of the operator.
        schema: Its arguments and results, as in ``(Tensor x) -> Tensor``.
        run: Computes it on a GPU.
        fake: Makes its results' shapes and dtypes, without values.
        on_cpu: Whether ``run`` serves the CPU too: where kernels are interpreted.
        backward: Its gradient, or what refuses one.
        setup_context: Keeps what ``backward`` needs.
        flops: Counts its FLOPs, given the shapes of its arguments.
    """
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CUDA", "CPU") if on_cpu else ("CUDA",):
        library.impl(name, run, device)
    qualified = f"aim_adapters::{name}"
    torch.library.register_fake(qualified, fake, lib=library)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)
    register_flop_formula(getattr(torch.ops.aim_adapters, name))(flops)
