"""Construction of a model whose weights are read once: none are drawn at random first, none are copied.

The library's own function builds and loads, so its mapping of names, resampling of positions and checks apply. While it
runs, parameters have no storage, and loading a state dict makes its tensors the parameters. Buffers are made as usual:
many (rotary tables, positions in windows) are in no file.

A tensor of a mapped file begins wherever the one before it ends, not at a multiple of 64 bytes as PyTorch allocates.
On some CPUs the last digit of a product of few rows or columns depends on that (docs/speed.md). Copying such tensors,
which are nearly all of most files, would double the memory that loading takes at its peak, and read every byte before
any is needed. Whoever wants the bits that allocated weights give copies the model.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from aim_adapters.backbones._limits import limited, most_parameters
from aim_adapters.backbones.registry import read_anatomy
from aim_adapters.errors import CheckpointError


def read_once(create: Callable[[], nn.Module], weights: Iterable[Path] = ()) -> nn.Module:
    """Call a library's function that builds a model; the tensors that it loads become the parameters.

    Args:
        create: Builds the model and loads its weights. It is called a second time, in the ordinary way, if the
            constructor computes with its parameters (the stem of a hybrid), or some of them are not filled from a state
            dict (a classification layer of another size).
        weights: The files that it loads.

    Returns:
        What ``create`` returns.

    Raises:
        CheckpointError: The model has more parameters than its weights can fill.
        As ``create``.
    """
    most = most_parameters(weights)
    try:
        with _assigning():
            model = create()
    except CheckpointError:
        raise
    except RuntimeError:  # an error in the weights themselves is raised again by this call
        with limited(most):
            return create()
    names = [name for name, _ in model.named_parameters()]
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if not empty:
        return model
    with limited(most):
        model = create()
    if len(empty) < len(names):
        warn_random(model, empty)
    return model


def warn_random(model: nn.Module, names: list[str]) -> None:
    """Warn about parameters that were filled from no file, other than those of a classification layer.

    Args:
        model: The image model.
        names: Names of the parameters.

    Raises:
        UnsupportedModelError: The model cannot be adapted.
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
    """Keep new parameters of this thread without storage inside the block, until a state dict is loaded into them."""
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

    def assign(module: nn.Module, tensors: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
        metadata["assign_to_params_buffers"] = True
        for name, target in [*module._parameters.items(), *module._buffers.items()]:
            tensor = tensors.get(prefix + name)
            if target is None or not isinstance(tensor, Tensor):
                continue
            # What copying would give: the model's dtype, and separate storage.
            tensor = tensor.to(target.dtype).contiguous()
            tensors[prefix + name] = tensor.clone() if tensor.data_ptr() in assigned else tensor
            assigned.add(tensor.data_ptr())

    handle = register_module_parameter_registration_hook(register)  # type: ignore[arg-type]  # its stub says None
    try:
        with _StayEmpty():
            yield
    finally:
        handle.remove()
        for hook in hooked.values():
            hook.remove()


class Idle(TorchFunctionMode):
    """A mode in which tensors without storage are neither initialized nor moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch, unless it would do nothing."""
        if func in _IDLE and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class _StayEmpty(Idle):
    """A mode in which code treats parameters without storage as any others: it makes buffers, and moves the model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DEVICE and args[0].is_meta:
            return torch.device("cpu")
        return super().__torch_function__(func, types, args, kwargs)


_DEVICE = torch.Tensor.device.__get__  # the getter of the attribute
# Moving raises without storage; the steps of a truncated normal are slow even where there is nothing to draw.
_IDLE = {Tensor.to, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_}
