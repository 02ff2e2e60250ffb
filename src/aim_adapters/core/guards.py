"""Checks that refuse a model in a state that a call cannot work on, before anything is changed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from aim_adapters.config import AIMConfig
from aim_adapters.core.foreign import DISTRIBUTED_CLASSES, FOREIGN_CLASSES, is_sharded
from aim_adapters.core.lookup import is_wrapped
from aim_adapters.core.patching import foreign_forward
from aim_adapters.core.state import AIMState, RootState
from aim_adapters.errors import AIMError, ConfigError, StateError, UnsupportedModelError, warn


def require_wrappable(model: nn.Module) -> None:
    """Refuse what cannot be wrapped, whatever kind of model it is.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is wrapped already, or another tool has wrapped, compiled or sharded it.
        UnsupportedModelError: It uses our names, or parametrizations.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if torch.is_inference_mode_enabled():
        raise StateError("new parameters made under torch.inference_mode() cannot train; wrap the model outside of it")
    if is_wrapped(model):
        raise StateError(
            f"this {type(model).__name__} is wrapped already; call unwrap_image_model(model) first to wrap it anew"
        )
    require_bare(model, "wrap_image_model", "wrap the bare model first, then compile, shard or distribute it")
    taken = [name for name, module in model.named_modules() if hasattr(module, "aim") or hasattr(module, "aim_shared")]
    if taken:
        raise UnsupportedModelError(f"the model has an attribute named 'aim' of its own, at {taken[0] or 'its root'!r}")
    parametrized = [name for name, module in model.named_modules() if is_parametrized(module)]
    if parametrized:
        raise UnsupportedModelError(
            f"{parametrized[0]!r} is parametrized (torch.nn.utils.parametrize); remove the parametrization first, or "
            "wrap before it is applied"
        )


def require_memory(tensors: Iterable[Tensor]) -> None:
    """Refuse a model without weights: values copied into it are lost, and it has none to save.

    Raises:
        StateError: A tensor is on the meta device.
    """
    if any(tensor.is_meta for tensor in tensors):
        raise StateError(
            "the model is on the meta device, without weights; build it on a real device first"
            ", or take it back from accelerate's offloading with accelerate.hooks.remove_hook_from_submodules(model)"
        )


@contextmanager
def enough_memory(config: AIMConfig) -> Iterator[None]:
    """Name the settings if there is no memory for what they ask for.

    Args:
        config: The settings of the adapter that the block builds.

    Raises:
        ConfigError: PyTorch could not allocate a tensor.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, AIMError) or "alloc" not in str(error):
            raise
        raise ConfigError(
            f"no memory for an adapter of num_frames={config.num_frames}, bottleneck={config.bottleneck} and "
            f"num_classes={config.num_classes}: {error!s:.300}"
        ) from error


def require_bare(model: nn.Module, call: str, fix: str) -> None:
    """Refuse modules that another tool has wrapped, compiled or sharded.

    Args:
        model: Any module.
        call: Name of the call, for the message.
        fix: What to do instead.

    Raises:
        StateError: Such a module is found.
    """
    require_local(model, call, fix, kinds=FOREIGN_CLASSES)
    for name, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or foreign_forward(module) is not None:
            # A forward on the instance would hide that of the class, which is the one that changes.
            what = "compiled in place" if compiled else "given a forward of its own (by accelerate, for instance)"
            raise StateError(f"{call}: {name or 'the model'} is {what}; {fix}")


def require_local(model: nn.Module, call: str, fix: str, *, kinds: AbstractSet[str] = DISTRIBUTED_CLASSES) -> None:
    """Refuse modules that another tool has sharded or distributed; compiled ones pass.

    Args:
        model: Any module.
        call: Name of the call, for the message.
        fix: What to do instead.
        kinds: Names of the refused classes.

    Raises:
        StateError: Such a module is found.
    """
    for name, module in model.named_modules():
        if found := {cls.__name__ for cls in type(module).__mro__} & kinds:
            raise StateError(f"{call}: {name or 'the model'} is a {min(found)}; {fix}")


def warn_idle_taps(config: AIMConfig) -> None:
    """Warn of a convolution that is wider than clips can fill, of which a part would never train.

    Args:
        config: The settings of a new adapter.
    """
    frames, kernel = config.attention_frames, config.conv_kernel
    if config.temporal != "attention" and kernel > (most := 2 * frames - 1):
        warn(
            f"conv_kernel={kernel}: the frames of a clip ({frames}) are at most {frames - 1} apart, so no more than "
            f"{most} taps can meet one; the other {kernel - most} never train"
        )


def can_train(tensor: Tensor) -> bool:
    """Return whether a parameter can train: neither quantized nor of another kind that has no gradients.

    Args:
        tensor: Any parameter; one that FSDP2 has sharded can.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) or is_sharded(tensor)
    return plain and tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def require_recorded(state: RootState, container: AIMState, x: Tensor) -> None:
    """Refuse re-entrant checkpointing that would leave a container of ours without gradients.

    It runs a module without recording, and records it in the backward pass only if what it read requires a gradient.
    Once such tokens were seen, all that follows is recorded.

    Args:
        state: The container of the root.
        container: What is about to run.
        x: The tokens that it reads.

    Raises:
        StateError: Its parameters train, and would get no gradients.
    """
    recording, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
    if recording and compiling:
        return  # before a graph depends on the call
    call = state.call
    if call is None or not call.unrecorded or not (compiling or call.thread in (None, threading.get_ident())):
        return
    if x.requires_grad:
        if not compiling:
            state.call = call._replace(unrecorded=False)
    elif not recording and any(parameter.requires_grad for parameter in container.parameters()):
        place = container.key.rstrip(".") or "the copy of the final norm"
        raise StateError(
            f"re-entrant checkpointing gives {place} no gradients, as nothing in front of it requires one; "
            "checkpoint with use_reentrant=False (timm.layers.set_reentrant_ckpt(False), "
            'gradient_checkpointing_enable({"use_reentrant": False})), or let the video require a gradient; '
            "to evaluate, run the model under torch.no_grad()"
        )
