"""What a recorded call depends on, compared in full before each replay, in about a tenth of a millisecond."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from aim_adapters.anatomy import has_hooks
from aim_adapters.arguments import shown
from aim_adapters.core.foreign import is_sharded
from aim_adapters.core.patching import foreign_forward
from aim_adapters.core.state import RootState

_GLOBAL_HOOKS = (
    nn_module._global_forward_pre_hooks,
    nn_module._global_forward_hooks,
    nn_module._global_backward_pre_hooks,
    nn_module._global_backward_hooks,
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_dtype, _requires_grad = attrgetter("dtype"), attrgetter("requires_grad")
_mode = itemgetter("training")
_PLAIN = (Tensor, nn.Parameter)
_CONSTANTS = (bool, int, float, str, type(None))
_STANDARD = frozenset(nn.Module().__dict__)  # modes are compared by themselves


class Parts:
    """The modules, parameters, buffers and settings of a wrapped model at one moment, and what was recorded of them.

    Values are not part of it: a replay reads those that are there. Adapters that rest are not, either. The root is
    given again with each question, and not held: a model that nobody has is freed.

    Args:
        root: The wrapped image model.
    """

    def __init__(self, root: nn.Module) -> None:
        state = root.aim
        assert isinstance(state, RootState)
        # The shelf of idle adapters comes and goes while what runs stays the same.
        shelf = state.shelf
        apart = {id(root), id(state), *(() if shelf is None else map(id, shelf.modules()))}
        inner = [module for module in root.modules() if id(module) not in apart]
        self._state, self._config = weakref.ref(state), state.config
        self._inner, self._classes = inner, list(map(type, (root, *inner)))
        self._children = [module._modules for module in inner if module._modules]
        self._childless = [module._modules for module in inner if not module._modules]
        self._held_modules = self._modules_of(root)
        slots = [slot for module in (root, state, *inner) for slot in (module._parameters, module._buffers)]
        self._slots: list[dict[str, Any]] = [slot for slot in slots if slot]
        self._held: list[Any] = list(chain.from_iterable(map(dict.values, self._slots)))
        self.tensors: list[Tensor] = [tensor for tensor in self._held if tensor is not None]
        self.trained = list({id(t): t for t in self.tensors if t.requires_grad}.values())
        self.buffers = [b for m in (root, state, *inner) for b in m._buffers.values() if b is not None]
        self.device = next((tensor.device for tensor in self.tensors), torch.device("cpu"))
        self.why_not = self._unfit()
        if self.why_not is None:
            self._pointers = list(map(Tensor.data_ptr, self.tensors))
        self._dtypes, self._trains = list(map(_dtype, self.tensors)), list(map(_requires_grad, self.tensors))
        self._dicts = [module.__dict__ for module in inner]
        # Hooks on the root itself run around its `forward`, and so around a replay too.
        self._hooks = [getattr(module, name) for module in (state, *inner) for name in _HOOKS]
        self._settings: list[tuple[dict[str, Any], str, Any]] = [
            (held, name, value)
            for held in self._dicts
            for name, value in held.items()
            if name not in _STANDARD and isinstance(value, _CONSTANTS)
        ]
        self.settle()
        self.recorded: dict[Any, Any] = {}  # by key, what replays a call
        self.failed: dict[Any, str] = {}  # by key, why a call could not be recorded

    def hold(self, root: nn.Module) -> bool:
        """Return whether the model has these parts, in the same memory, and none beside them.

        Args:
            root: The wrapped image model.
        """
        tensors, held = self.tensors, list(chain.from_iterable(map(dict.values, self._slots)))
        return (
            root.aim is self._state()
            and self._modules_of(root) == self._held_modules
            and not any(self._childless)
            and list(map(type, (root, *self._inner))) == self._classes
            and len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and list(map(_dtype, tensors)) == self._dtypes
            and list(map(_requires_grad, tensors)) == self._trains
            and (self.why_not is not None or list(map(Tensor.data_ptr, tensors)) == self._pointers)
            and all(map(is_, map(dict.get, self._owners, self._names), self._values))
            and root.aim.config is self._config
        )

    def settle(self) -> None:
        """Take those settings for none that have changed, as those that a call changes itself."""
        self._settings = [each for each in self._settings if each[0].get(each[1]) is each[2]]
        self._owners: list[dict[str, Any]] = [owner for owner, _, _ in self._settings]
        self._names: list[str] = [name for _, name, _ in self._settings]
        self._values: list[Any] = [value for _, _, value in self._settings]

    def of(self, state: RootState) -> bool:
        """Return whether a container of the root is among these parts."""
        return self._state() is state

    def leaves(self) -> list[Tensor]:
        """Return leaves of autograd's own for what trains, in the same memory.

        Hooks of a parameter must not run when its gradient is recorded. And autograd takes a gradient to the stream on
        which its parameter was used first, while something holds that graph as an output or DDP does; a capture that
        another stream enters fails.
        """
        return [nn.Parameter(tensor.detach()) for tensor in self.trained]

    @contextlib.contextmanager
    def holding(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        """Put `leaves` into the model for a while.

        Args:
            leaves: What that returned.
        """
        own = {id(tensor): leaf for tensor, leaf in zip(self.trained, leaves, strict=True)}
        taken = [(slot, name, tensor) for slot in self._slots for name, tensor in slot.items() if id(tensor) in own]
        for slot, name, tensor in taken:
            slot[name] = own[id(tensor)]
        try:
            yield
        finally:
            for slot, name, tensor in taken:
                slot[name] = tensor

    def modes(self, root: nn.Module) -> bytes:
        """Return whether each module is in training mode."""
        return bytes(map(_mode, chain((root.__dict__, root.aim.__dict__), self._dicts)))

    def watched(self, root: nn.Module) -> str | None:
        """Return what runs beside the model's own layers and so must see each call, or None."""
        if any(_GLOBAL_HOOKS):
            return "hooks on all modules (torch.nn.modules.module.register_module_…_hook) must see each call"
        if not any(self._hooks) and not any(map(dict.__contains__, self._dicts, repeat("forward"))):
            return None
        for name, module in root.named_modules():
            if name and has_hooks(module) and (foreign_forward(module) is not None or _hooked(module)):
                what = "has hooks" if _hooked(module) else "was given a forward of its own"
                return f"{name} {what}, which must see each call"
        return None

    def _modules_of(self, root: nn.Module) -> list[nn.Module | None]:
        state = root.aim
        assert isinstance(state, RootState)
        shelf = state.shelf
        own = [child for child in state._modules.values() if child is None or child is not shelf]
        others = [child for child in root._modules.values() if child is not state]
        return [*own, *others, *chain.from_iterable(map(dict.values, self._children))]

    def _unfit(self) -> str | None:
        """Return why calls of these parts cannot be recorded, or None."""
        for tensor in self.tensors:
            if is_sharded(tensor):
                return "its weights are sharded (FSDP2)"
            if type(tensor) not in _PLAIN:
                return f"a weight is a {type(tensor).__name__}, as of a quantized layer"
            if tensor.device != self.device:
                return f"its weights are on {self.device} and {tensor.device}"
        return None


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)


def surroundings(state: RootState, device: str) -> tuple[Any, ...]:
    """Return what is not of the model's parts and changes what a call computes.

    Args:
        state: The container of the root.
        device: Type of the model's device.
    """
    return (
        state.enabled,
        state.headless,
        state.num_frames,
        state.execution,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        torch._C._get_deterministic_algorithms(),
        *[read() for read in _CHOICES],
    )


# Which kernels PyTorch may choose.
_CHOICES: list[Callable[[], Any]] = [
    torch._C._get_flash_sdp_enabled,
    torch._C._get_mem_efficient_sdp_enabled,
    torch._C._get_math_sdp_enabled,
    torch._C._get_cudnn_sdp_enabled,
]


def signature(names: Sequence[str], values: Sequence[Any], device: torch.device) -> tuple[Any, ...] | str:
    """Return what a recording depends on of the arguments of a call, or why the call cannot be recorded.

    Args:
        names: Names of the arguments, or their places.
        values: The arguments.
        device: The model's device.
    """
    found: list[Any] = [tuple(names)]
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            if type(value) not in _PLAIN:
                return f"argument {name} is a {type(value).__name__}, and only a torch.Tensor is replaced in a graph"
            if value.device != device:
                return f"argument {name} is on {value.device}, and the model on {device}"
            if value.layout != torch.strided:
                return f"argument {name} is sparse"
            found.append((value.shape, value.stride(), value.dtype, value.requires_grad))
        elif isinstance(value, _CONSTANTS):
            found.append((type(value), value))
        else:
            return f"argument {name} is neither a tensor nor a constant, got {shown(value)}"
    return tuple(found)


# PyTorch 2.6 does not tell.
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def observed() -> bool:
    """Return whether a tool looks at or changes each operation of the code that runs now, and so must see it run."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.is_anomaly_enabled()
        or torch.autograd.forward_ad._current_level >= 0
        or _saved_tensors_hooks(False) is not None
    )


def named_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Return the names, or places, and the values of a call's arguments.

    Args:
        args: Those given by place.
        kwargs: Those given by name.
    """
    return [*map(str, range(len(args))), *kwargs], [*args, *kwargs.values()]


def describe(names: Sequence[str], values: Sequence[Any]) -> Iterator[str]:
    """Yield the arguments of a call as a table shows them.

    Args:
        names: Their names, or places.
        values: The arguments.
    """
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Mapping):
            yield from describe([f"{name}.{key}" for key in value], list(value.values()))
            continue
        text = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else shown(value)
        if isinstance(value, Tensor):
            text += f" {str(value.dtype).removeprefix('torch.')}"
        yield text if name.isdigit() else f"{name}={text}"
