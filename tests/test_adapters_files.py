"""One of several adapters is saved and loaded, and never another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import aim_adapters as aim
from aim_adapters.errors import CheckpointError, StateError
from tests.backbones.cases import assert_same, snapshot, wake
from tests.several import CONFIGS, NAMES, alone, out, several
from tests.tiny import base, run, trained, wrapped


def test_saving_one_never_writes_another(tmp_path: Path) -> None:
    model = several()
    for name in NAMES:
        aim.save_adapters(model, tmp_path / name, name=name)
    for name in NAMES:
        fresh = base()
        aim.load_adapters(fresh, tmp_path / name)
        assert torch.equal(out(fresh, name), out(alone(name), name))
        single = aim.save_adapters(alone(name), tmp_path / f"{name}_alone")
        size = (single / "adapter_model.safetensors").stat().st_size
        assert (tmp_path / name / "adapter_model.safetensors").stat().st_size == size
    assert list(aim.list_adapters(model)) == list(NAMES)


def test_loading_under_a_new_name_adds_beside(tmp_path: Path) -> None:
    aim.save_adapters(alone("other"), tmp_path)
    model = trained()
    expected = run(model)
    report = aim.load_adapters(model, tmp_path, name="diving48")
    assert not any(report)
    assert torch.equal(run(model), expected)
    assert list(aim.list_adapters(model)) == ["default", "diving48"]
    aim.set_adapter(model, "diving48")
    assert torch.equal(out(model, "other"), out(alone("other"), "other"))
    assert all(p.requires_grad for p in aim.trainable_parameters(model))
    assert len(aim.trainable_parameters(model)) == len(aim.adapter_state_dict(model))


def test_loading_under_a_known_name_fills_that_one(tmp_path: Path) -> None:
    aim.save_adapters(alone("same"), tmp_path / "same")
    model = wake(wrapped())
    expected = run(model)
    aim.add_adapter(model, "second", CONFIGS["same"])
    aim.load_adapters(model, tmp_path / "same", name="second")
    assert torch.equal(run(model), expected)
    aim.set_adapter(model, "second")
    assert torch.equal(run(model), run(alone("same")))
    aim.save_adapters(alone("other"), tmp_path / "other")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"saved with num_frames=2 \(this model: 4\)"):
        aim.load_adapters(model, tmp_path / "other", name="default")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_name_is_given_while_wrapping_by_a_checkpoint(tmp_path: Path) -> None:
    model = base()
    aim.load_adapters(model, aim.save_adapters(alone("other"), tmp_path), name="mine")
    assert aim.list_adapters(model) == {"mine": CONFIGS["other"]}


def test_refused_checkpoint_adds_nothing(tmp_path: Path) -> None:
    aim.save_adapters(trained(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    model = wrapped()
    before = snapshot(model)
    with pytest.raises(CheckpointError):
        aim.load_adapters(model, tmp_path, name="new")
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "kind", ["BlockState", "NormState", "RootState", "AdapterSet", "Module", "ModuleList", "Adapter", "Linear"]
)
def test_adapters_are_found_whole_inside_of_what_was_put_around_their_parts(kind: str, tmp_path: Path) -> None:
    model = several()
    expected = {name: {k: v.clone() for k, v in aim.adapter_state_dict(model, name=name).items()} for name in NAMES}
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == kind)
    for name in NAMES:
        found = aim.adapter_state_dict(model, name=name)
        assert found.keys() == expected[name].keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected[name].items())
    aim.save_adapters(model, tmp_path, name="same")
    fresh = base()
    aim.load_adapters(fresh, tmp_path)
    assert torch.equal(run(fresh), run(alone("same")))
    assert sorted(aim.list_adapters(model)) == sorted(NAMES)
    if kind.endswith("State"):
        with pytest.raises(StateError, match="CheckpointWrapper, so the adapter cannot be taken out"):
            aim.set_adapter(model.train(), "other")
        return
    aim.set_adapter(model.train(), "other")
    torch.testing.assert_close(out(model.eval(), "other"), out(alone("other"), "other"), rtol=1e-5, atol=1e-6)


def test_a_part_of_an_adapter_that_was_replaced_is_named(tmp_path: Path) -> None:
    model = several()
    model.aim.idle_adapters()["same"].containers[1] = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(StateError, match="part 1 of an adapter that does not run is a Sequential"):
        aim.save_adapters(model, tmp_path / "new", name="same")
    assert not (tmp_path / "new").exists()
    aim.delete_adapter(model, "same")
    assert list(aim.list_adapters(model)) == ["default", "other"]
