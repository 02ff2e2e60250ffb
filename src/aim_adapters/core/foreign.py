"""Names that other tools put into a model: DDP, FSDP, ``torch.compile``, activation checkpointing."""

from __future__ import annotations

from torch import nn

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


def inside(module: nn.Module) -> nn.Module:
    """Return what activation checkpointing or ``torch.compile`` was put around, or the module itself."""
    while (
        inner := next((module._modules.get(name) for name in _PASSING if name in module._modules), None)
    ) is not None:
        module = inner
    return module


def runs_again_compiled(root: nn.Module, path: str) -> bool:
    """Return whether a block is compiled by itself, and activation checkpointing runs it again in the backward pass.

    Args:
        root: The image model.
        path: Path of the block.
    """
    block = root.get_submodule(path)
    chain = [block]  # what was put around the block, from outside, and the block
    while (part := next((name for name in _PASSING if name in block._modules), None)) is not None:
        block = block.get_submodule(part)
        chain.append(block)
    if all(module._compiled_call_impl is None and "_orig_mod" not in module._modules for module in chain):
        return False
    parts = path.split(".")
    holders = [root.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    return any("_checkpoint_wrapped_module" in module._modules for module in chain) or any(
        getattr(module, switch, False) for module in (*holders, block) for switch in _CHECKPOINTS
    )
