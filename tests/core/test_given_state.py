"""A state dict holds an adapter whole or not at all; what is missing is said, and nothing is copied by halves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from tests.backbones.cases import scramble
from tests.tiny import FRAMES, base, trained, wrapped

State = dict[str, Tensor]


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def ours(state: State) -> list[str]:
    return [name for name in state if "aim" in name.split(".")]


def assert_unchanged(model: nn.Module, before: State) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def refuse(model: nn.Module, state: dict[str, Any], match: str) -> None:
    """Check that a state is refused, strict or not, copied or assigned, and nothing of it is loaded."""
    before = state_of(model)
    for strict in (True, False):
        for assign in (True, False):
            with pytest.raises(CheckpointError, match=match):
                model.load_state_dict(copy.deepcopy(state), strict=strict, assign=assign)
            assert_unchanged(model, before)


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "x.aim."])
@pytest.mark.parametrize("which", ["all", "ours", "theirs"])
def test_wrong_prefix_reports_what_is_missing(prefix: str, which: str) -> None:
    model = wrapped()
    before = state_of(model)
    given = state_of(trained())
    renamed = [name for name in given if which == "all" or (which == "ours") == (name in ours(given))]
    state = {(prefix if name in renamed else "") + name: tensor for name, tensor in given.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert sorted(missing) == sorted(renamed)
    assert sorted(unexpected) == sorted(prefix + name for name in renamed)
    if which == "all":
        assert_unchanged(model, before)
    with pytest.raises(RuntimeError, match="Missing key"):
        wrapped().load_state_dict(state)


def test_adapter_under_renamed_blocks_is_refused_though_nothing_of_it_is_found() -> None:
    state = {name.replace("blocks.", "encoder.layer."): tensor for name, tensor in state_of(trained()).items()}
    refuse(wrapped(), state, r"it holds \d+ of \d+ tensors of the adapter that runs.*AdapterCallback\(\)")
    only_blocks = {"components": ("spatial",), "train_norm": False, "num_classes": 0}
    state = {
        name.replace("blocks.", "encoder.layer."): tensor for name, tensor in state_of(trained(**only_blocks)).items()
    }
    refuse(wrapped(**only_blocks), state, r"under other names, such as encoder\.layer\.0\.aim.*AdapterCallback\(\)")


def test_base_checkpoint_without_its_head_reports_the_head_alone() -> None:
    state = state_of(base())
    del state["head.weight"], state["head.bias"]
    assert wrapped().load_state_dict(state, strict=False).missing_keys == ["head.weight", "head.bias"]


def test_little_of_a_base_checkpoint_is_no_base_checkpoint() -> None:
    state = {name: tensor for name, tensor in state_of(base()).items() if name.startswith("head.")}
    model = wrapped()
    assert set(ours(state_of(model))) < set(model.load_state_dict(state, strict=False).missing_keys)


@pytest.mark.parametrize("keep", [1, 5, -1])
def test_part_of_an_adapter_is_refused(keep: int) -> None:
    state = state_of(trained())
    for name in ours(state)[keep:]:
        del state[name]
    refuse(wrapped(), state, r"Missing key.*of \d+ tensors of the adapter that runs, but not .*aim\.")


def test_adapters_without_the_base_load() -> None:
    source, model = trained(), wrapped()
    state = {name: tensor for name, tensor in state_of(source).items() if name in ours(state_of(source))}
    assert not set(model.load_state_dict(state, strict=False).missing_keys) & set(ours(state_of(model)))
    assert_unchanged(model, state_of(source))


@pytest.mark.parametrize("arguments", [{}, {"components": ()}, {"num_classes": 3}, {"layers": [1]}])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_keys_of_adapter_state_dict_are_refused_by_name(arguments: dict[str, Any], place: str) -> None:
    state: State = aim.adapter_state_dict(trained(**arguments))
    model: nn.Module = wrapped(**arguments)
    if place == "inside":
        model, state = nn.ModuleDict({"net": model}), {f"net.{key}": tensor for key, tensor in state.items()}
    refuse(model, state, r"keys of adapter_state_dict, such as .*aim\.load_adapter_state_dict\(model, state\)")


def test_whole_model_refuses_before_its_text_tower_is_changed() -> None:
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=16, heads=2, layers=1)
    model = aim.wrap_image_model(scramble(open_clip.CLIP(16, vision, text)), FRAMES)
    state = {name: tensor + 1 for name, tensor in state_of(model).items()}
    refuse(model, aim.adapter_state_dict(model) | {"logit_scale": torch.ones(())}, "keys of adapter_state_dict")
    for name in [name for name in ours(state) if ".0." in name]:
        del state[name]
    refuse(model, state, "Missing key")


def test_each_of_several_adapters_is_loaded_whole_or_not_at_all() -> None:
    model = trained()
    aim.add_adapter(model, "second", aim.AIMConfig(num_frames=2, components=("joint",)))
    second = [name for name in ours(state_of(model)) if name.startswith("aim.idle.second.")]
    state = {name: tensor + 1 for name, tensor in state_of(trained()).items()}  # from before it was added
    assert sorted(model.load_state_dict(state, strict=False).missing_keys) == sorted(second)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    refuse(model, {**state, second[0]: model.state_dict()[second[0]]}, "tensors of the adapter 'second'")


def checkpointed(model: nn.Module) -> nn.Module:
    apply_activation_checkpointing(model, check_fn=lambda m: hasattr(m, "aim") and hasattr(m.aim, "temporal"))
    return model


def compiled(model: Any) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


@pytest.mark.parametrize("hold", [checkpointed, compiled], ids=["checkpointed", "compiled"])
def test_base_checkpoint_loads_strictly_inside_of_other_tools(hold: Callable[[nn.Module], nn.Module]) -> None:
    model, fresh = hold(trained()), hold(base()) if hold is compiled else base()
    before = state_of(model)
    state = {name: tensor + 1 for name, tensor in state_of(fresh).items()}
    model.load_state_dict(state)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in ours(before))


def test_set_model_state_dict_does_not_hide_what_is_missing() -> None:
    """It adds the model's own parameters to a full state dict that lacks some."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    model, state = wrapped(), state_of(trained())
    before = state_of(model)
    with pytest.raises(CheckpointError, match=r"Missing key.*up_proj"):
        set_model_state_dict(model, {key: t for key, t in state.items() if "up_proj" not in key}, options=options)
    assert_unchanged(model, before)
    set_model_state_dict(model, state, options=options)
    assert_unchanged(model, state)
    set_model_state_dict(model, {name: tensor + 1 for name, tensor in state_of(base()).items()}, options=options)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in ours(state))
