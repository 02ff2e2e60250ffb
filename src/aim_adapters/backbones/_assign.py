"""Build a model so that its weights are read once: nothing is drawn at random, and nothing is copied.

The library's own call builds and loads, so its mapping of names, resampling of positions and checks stay in force.
Meanwhile parameters have no storage, and loading a state dict makes its tensors the parameters. Buffers are made as
ever: many (rotary tables, positions in windows) are in no file.

A tensor of a mapped file begins wherever the one before it ends, not at a multiple of 64 bytes as PyTorch allocates.
On some CPUs the last digit of a product of few rows or columns depends on that (docs/speed.md). Copying such tensors,
which are nearly all of most files, would double the memory that loading takes at its peak, and read every byte before
any is needed. Whoever wants the bits that allocated weights give copies the model.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from aim_adapters.backbones.registry import read_anatomy


def read_once(create: Callable[[], nn.Module]) -> nn.Module:
    """Call a library's factory, letting the tensors it loads become the parameters.

    Args:
        create: Builds the model and loads its weights.

    Returns:
        What ``create`` returns. Where the constructor computes with its parameters (a hybrid's stem), or some are
        filled otherwise than from a state dict, or not at all (a classification layer of another size), it is called
        again in the ordinary way.
    """
    try:
        with _assigning():
            model = create()
    except RuntimeError:  # also what is wrong with the weights, which is raised again
        return create()
    names = [name for name, _ in model.named_parameters()]
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if not empty:
        return model
    model = create()
    if len(empty) < len(names):
        warn_random(model, empty)
    return model


def warn_random(model: nn.Module, names: list[str]) -> None:
    """Warn about parameters that no file filled, unless they are a classification layer's.

    Args:
        model: The image model.
        names: The parameters' names.
    """
    anatomy = read_anatomy(model)
    at = f"{anatomy.root}." if anatomy.root else ""
    heads = tuple(f"{at}{head.path}." for head in anatomy.heads if head.classifier)
    names = [name for name in names if not name.startswith(heads)]
    if names:
        warnings.warn(
            f"{len(names)} parameters of the base model are not among its pre-trained weights and start at random: "
            f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            stacklevel=2,
        )


@contextmanager
def _assigning() -> Iterator[None]:
    """Within the block, keep this thread's new parameters without storage until a state dict is loaded."""
    thread = threading.get_ident()
    hooked: dict[nn.Module, RemovableHandle] = {}
    assigned: set[int] = set()

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None
        if module not in hooked:
            hooked[module] = module.register_load_state_dict_pre_hook(assign)
        if parameter.is_meta or module._parameters.get(name) is not None:  # shared, or taken from a state dict
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    def assign(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
        metadata["assign_to_params_buffers"] = True
        for name, target in [*module._parameters.items(), *module._buffers.items()]:
            tensor = state.get(prefix + name)
            if target is None or not isinstance(tensor, Tensor):
                continue
            # As copying would: the model's dtype, storage of its own.
            tensor = tensor.to(target.dtype).contiguous()
            state[prefix + name] = tensor.clone() if tensor.data_ptr() in assigned else tensor
            assigned.add(tensor.data_ptr())

    handle = register_module_parameter_registration_hook(register)  # type: ignore[arg-type]  # it says None
    try:
        with _StayEmpty():
            yield
    finally:
        handle.remove()
        for each in hooked.values():
            each.remove()


class _StayEmpty(TorchFunctionMode):
    """Let factories treat parameters without storage as any others: make buffers beside them, move the model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DEVICE and args[0].is_meta:
            return torch.device("cpu")
        if func in _IDLE and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


_DEVICE = torch.Tensor.device.__get__  # what reads the attribute
# Moving, which is refused where there is no storage, and drawing from a truncated normal, slow where nothing is drawn.
_IDLE = {Tensor.to, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
