"""Names that other tools put into a model: DDP, FSDP, ``torch.compile``, activation checkpointing."""

from __future__ import annotations

from torch import nn

# What other tools put around a module: the name under which theirs holds it, and of their classes.
WRAPPER_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# The first two call what they hold with the same arguments, wherever it lies in a model.
_PASSING = ("_checkpoint_wrapped_module", "_orig_mod")
DISTRIBUTED_CLASSES = frozenset({"DistributedDataParallel", "DataParallel", "FSDPModule", "FullyShardedDataParallel"})
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


def inside(module: nn.Module) -> nn.Module:
    """Return what activation checkpointing or ``torch.compile`` was put around, or the module itself."""
    while (
        inner := next((module._modules.get(name) for name in _PASSING if name in module._modules), None)
    ) is not None:
        module = inner
    return module
