"""The keys of an adapter are the same whatever wraps the model, and so are the values, gathered where sharded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from tests.backbones.cases import assert_same, process_group, snapshot
from tests.tiny import base, run, trained, wrapped

__all__ = ["process_group"]


def checkpointed(model: nn.Module) -> nn.Module:
    apply_activation_checkpointing(model, check_fn=lambda module: module in list(model.blocks))
    return model


def sharded(model: nn.Module) -> nn.Module:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this version of torch cannot run FSDP2 on a CPU")
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_by_block(model: nn.Module) -> nn.Module:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    return model


def averaged(model: nn.Module) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    return average


def averaged_by_timm(model: nn.Module) -> nn.Module:
    average = ModelEmaV3(model, decay=0.5)
    average.update(model)
    return average


def distributed(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


HOLDERS: dict[str, list[Callable[[nn.Module], Any]]] = {
    "nothing": [],
    "compile": [compiled],
    "compile in place": [compiled_in_place],
    "compile by block": [compiled_by_block],
    "checkpointing": [checkpointed],
    "DDP": [distributed],
    "FSDP2": [sharded],
    "EMA of torch": [averaged],
    "EMA of timm": [averaged_by_timm],
    "a copy": [copy.deepcopy],
    "a larger model": [
        lambda model: nn.ModuleDict({"video": nn.Sequential(model), "text": nn.Linear(2, 2).requires_grad_(False)})
    ],
    "compile, checkpointing": [checkpointed, compiled],
    "DDP, compile, checkpointing": [checkpointed, compiled, distributed],
    "FSDP2, checkpointing": [checkpointed, sharded],
    "compile, FSDP2, checkpointing": [checkpointed, sharded, compiled],
    "EMA of DDP": [distributed, averaged],
}


def held(model: nn.Module, holder: str) -> nn.Module:
    for wrap in HOLDERS[holder]:
        model = wrap(model)
    return model


@pytest.mark.parametrize("holder", HOLDERS)
def test_keys_and_values_are_the_same_through_any_holder(holder: str, process_group: None, tmp_path: Path) -> None:
    model = trained()
    aim.add_adapter(model, "other", aim.AIMConfig(num_frames=2, num_classes=3))
    expected = {
        name: {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model, name=name).items()}
        for name in ("default", "other")
    }
    out = run(model)
    model = held(model, holder)
    for name, state in expected.items():
        found = aim.adapter_state_dict(model, name=name)
        assert list(found) == list(state)
        assert all(type(tensor) is torch.Tensor and torch.equal(tensor, state[key]) for key, tensor in found.items())
        saved = load_file(aim.save_adapters(model, tmp_path / name, name=name) / "adapter_model.safetensors")
        assert saved.keys() == state.keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in saved.items())
    fresh = base()
    aim.load_adapters(fresh, tmp_path / "default")
    assert torch.equal(run(fresh), out)


@pytest.mark.parametrize("holder", HOLDERS)
def test_values_go_in_through_any_holder(holder: str, process_group: None, tmp_path: Path) -> None:
    aim.save_adapters(trained(), tmp_path)
    expected = aim.adapter_state_dict(trained())
    for load in (
        lambda model: aim.load_adapters(model, tmp_path),
        lambda model: aim.load_adapter_state_dict(model, expected),
    ):
        model = held(wrapped(), holder)
        assert not any(load(model))
        found = aim.adapter_state_dict(model)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda state: {**state, "head.bias": state["head.bias"].to_sparse()}, "'head.bias' must be a dense tensor"),
        (lambda state: {**state, "head.bias": state["head.bias"].to("meta")}, "'head.bias' must be a dense tensor"),
        (lambda state: {**state, 1: torch.zeros(1)}, "state must map names to tensors"),
        (list, "state must map names to tensors"),
        (lambda state: None, "state must map names to tensors, got None"),
    ],
)
def test_what_is_no_state_dict_is_refused_before_anything_is_copied(spoil: Callable[..., Any], match: str) -> None:
    model, state = wrapped(), aim.adapter_state_dict(trained())
    before = copy.deepcopy(aim.adapter_state_dict(model))
    with pytest.raises(CheckpointError, match=match):
        aim.load_adapter_state_dict(model, spoil(state))
    assert all(torch.equal(tensor, before[key]) for key, tensor in aim.adapter_state_dict(model).items())


def test_state_is_detached_and_shares_memory() -> None:
    model = trained()
    state = aim.adapter_state_dict(model)
    assert not any(tensor.requires_grad for tensor in state.values())
    state["temporal_embedding"].fill_(3)
    assert (model.aim.temporal_embedding == 3).all()


def test_refused_state_dict_changes_nothing() -> None:
    model = wrapped()
    state = aim.adapter_state_dict(trained())
    for wrong in (
        {**state, "extra": torch.zeros(1)},
        {**state, "norm.weight": torch.zeros(3)},
        {**state, "norm.bias": torch.zeros(32, dtype=torch.int32)},
        {**state, "norm.bias": [0.0] * 32},
        {key: tensor for key, tensor in state.items() if key != "norm.bias"},
    ):
        before = snapshot(model)
        with pytest.raises(CheckpointError, match=r"extra|norm\."):
            aim.load_adapter_state_dict(model, wrong)  # type: ignore[arg-type]
        assert_same(before, snapshot(model))


def test_report_is_named_and_empty_when_all_is_well() -> None:
    model = wrapped()
    report = aim.load_adapter_state_dict(model, aim.adapter_state_dict(trained()))
    assert report == ((), (), ())
    assert report._fields == ("missing", "unexpected", "mismatched")
    assert torch.equal(run(model), run(trained()))


def test_tensors_are_cast_and_copied() -> None:
    model, state = wrapped(), {key: t.double() for key, t in aim.adapter_state_dict(trained()).items()}
    parameters = [id(p) for p in aim.trainable_parameters(model)]
    aim.load_adapter_state_dict(model, state)
    for tensor in state.values():
        tensor.zero_()
    assert [id(p) for p in aim.trainable_parameters(model)] == parameters
    assert torch.equal(run(model), run(trained()))
