"""LoRA in the attention of an image model, by peft."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.core import listed
from aim_adapters.errors import ConfigError, UnsupportedModelError
from aim_adapters.training.baseline_models import trying


def lora_layers(image_model: nn.Module, anatomy: BackboneAnatomy, blank: Tensor, *, rank: int) -> list[str]:
    """Return the paths of the layers that LoRA changes: those of the attention of each block.

    Args:
        image_model: The image model.
        anatomy: Its anatomy.
        blank: An image that it reads, ``[1, C, H, W]``.
        rank: Rank of LoRA.

    Raises:
        ConfigError: The rank is larger than the model is wide.
        UnsupportedModelError: A layer is never called, as its weights are read directly, so LoRA would do nothing.
        ImportError: peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install peft") from error
    if rank > min(anatomy.block_widths):
        raise ConfigError(f"rank must be at most the width of the model, {min(anatomy.block_widths)}, got {rank}")
    layers: dict[str, nn.Module] = {}
    missed = []
    for block, parts in anatomy.blocks:
        path = f"{block}.{parts.attention}"
        attention = image_model.get_submodule(path)
        if isinstance(attention, nn.MultiheadAttention):  # peft knows it as a whole
            layers[path] = attention
        else:
            layers |= {f"{path}.{k}": layer for k, layer in attention.named_modules() if isinstance(layer, nn.Linear)}
            own = attention.named_parameters(path, recurse=False)
            missed += [name for name, parameter in own if name.endswith("weight") and parameter.ndim > 1]
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    try:
        with trying(image_model), torch.no_grad():
            image_model(blank)
    finally:
        for hook in hooks:
            hook.remove()
    missed += [path for path, layer in layers.items() if layer not in called]
    if missed:
        raise UnsupportedModelError(
            f"LoRA would do nothing in {listed(missed)}: this {type(image_model).__name__} reads their weights without "
            "a call; load the same image model from another library"
        )
    return list(layers)


def add_lora(image_model: nn.Module, layers: list[str], *, rank: int) -> None:
    """Freeze an image model and put LoRA into layers of it.

    Args:
        image_model: The image model.
        layers: Result of `lora_layers`.
        rank: Rank of LoRA.
    """
    from peft import LoraConfig, inject_adapter_in_model

    image_model.requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=layers)
    inject_adapter_in_model(settings, image_model)
