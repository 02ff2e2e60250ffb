"""Models in a state that a call cannot work on are refused before anything is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from aim_adapters.core.guards import require_bare, require_local, require_memory
from aim_adapters.errors import StateError
from tests.backbones.cases import process_group
from tests.tiny import FRAMES as T
from tests.tiny import base, wrapped

__all__ = ["process_group"]


def test_an_attribute_of_our_name_is_refused() -> None:
    model = base()
    model.blocks[0].aim = nn.Identity()
    with pytest.raises(aim.UnsupportedModelError, match=r"'blocks\.0'"):
        aim.wrap_image_model(model, T)


def test_a_forward_of_its_own_is_refused() -> None:
    model = base()
    block = model.blocks[1]
    block.forward = block.forward
    with pytest.raises(StateError, match=r"blocks\.1 is given a forward of its own"):
        aim.wrap_image_model(model, T)
    del block.forward
    aim.wrap_image_model(model, T)
    model.blocks[1].forward = model.blocks[1].forward
    with pytest.raises(StateError, match="forward of its own"):
        aim.unwrap_image_model(model)


def test_wrapping_in_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(StateError, match="inference_mode"):
        wrapped()


def test_models_without_memory_are_refused() -> None:
    weight = torch.zeros(2)
    require_memory([weight])
    with pytest.raises(StateError, match="on the meta device, without weights; build it on a real device first"):
        require_memory([weight, torch.empty(2, device="meta")])


def test_what_other_tools_hold_is_named_with_its_place(process_group: None) -> None:
    model = nn.Sequential(wrapped(), nn.Linear(2, 2))
    require_bare(model, "this_call", "do that")
    require_local(model, "this_call", "do that")
    compiled = nn.Sequential(torch.compile(model[0], backend="eager"), nn.Linear(2, 2))
    require_local(compiled, "this_call", "do that")  # which may be compiled
    with pytest.raises(StateError, match=r"^this_call: 0 is a OptimizedModule; do that$"):
        require_bare(compiled, "this_call", "do that")
    model[1].compile(backend="eager")
    require_local(model, "this_call", "do that")
    with pytest.raises(StateError, match=r"^this_call: 1 is compiled in place; do that$"):
        require_bare(model, "this_call", "do that")
    for require in (require_bare, require_local):
        with pytest.raises(StateError, match=r"^this_call: the model is a DistributedDataParallel; do that$"):
            require(DistributedDataParallel(wrapped()), "this_call", "do that")
        with pytest.raises(StateError, match=r"^this_call: 0 is a FSDPModule; do that$"):
            require(nn.Sequential(fully_shard(wrapped())), "this_call", "do that")
