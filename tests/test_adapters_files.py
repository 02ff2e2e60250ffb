"""One of several adapters is saved and loaded, and never another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
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
