"""The layers of a chain's branches, put together once for its forward pass or its backward pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aim_adapters.ops.bottleneck import Adapter, Composed, MlpLayers, bottleneck_rows
from aim_adapters.ops.branches.dense import DenseProducts
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan
from aim_adapters.ops.branches.products import Products
from aim_adapters.ops.branches.scaled import ScaledProducts
from aim_adapters.ops.branches.tensors import AttentionTensors, BranchTensors, MlpTensors


class AttentionLayers(NamedTuple):
    """The output layer of an attention branch, in the dtype of its products.

    Attributes:
        weight: With LayerScale ``[D, H*d]``, rows may lie apart.
        bias: ``[D]``, or None.
        adapter: The adapter behind it, or None. With a skip, its up-projection lies beside the layer.
    """

    weight: Tensor
    bias: Tensor | None
    adapter: Composed | None


Layers = AttentionLayers | MlpLayers


@functools.lru_cache(maxsize=64)
def products_for(frozen_precision: str, device: torch.device, dtype: torch.dtype) -> Products[Any]:
    """Return the way to multiply by frozen weights in a precision, between tokens in a dtype."""
    return ScaledProducts(device, dtype) if frozen_precision == "fp8" else DenseProducts(device, dtype)


def layers_of(branches: Sequence[BranchTensors], chain: ChainPlan, device: torch.device) -> list[Layers]:
    """Return the layers of each branch.

    Args:
        branches: The tensors of each, in full.
        chain: Their description.
        device: Where they are.
    """
    found: list[Layers] = []
    for index, (plan, tensors) in enumerate(zip(chain.branches, branches, strict=True)):
        if isinstance(plan, AttentionPlan):
            if not plan.shares:  # those behind it are put together with it
                end = index + 1
                while end < len(branches) and getattr(chain.branches[end], "shares", False):
                    end += 1
                found += _attention_layers(branches[index:end], chain.branches[index:end], chain.compute_dtype, device)
            continue
        assert isinstance(tensors.frozen, MlpTensors)
        products = products_for(chain.frozen_precision, device, chain.compute_dtype)
        found.append(products.mlp_layers(tensors.frozen, tensors.trained.adapter))
    return found


def _attention_layers(
    branches: Sequence[BranchTensors], plans: Sequence[Any], dtype: torch.dtype, device: torch.device
) -> list[AttentionLayers]:
    """Return the layers of branches that share their frozen ones."""
    t = branches[0].frozen
    assert isinstance(t, AttentionTensors)
    adapters = [
        None if tensors.trained.adapter is None else Adapter(*tensors.trained.adapter, beside=plan.skip)
        for tensors, plan in zip(branches, plans, strict=True)
    ]
    present = [adapter for adapter in adapters if adapter is not None]
    layer = bottleneck_rows(device).output_layer(t.out_weight, t.out_bias, t.gamma, present, dtype)
    composed = iter(layer.adapters)
    return [AttentionLayers(layer.weight, layer.bias, a and next(composed)) for a in adapters]
