"""Several adapters take turns on one image model; each stays what it is, and the image model is there once."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from aim_adapters.core import install
from aim_adapters.errors import ConfigError, StateError
from tests.backbones.cases import assert_same, process_group, snapshot
from tests.several import CONFIGS, NAMES, alone, out, several
from tests.tiny import FRAMES, base, run, wrapped

__all__ = ["process_group"]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_among_others_is_what_it_is_alone(name: str) -> None:
    model, single = several(), alone(name)
    aim.set_adapter(model, name)
    assert torch.equal(out(model, name), out(single, name))
    assert aim.count_parameters(model) == aim.count_parameters(single)
    assert list(aim.adapter_state_dict(model)) == list(aim.adapter_state_dict(single))
    # Under the names that one adapter alone has.
    names = [key for key, _ in model.named_parameters() if ".idle." not in f".{key}"]
    assert names == [key for key, _ in single.named_parameters()]


def test_settings_are_listed_by_name_with_the_running_one_first() -> None:
    model = several()
    assert list(aim.list_adapters(model)) == ["default", "same", "other"]
    assert aim.list_adapters(model)["other"] == CONFIGS["other"]
    aim.set_adapter(model, "other")
    assert next(iter(aim.list_adapters(model))) == "other"
    assert set(aim.list_adapters(model)) == set(NAMES)


def test_taking_turns_changes_nothing() -> None:
    model = several()
    before = snapshot(model)
    for name in ("other", "same", "other", "other", "default"):
        aim.set_adapter(model, name)
    assert_same(before, snapshot(model))


def test_parameters_keep_their_identity_and_so_their_optimizer() -> None:
    model = several()
    aim.set_adapter(model, "same")
    mine = aim.trainable_parameters(model)
    optimizer = torch.optim.SGD(mine, lr=0.1)
    aim.set_adapter(model, "default")
    others = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model).items()}
    aim.set_adapter(model, "same")
    assert [id(p) for p in aim.trainable_parameters(model)] == [id(p) for p in mine]
    before = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model).items()}
    model.train()(torch.randn(2, FRAMES, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    after = aim.adapter_state_dict(model)
    assert all(not torch.equal(after[key], value) for key, value in before.items() if "temporal.up" in key)
    assert all(torch.equal(aim.adapter_state_dict(model, name="default")[key], value) for key, value in others.items())


def test_what_trains_belongs_to_the_adapter_not_to_running() -> None:
    model = several()
    aim.set_adapter(model, "same")
    chosen = model.blocks[0].aim.spatial.requires_grad_(False)
    frozen = {id(p) for p in chosen.parameters()}
    aim.set_adapter(model, "default")
    assert not any(p.requires_grad for p in chosen.parameters())
    # Trainers that take whatever requires a gradient, and DDP, find only what runs.
    assert [id(p) for p in model.parameters() if p.requires_grad] == [id(p) for p in aim.trainable_parameters(model)]
    assert all(p.requires_grad for p in model.aim.parameters(recurse=False))
    aim.set_adapter(model, "same")
    assert {id(p) for p in aim.trainable_parameters(model)} & frozen == set()
    assert len(aim.trainable_parameters(model)) == len(aim.adapter_state_dict(model)) - len(frozen)
    for parameter in aim.trainable_parameters(model):
        parameter.requires_grad_(False)
    aim.set_adapter(model, "default")
    aim.set_adapter(model, "same")
    assert aim.trainable_parameters(model) == []


@pytest.mark.parametrize("mode", [True, False])
def test_modes_are_those_of_a_model_with_one_adapter(mode: bool) -> None:
    model, single = several(), alone("other")
    model.train(mode)
    aim.set_adapter(model, "other")
    single.train(mode)
    modes = {key: module.training for key, module in model.named_modules() if ".idle" not in f".{key}"}
    assert modes == {key: module.training for key, module in single.named_modules()}


def test_image_model_is_there_once() -> None:
    model, plain = several(), base()
    own = {key: parameter for key, parameter in model.named_parameters() if ".aim." not in f".{key}"}
    assert own.keys() == dict(plain.named_parameters()).keys()
    total = sum(p.numel() for p in model.parameters())
    adapters = sum(t.numel() for name in NAMES for t in aim.adapter_state_dict(model, name=name).values())
    assert total == adapters + sum(p.numel() for p in plain.parameters())
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == len(list(model.parameters()))


@pytest.mark.parametrize("running", NAMES)
def test_unwrapping_drops_them_all(running: str) -> None:
    model = base()
    before = snapshot(model)
    aim.wrap_image_model(model, FRAMES)
    for name, config in CONFIGS.items():
        aim.add_adapter(model, name, config)
    aim.set_adapter(model, running)
    aim.unwrap_image_model(model)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_carry_them_all(how: str) -> None:
    model = several()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name in NAMES:
        aim.set_adapter(other, name)
        assert torch.equal(out(other, name), out(alone(name), name))


def test_whole_state_dict_and_dtype_reach_idle_ones() -> None:
    model, fresh = several(), wrapped()
    for name, config in CONFIGS.items():
        aim.add_adapter(fresh, name, config)
    fresh.load_state_dict(model.state_dict())
    aim.set_adapter(fresh, "other")
    assert torch.equal(out(fresh, "other"), out(alone("other"), "other"))
    fresh.double()
    assert {t.dtype for name in NAMES for t in aim.adapter_state_dict(fresh, name=name).values()} == {torch.float64}


def test_base_checkpoint_still_loads_strictly() -> None:
    model = several()
    model.load_state_dict({key: tensor + 1 for key, tensor in base().state_dict().items()})
    for name in NAMES:
        state = aim.adapter_state_dict(model, name=name)
        assert all(torch.equal(state[key], value) for key, value in aim.adapter_state_dict(alone(name)).items())


def test_compiled_model_does_not_compile_again_for_the_same_settings() -> None:
    model = several()
    expected = {name: out(alone(name), name) for name in NAMES}
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for name in ("default", "same", "default", "same"):
        aim.set_adapter(compiled, name)
        torch.testing.assert_close(out(compiled, name), expected[name])
    assert counter.frame_count == 1
    aim.set_adapter(compiled, "other")
    torch.testing.assert_close(out(compiled, "other"), expected["other"])
    assert counter.frame_count == 2
    aim.set_adapter(compiled, "default")
    torch.testing.assert_close(out(compiled, "default"), expected["default"])
    assert counter.frame_count == 2


def test_checkpointed_activations_may_be_there() -> None:
    model = several()
    apply_activation_checkpointing(model, check_fn=lambda module: module in list(model.blocks))
    for name in ("other", "same"):
        aim.set_adapter(model, name)
        assert torch.equal(out(model, name), out(alone(name), name))


def test_frames_change_for_the_running_one_alone() -> None:
    model = several()
    with pytest.warns(UserWarning, match="interpolated from 4 to 8 frames"):
        aim.set_num_frames(model, 8)
    assert {name: config.num_frames for name, config in aim.list_adapters(model).items()} == {
        "default": 8, "same": 4, "other": 2,
    }  # fmt: skip
    aim.set_adapter(model, "same")
    assert torch.equal(run(model), run(alone("same")))


# Refusals


@pytest.mark.parametrize("name", ["", "a.b", "train", "forward", 3, None])
def test_names_that_a_module_cannot_hold_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="an adapter's name must be a string without dots"):
        aim.add_adapter(wrapped(), name, CONFIGS["same"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: aim.set_adapter(m, "absent"), ConfigError, "no adapter is named 'absent'; this model has 'default'"),
        (lambda m: aim.delete_adapter(m, "absent"), ConfigError, "no adapter is named 'absent'"),
        (lambda m: aim.delete_adapter(m, "default"), StateError, "'default' is the adapter that runs"),
        (lambda m: aim.add_adapter(m, "same", CONFIGS["same"]), ConfigError, "an adapter is named 'same' already"),
        (lambda m: aim.add_adapter(m, "new", {"num_frames": 4}), ConfigError, "must be an AIMConfig, got dict"),
        (
            lambda m: aim.add_adapter(m, "new", aim.AIMConfig(num_frames=4, layers=(9,))),
            ConfigError,
            "layers names block 9",
        ),
        (lambda m: aim.save_adapters(m, "never_made", name="absent"), ConfigError, "no adapter is named 'absent'"),
        (lambda m: aim.adapter_state_dict(m, name="absent"), ConfigError, "no adapter is named 'absent'"),
        (lambda m: aim.load_adapter_state_dict(m, {}, name="absent"), ConfigError, "no adapter is named 'absent'"),
    ],
)
def test_refusals_change_nothing(call: Callable[[nn.Module], object], error: type[Exception], message: str) -> None:
    model = several()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    assert_same(before, snapshot(model))
    assert not Path("never_made").exists()


@pytest.mark.parametrize(
    "call",
    [
        aim.list_adapters,
        lambda m: aim.set_adapter(m, "default"),
        lambda m: aim.delete_adapter(m, "default"),
        lambda m: aim.add_adapter(m, "new", CONFIGS["same"]),
        lambda m: aim.average_adapters(m, ["a", "b"], into="c"),
    ],
)
def test_what_is_not_wrapped_is_refused(call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(StateError, match="is not wrapped"):
        call(base())


@pytest.mark.parametrize("holder", ["ddp", "fsdp"])
def test_distributed_models_are_refused(holder: str, process_group: None) -> None:
    model = several()
    held = DistributedDataParallel(model) if holder == "ddp" else fully_shard(model)
    for call in (
        lambda: aim.set_adapter(held, "same"),
        lambda: aim.add_adapter(held, "new", CONFIGS["same"]),
        lambda: aim.delete_adapter(held, "same"),
    ):
        with pytest.raises(StateError, match="give the model its adapters and choose one first"):
            call()


def test_ddp_trains_what_runs_beside_idle_ones(process_group: None) -> None:
    model = several().train()
    held = DistributedDataParallel(model)  # complains of parameters that get no gradient
    for _ in range(2):
        held(torch.randn(2, FRAMES, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in aim.trainable_parameters(model))


def test_deleting_frees_the_name_and_the_memory() -> None:
    model = several()
    parameters = len(list(model.parameters()))
    gone = len(aim.adapter_state_dict(model, name="other"))
    aim.delete_adapter(model, "other")
    assert list(aim.list_adapters(model)) == ["default", "same"]
    assert len(list(model.parameters())) == parameters - gone
    aim.delete_adapter(model, "same")
    assert sorted(model.state_dict()) == sorted(wrapped().state_dict())


def test_disabled_adapters_stay_as_they_are() -> None:
    model = several().train()
    model.blocks[1].aim.requires_grad_(False)
    before = snapshot(model)
    plain = base()
    with aim.disable_adapters(model):
        torch.testing.assert_close(run(model.eval()), run_frames(plain))
        model.train()
        with pytest.raises(StateError, match="adapters are disabled; leave disable_adapters first"):
            aim.set_adapter(model, "same")
    assert_same(before, snapshot(model))


def run_frames(model: nn.Module) -> Tensor:
    video = torch.randn(2, FRAMES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(video.flatten(0, 1)).unflatten(0, (2, FRAMES)).mean(1)


def test_inference_mode_makes_no_parameters() -> None:
    model = wrapped()
    with torch.inference_mode(), pytest.raises(StateError, match="inference_mode"):
        aim.add_adapter(model, "new", CONFIGS["same"])


def test_adding_takes_nothing_out_and_starts_from_the_image_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be running the model."""
    model = several()
    monkeypatch.setattr(install, "remove", lambda root: pytest.fail("the adapters were taken out"))
    aim.add_adapter(model, "new", CONFIGS["same"])
    state = aim.adapter_state_dict(model, name="new")
    assert torch.equal(state["norm.weight"], base().norm.weight)
    assert torch.equal(state["head.weight"], base().head.weight)
    assert list(state) == list(aim.adapter_state_dict(model, name="same"))


def test_idle_adapters_have_the_models_mode() -> None:
    model = several().eval()
    aim.set_adapter(model, "same")
    aim.add_adapter(model, "new", CONFIGS["same"])
    assert not any(module.training for module in model.modules())
