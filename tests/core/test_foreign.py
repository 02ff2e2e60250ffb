"""Names that other tools put into a model are known in one place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from aim_adapters.core.foreign import DISTRIBUTED_CLASSES, FOREIGN_CLASSES, canonical_path, inside, outermost_path
from tests.backbones.cases import process_group

__all__ = ["process_group"]


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("", ""),
        ("blocks.0.mlp", "blocks.0.mlp"),
        ("module", ""),
        ("module._orig_mod.blocks.0", "blocks.0"),
        ("_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.mlp._orig_mod.fc1", "blocks.0.mlp.fc1"),
        ("modules.0", "modules.0"),
        ("my_orig_mod.x", "my_orig_mod.x"),
    ],
)
def test_canonical_path_names_what_the_image_model_holds(path: str, canonical: str) -> None:
    assert canonical_path(path) == canonical


@pytest.mark.parametrize(
    ("path", "outermost"),
    [
        ("", ""),
        ("visual", "visual"),
        ("_orig_mod", ""),
        ("visual._orig_mod", "visual"),
        ("visual._fsdp_wrapped_module._checkpoint_wrapped_module", "visual"),
        ("module._orig_mod", "module"),  # DDP's arguments are those of what it holds, but a child's name is anybody's
        ("model.module", "model.module"),
        ("_orig_mod.visual", "_orig_mod.visual"),
    ],
)
def test_outermost_path_is_what_has_to_be_called(path: str, outermost: str) -> None:
    assert outermost_path(path) == outermost


def test_paths_of_real_wrappers_are_canonical(process_group: None) -> None:
    plain = nn.Sequential(block(), block())
    expected = [name for name, _ in plain.named_parameters()]
    checkpointed = nn.Sequential(checkpoint_wrapper(block()), block())
    compiled = nn.Sequential(torch.compile(block(), backend="eager"), block())
    for model in (plain, checkpointed, compiled, torch.compile(plain, backend="eager"), DistributedDataParallel(plain)):
        assert [canonical_path(name) for name, _ in model.named_parameters()] == expected


def test_inside_is_the_image_models_own_module() -> None:
    own = block()
    for held in (own, checkpoint_wrapper(own), torch.compile(own, backend="eager")):
        assert inside(held) is own
    assert inside(torch.compile(checkpoint_wrapper(own), backend="eager")) is own


def test_a_child_that_somebody_called_module_is_not_entered() -> None:
    holder = nn.Module()
    holder.module = block()
    assert inside(holder) is holder


def test_names_of_classes_are_those_of_the_tools(process_group: None) -> None:
    for model in (DistributedDataParallel(block()), fully_shard(block())):
        assert {cls.__name__ for cls in type(model).__mro__} & DISTRIBUTED_CLASSES
    for model in (
        torch.compile(block(), backend="eager"),
        checkpoint_wrapper(block()),
        torch.fx.symbolic_trace(block()),
    ):
        names = {cls.__name__ for cls in type(model).__mro__}
        assert names & FOREIGN_CLASSES and not names & DISTRIBUTED_CLASSES
