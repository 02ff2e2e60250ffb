"""Loading into a live model without a copy between: the same promises, where the system keeps writers away."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import leases
from aim_adapters.storage.files import WEIGHTS_NAME, WeightsFile
from tests.backbones.cases import assert_same, snapshot
from tests.tiny import trained, wrapped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files are read by position")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every file held, and say how many tensors each load read in place."""
    counts: list[int] = []
    read_into = WeightsFile.read_into

    def counted(self: WeightsFile, targets: Mapping[str, Tensor]) -> None:
        counts.append(len(targets))
        read_into(self, targets)

    monkeypatch.setattr(leases, "_lease", lambda descriptor: True)
    monkeypatch.setattr(leases, "held_still", held)
    monkeypatch.setattr(WeightsFile, "read_into", counted)
    return counts


@contextmanager
def held(file: Any) -> Iterator[bool]:
    yield True


def save(model: nn.Module, folder: Path, **arguments: Any) -> Path:
    """Save a model, as long ago as needs no second look."""
    aim.save_adapters(model, folder, **arguments)
    os.utime(folder / WEIGHTS_NAME, ns=(10**18, 10**18))
    return folder


def filled(value: float) -> nn.Module:
    """Return a trained model, one of whose tensors in the middle holds a value."""
    model = trained()
    tensors = list(aim.adapter_state_dict(model).values())
    tensors[len(tensors) // 2].view(-1)[-1] = value
    return model


def test_every_tensor_is_filled_where_it_lies(tmp_path: Path, places: list[int]) -> None:
    source, model = trained(), wrapped()
    tensors = aim.adapter_state_dict(model)
    where, parameters = {key: tensor.data_ptr() for key, tensor in tensors.items()}, aim.trainable_parameters(model)
    versions = [parameter._version for parameter in parameters]
    report = aim.load_adapters(model, save(source, tmp_path))
    assert not any(report) and places == [len(tensors)]
    after = aim.adapter_state_dict(model)
    assert all(torch.equal(tensor, after[key]) for key, tensor in aim.adapter_state_dict(source).items())
    assert where == {key: tensor.data_ptr() for key, tensor in after.items()}
    # What autograd has kept of them is known to be old.
    assert all(now._version > before for now, before in zip(parameters, versions, strict=True))


def test_a_read_that_ends_early_goes_on(tmp_path: Path, places: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = trained(), wrapped()
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, memories, at: preadv(file, memories[:2], at))
    aim.load_adapters(model, save(source, tmp_path))
    after = aim.adapter_state_dict(model)
    assert places and all(torch.equal(tensor, after[key]) for key, tensor in aim.adapter_state_dict(source).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name_before_anything_is_filled(
    value: float, tmp_path: Path, places: list[int]
) -> None:
    folder, model = save(filled(value), tmp_path, allow_nonfinite=True), wrapped()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="holds NaN or infinities"):
        aim.load_adapters(model, folder)
    assert_same(before, snapshot(model))
    assert not places
    aim.load_adapters(model, folder, allow_nonfinite=True)


def test_sums_that_overflow_or_cancel_are_no_reason_to_refuse(tmp_path: Path, places: list[int]) -> None:
    source, model = filled(3e38), wrapped()
    tensor = aim.adapter_state_dict(source)["blocks.0.temporal.down_proj.weight"]
    tensor.fill_(3e38)
    aim.load_adapters(model, save(source, tmp_path))
    assert torch.equal(aim.adapter_state_dict(model)["blocks.0.temporal.down_proj.weight"], tensor)


def test_untrained_adapters_are_still_warned_of(tmp_path: Path, places: list[int]) -> None:
    with pytest.warns(UserWarning, match="every up-projection"):
        aim.load_adapters(wrapped(), save(wrapped(), tmp_path))


@pytest.mark.filterwarnings("ignore:the adapters were saved with layers")
@pytest.mark.parametrize("way", ["dtype", "layout", "more", "fewer"])
def test_what_lies_elsewhere_or_is_not_asked_for_is_copied(way: str, tmp_path: Path, places: list[int]) -> None:
    source = trained(layers=[0]) if way == "fewer" else trained()
    model = wrapped(layers=[0]) if way == "more" else wrapped()
    if way == "dtype":
        model.aim.temporal_embedding.data = model.aim.temporal_embedding.data.double()
    if way == "layout":
        weight = model.blocks[0].aim.temporal.down_proj.weight
        weight.data = weight.data.t().contiguous().t()
    aim.load_adapters(model, save(source, tmp_path), strict=way in ("dtype", "layout"))
    assert bool(places) == (way == "fewer")  # all that the file has
    both = aim.adapter_state_dict(source), aim.adapter_state_dict(model)
    for key in both[0].keys() & both[1].keys():
        torch.testing.assert_close(both[1][key].float(), both[0][key], rtol=0, atol=0)
