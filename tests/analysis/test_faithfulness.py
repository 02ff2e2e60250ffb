"""Deletion curves have the right ends, and tell maps that matter from maps that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.analysis import deletion_curves
from aim_adapters.errors import ConfigError, InputError, StateError, UnsupportedModelError
from tests.tiny import trained, video, wrapped


def probabilities(model: nn.Module, clips: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(clips).double().softmax(1)


@settings(max_examples=12, deadline=None)
@given(
    steps=st.integers(1, 6),
    draws=st.integers(1, 3),
    grid=st.sampled_from([(4, 2, 2), (2, 2, 2), (1, 1, 3), (4, 5, 3)]),
    remove=st.sampled_from(["blur", "mean"]),
    target=st.sampled_from([None, 3, [0, 4]]),
)
def test_every_curve_goes_from_the_clip_to_the_one_with_everything_removed(
    steps: int, draws: int, grid: tuple[int, int, int], remove: str, target: Any
) -> None:
    model, clips = trained(), video()
    found = deletion_curves(model, clips, torch.rand(2, *grid), steps=steps, draws=draws, remove=remove, target=target)
    rows = torch.arange(2)
    before = probabilities(model, clips)
    classes = before.argmax(1) if target is None else torch.tensor([3, 3] if target == 3 else target)
    # Of 16 x 16 pixels, all are blurred to their mean.
    dims = (1, 3, 4) if remove == "mean" else (3, 4)
    after = probabilities(model, clips.mean(dims, keepdim=True).expand_as(clips))
    assert torch.equal(found.targets, classes)
    for curve in (found.most, found.least, *found.draws):
        assert curve.shape == (2, steps + 1)
        torch.testing.assert_close(curve[:, 0], before[rows, classes], atol=1e-5, rtol=0)
        torch.testing.assert_close(curve[:, -1], after[rows, classes], atol=1e-5, rtol=0)
    assert found.fractions[0] == 0 and found.fractions[-1] == 1 and (found.fractions.diff() >= 0).all()
    assert all(((area >= 0) & (area <= 1)).all() for area in found.areas.values())


def looking_at_a_corner(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Tensor, list[int]]:
    model, calls = wrapped(labels=["bright", "dark"]), []

    def forward(x: Tensor) -> Tensor:
        calls.append(len(x) // 4)
        bright = x.unflatten(0, (-1, 4))[:, 1, :, :8, :8].mean((1, 2, 3))  # of the second frame
        return torch.stack([bright, torch.zeros_like(bright)], 1)

    monkeypatch.setattr(model, "forward", forward)
    clips = torch.zeros(3, 4, 3, 16, 16)
    clips[:, 1, :, :8, :8] = 3
    return model, clips, calls


def test_a_map_of_what_matters_beats_random_orders_and_one_of_what_does_not_loses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clips, calls = looking_at_a_corner(monkeypatch)
    right = torch.zeros(3, 4, 2, 2)
    right[:, 1, 0, 0] = 1
    good, bad = deletion_curves(model, clips, right, draws=3), deletion_curves(model, clips, -right, draws=3)
    assert max(calls) <= 8
    assert (good.areas["most"] < good.areas["random"]).all() and (good.areas["random"] < good.areas["least"]).all()
    torch.testing.assert_close(good.areas["most"], bad.areas["least"], atol=0.05, rtol=0)
    assert "point at what the answer depends on: the probability falls faster" in good.verdict
    assert "do not point at" in bad.verdict
    text = str(good).replace("\n", " ")
    assert "'bright'" in text and good.verdict in text and "100%" in text
    kept = json.loads(json.dumps(good.to_dict()))
    assert kept["names"] == ["bright"] * 3 and len(kept["draws"]) == 3 and kept["verdict"] == good.verdict
    assert "tell nothing" in deletion_curves(model, clips, right, target="dark").verdict


def test_maps_of_the_last_block_are_tested_by_default_and_a_seed_repeats() -> None:
    model, clips = trained().train(), video()
    given = aim.attention_maps(model, clips, blocks=[-1]).spatial()
    a, b = deletion_curves(model, clips, steps=3), deletion_curves(model, clips, given, steps=3)
    assert torch.equal(a.most, b.most) and torch.equal(a.draws, b.draws)
    assert not torch.equal(deletion_curves(model, clips, steps=3, seed=1).draws, a.draws)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["BTCHW", "BCTHW", "flat"])
def test_layouts_give_the_same_curves(layout: str) -> None:
    clips = video()
    model = trained(input_layout="auto" if layout == "flat" else layout)
    given = {"BTCHW": clips, "BCTHW": clips.transpose(1, 2), "flat": clips.flatten(0, 1)}[layout]
    found = deletion_curves(model, given, steps=2, draws=1)
    assert torch.equal(found.most, deletion_curves(trained(), clips, steps=2, draws=1).most)


def test_tubelets_and_autocast() -> None:
    model = trained(tubelet_size=2, num_frames=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert deletion_curves(model, video(), steps=2, draws=1).most.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": torch.rand(4, 2, 2)}, InputError, "shape"),
        ({"maps": torch.rand(1, 4, 2, 2)}, InputError, "2 clips of 4 frames"),
        ({"maps": torch.rand(2, 3, 2, 2)}, InputError, "shape"),
        ({"maps": torch.full((2, 4, 2, 2), torch.inf)}, InputError, "infinite"),
        ({"maps": "rollout"}, InputError, "maps"),
        ({"steps": 0}, ConfigError, "steps"),
        ({"draws": 0}, ConfigError, "draws"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"remove": "black"}, ConfigError, "blur"),
        ({"target": 5}, ConfigError, "5 classes"),
        ({"target": "cat"}, ConfigError, "name"),
        ({"video": video(frames=3)}, InputError, "4 frames"),
        ({"video": video().byte()}, InputError, "normalized"),
        ({"video": video()[:0]}, InputError, "no clips"),
        ({"video": video() * torch.nan}, StateError, "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*said once")
def test_what_cannot_be_tested_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deletion_curves(**{"model": trained(), "video": video(), "steps": 2, **change})


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no classes"):
        deletion_curves(wrapped(num_classes=0), video())
    model = trained()
    with aim.disable_adapters(model), pytest.raises(StateError, match="disabled"):
        deletion_curves(model, video())
