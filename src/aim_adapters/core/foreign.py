"""Names in a model: ours, and those of other tools: DDP, FSDP, ``torch.compile``, activation checkpointing."""

from __future__ import annotations

from torch import Tensor, nn

# What other tools put around a module: the name under which theirs holds it, and of their classes.
WRAPPER_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The first two call what they hold with the same arguments, wherever it lies in a model.
_PASSING = ("_checkpoint_wrapped_module", "_orig_mod")
# Attributes by which the libraries of image models switch activation checkpointing on.
_CHECKPOINTS = ("grad_checkpointing", "gradient_checkpointing")
DISTRIBUTED_CLASSES = frozenset({"DistributedDataParallel", "DataParallel", "FSDPModule", "FullyShardedDataParallel"})
# Base classes of the layers of peft and of loralib.
_TUNER_CLASSES = frozenset({"BaseTunerLayer", "LoRALayer"})
FOREIGN_CLASSES = DISTRIBUTED_CLASSES | {"OptimizedModule", "CheckpointWrapper", "ScriptModule", "GraphModule"}


def is_own_name(name: str) -> bool:
    """Return whether a parameter's name is that of one of ours: no image model has a module named ``aim``."""
    return "aim" in name.split(".")  # see `require_wrappable`


def canonical_path(path: str) -> str:
    """Strip what DDP, FSDP, ``torch.compile`` and activation checkpointing put into a dotted path."""
    return ".".join(part for part in path.split(".") if part not in WRAPPER_PARTS)


def outermost_path(path: str) -> str:
    """Return the path of what other tools have put around the module at ``path``: what has to be called."""
    parts = path.split(".") if path else []
    while parts and parts[-1] in WRAPPER_PARTS - {"module"}:  # a child of that name may be anybody's
        parts.pop()
    return ".".join(parts)


def tuned_parameters(model: nn.Module) -> list[str]:
    """Return the names of parameters that train in layers by which another tool fine-tunes a model, such as LoRA.

    Args:
        model: Any module.
    """
    tuners = tuple(
        f"{path}."
        for path, module in model.named_modules()
        if _TUNER_CLASSES & {cls.__name__ for cls in type(module).__mro__}
    )
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (name.startswith(tuners) or ".lora" in f".{name}".lower())
    ]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded over processes."""
    return hasattr(tensor, "full_tensor")


def inside(module: nn.Module) -> nn.Module:
    """Return what activation checkpointing or ``torch.compile`` was put around, or the module itself."""
    return _layers(module)[-1]


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return what activation checkpointing and ``torch.compile`` have put around a module, from outside, and it."""
    layers = [module]
    while (name := next((name for name in _PASSING if name in layers[-1]._modules), None)) is not None:
        layers.append(layers[-1].get_submodule(name))
    return layers


def runs_again_compiled(root: nn.Module, path: str) -> bool:
    """Return whether a block is compiled by itself, and activation checkpointing runs it again in the backward pass.

    Args:
        root: The image model.
        path: Path of the block.
    """
    layers = _layers(root.get_submodule(path))
    if all(module._compiled_call_impl is None and "_orig_mod" not in module._modules for module in layers):
        return False
    parts = path.split(".")
    holders = [root.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    return any("_checkpoint_wrapped_module" in module._modules for module in layers) or any(
        getattr(module, switch, False) for module in (*holders, layers[-1]) for switch in _CHECKPOINTS
    )
