"""The weights of adapters as fused branches read them, and frozen layers that a linear adapter is folded into."""

from __future__ import annotations

from torch import Tensor, nn

from aim_adapters.anatomy import Derived, has_hooks
from aim_adapters.layers import Adapter, folded_bias, folded_weight
from aim_adapters.ops.branches import AdapterTensors, AttentionTensors


def read_adapter(adapter: Adapter | None) -> AdapterTensors | str | None:
    """Return the weights of an adapter, if there is one, or why they cannot be read.

    Args:
        adapter: The adapter, or None.
    """
    if adapter is None:
        return None
    if not (is_plain(adapter, Adapter) and all(is_plain(layer, nn.Linear) for layer in adapter.children())):
        return "its adapter is not as it was made: a layer was replaced, or has hooks"
    down, up = adapter.down_proj, adapter.up_proj
    weights = AdapterTensors(down.weight, down.bias, up.weight, up.bias)
    if not all(type(tensor) in (Tensor, nn.Parameter) for tensor in weights):
        return "its adapter is not as it was made: a weight is missing, or a tensor of another kind"
    return weights


def folded(frozen: AttentionTensors, adapter: AdapterTensors) -> AttentionTensors:
    """Return frozen layers whose output projection does what a linear adapter behind it does, made at every call.

    Args:
        frozen: The frozen layers.
        adapter: The weights of an adapter with an inner skip.
    """
    weight, bias, gamma = frozen.out_weight, frozen.out_bias, frozen.gamma
    scale = () if gamma is None else (gamma,)
    beside = () if bias is None else (bias, *scale)
    down, _, up, _ = adapter
    return frozen._replace(
        out_weight=Derived(folded_weight, (weight, down, up, *scale), tuple(weight.shape)),  # type: ignore[arg-type]
        out_bias=Derived(folded_bias, (*adapter, *beside), (len(weight),)),  # type: ignore[arg-type]
        gamma=None,
    )


def is_plain(module: nn.Module, expected: type[nn.Module]) -> bool:
    """Return whether a module is exactly of a type and has no hooks.

    Args:
        module: The module.
        expected: The type.
    """
    return type(module) is expected and not has_hooks(module)
