"""A probe that trains on features that are kept learns what it would learn from the videos, and reads each once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_adapters as aim
from aim_adapters.training import load_baseline
from aim_adapters.training.feeding import reader_for
from aim_adapters.video import ClipTransform, VideoShards, write_shards
from tests.tiny import base
from tests.training.cases import CLASSES, fit, folder, model, videos
from tests.training.test_baselines import build, trained

# No augmentation, so that videos can be read anew in each epoch and still be the same clips.
PLAIN = ClipTransform((16, 16))


def probe(name: str = "attentive-probe") -> Any:
    return build(name, lambda: base("vit_tiny_patch16_224.test"), labels=CLASSES, num_classes=None)


def counted(model: Any) -> list[int]:
    """Count the frames that the image model reads while it trains."""
    frames: list[int] = []
    model.image_model.register_forward_pre_hook(lambda module, args: frames.append(len(args[0])))
    return frames


@pytest.mark.parametrize("name", ["probe", "attentive-probe"])
def test_it_learns_what_it_learns_from_the_same_clips(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, read = probe(name), probe(name)
    frames = counted(kept)
    whole = folder("train").subset(range(23))  # all but the broken one
    settings: dict[str, Any] = {"train": whole, "learning_rate": 1e-2, "epochs": 3, "save_every": 5}
    result = fit(kept, tmp_path / "kept", cache_gib=0.01, **settings)
    assert sum(frames) == 4 + 4 * 23  # a trial of its memory, and each video once

    monkeypatch.setattr(import_module("aim_adapters.training.fit"), "reader_for", _plainly)
    again = fit(read, tmp_path / "read", **settings)
    assert len(result.losses) == 9
    torch.testing.assert_close(result.losses, again.losses, rtol=1e-4, atol=1e-5)
    resumed = probe(name)
    at = tmp_path / "kept" / "checkpoints" / "step-0000005"
    on = fit(resumed, tmp_path / "on", cache_gib=0.01, resume=at, **settings)
    assert on.losses == result.losses
    assert all(torch.equal(value, trained(kept)[key]) for key, value in trained(resumed).items())
    loaded = probe(name)
    load_baseline(loaded, tmp_path / "kept")
    assert all(torch.equal(value, trained(kept)[key]) for key, value in trained(loaded).items())
    with pytest.raises(aim.ConfigError, match="cached was True, is False"):
        fit(probe(name), tmp_path / "kept", **settings)


def _plainly(*args: Any) -> Any:
    return dataclasses.replace(reader_for(*args), train=False, transform=PLAIN)


def test_what_is_kept_has_the_type_of_products_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Tensor] = []
    model = probe()
    model.probe.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    fit(model, tmp_path / "run", cache_gib=0.01, precision="bf16", progress=True)
    assert {x.dtype for x in seen[2:]} == {torch.bfloat16} and {tuple(x.shape) for x in seen} == {(6, 4, 5, 32)}
    said = capsys.readouterr().err
    assert "keeps the features of 23 clips, [4, 5, 32] each, in" in said and "nothing is augmented" in said


def test_a_readable_video_stands_in_for_one_that_is_not(tmp_path: Path) -> None:
    shutil.copytree(videos(), tmp_path / "videos")  # of which one is broken
    for index in range(7):
        (tmp_path / "videos" / "train" / "left" / f"{index}.mp4").write_bytes(b"broken")
    seen: list[Tensor] = []
    model = probe("probe")
    model.probe.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with pytest.warns(UserWarning, match=r"left/\d\.mp4"):
        fit(model, tmp_path / "run", tmp_path / "videos", cache_gib=0.01, epochs=1, max_skipped=0.5)
    rows = torch.cat(seen).flatten(1)
    assert len(rows) == 24  # no step has fewer clips
    assert rows.unique(dim=0, return_counts=True)[1].max() == 9  # the eighth of "left", and those before it in a circle


def shards(folder_of: Path) -> VideoShards:
    write_shards(folder("test"), folder_of)
    return VideoShards(str(folder_of / "*.tar"), num_frames=4, labels=CLASSES, length=9)


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "memory of a mean": (lambda _: {"make": "probe", "cache_gib": 1e-7}, "if the device has the memory, or leave"),
    "memory": (lambda _: {"cache_gib": 1e-6}, r"24 clips, \[4, 5, 32\] each in fp32, .* more than .* the baseline"),
    "number": (lambda _: {"cache_gib": True}, "cache_gib must be a finite number > 0"),
    "zero": (lambda _: {"cache_gib": 0}, "cache_gib must be a finite number > 0"),
    "augmented": (
        lambda _: {"train": folder("train", transform=ClipTransform((16, 16), train=True))}, "augments clips anew"
    ),
    "dummy": (lambda _: {"dummy_data": True}, "needs the videos of a folder or a list, got dummy_data=True"),
    "stream": (lambda at: {"train": shards(at)}, "needs the videos of a folder or a list, got a VideoShards"),
    "other size": (
        lambda _: {"train": folder("train", transform=ClipTransform((8, 8)))}, r"clips of train are .*\[4, 3, 8, 8\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_is_refused(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    settings = {"make": "attentive-probe", "cache_gib": 0.01, **make(tmp_path / "shards")}
    with pytest.raises(aim.ConfigError, match=message):
        fit(probe(settings.pop("make")), tmp_path / "run", **settings)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("make", [model, lambda: build("full", lambda: base("vit_tiny_patch16_224.test"))])
def test_models_that_train_more_than_a_probe_are_refused(make: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(aim.ConfigError, match="cache_gib is for the baselines 'probe' and 'attentive-probe', got a"):
        fit(make(), tmp_path / "run", cache_gib=1)
    assert not (tmp_path / "run").exists()
