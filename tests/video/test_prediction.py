from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.video import open_video
from tests.tiny import base
from tests.training.cases import CLASSES, folder, model, videos
from tests.video.videos import pictures


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return model()


def test_every_kind_of_source_gives_what_an_evaluation_gives(net: nn.Module, tmp_path: Path) -> None:
    path = videos() / "test" / "right" / "1.mp4"
    answers = aim.predict(net, path)
    assert sorted(name for name, _ in answers) == sorted(CLASSES)
    assert sum(share for _, share in answers) == pytest.approx(1)
    assert [share for _, share in answers] == sorted((share for _, share in answers), reverse=True)
    row = next(
        row
        for row in aim.evaluate(net, folder("test"), "3x1", workers=0, progress=False).predictions
        if row["name"] == "right/1.mp4"
    )
    assert dict(answers) == pytest.approx(row["probabilities"])
    assert aim.predict(net, path.read_bytes(), 1) == answers[:1]
    with path.open("rb") as file:
        assert aim.predict(net, file) == answers
    with open_video(path) as video:
        frames = video.get_frames(range(len(video)))
    array = frames.permute(0, 2, 3, 1).contiguous().numpy()
    fixed = array.copy()
    fixed.setflags(write=False)
    for given in (frames, frames.permute(0, 2, 3, 1), array, fixed, array[..., ::-1].copy()[..., ::-1]):
        near = dict(aim.predict(net, given))  # resized here, and not while it is decoded
        assert near == pytest.approx(dict(answers), abs=0.05)


def test_a_folder_of_videos_gives_an_answer_for_each(net: nn.Module, tmp_path: Path) -> None:
    for index in range(2):
        shutil.copy(videos() / "test" / "up" / f"{index}.mp4", tmp_path / f"{index}.mp4")
    (tmp_path / "2.mp4").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"2\.mp4: .*; it is left out"):
        found = aim.predict(net, tmp_path)
    assert isinstance(found, dict) and list(found) == ["0.mp4", "1.mp4"]
    assert found["1.mp4"] == aim.predict(net, tmp_path / "1.mp4")


def test_folders_are_searched_through(net: nn.Module, tmp_path: Path) -> None:
    found = aim.predict(net, videos() / "test", 1)
    assert isinstance(found, dict) and len(found) == 9
    assert found["up/0.mp4"] == aim.predict(net, videos() / "test" / "up" / "0.mp4", 1)
    # A folder of pictures is one video, whatever pictures are below it.
    for place in (tmp_path, tmp_path / "small"):
        place.mkdir(exist_ok=True)
        for index, picture in enumerate(pictures(6, height=24, width=32)):
            picture.save(place / f"{index}.png")
    assert isinstance(aim.predict(net, tmp_path), list)
    shutil.copy(videos() / "test" / "up" / "0.mp4", tmp_path / "0.mp4")
    found = aim.predict(net, tmp_path)
    assert isinstance(found, dict) and list(found) == ["0.mp4", "small"]


def test_classes_without_names_are_called_by_their_index() -> None:
    answers = aim.predict(model(labels=None, num_classes=3), videos() / "test" / "up" / "0.mp4", top=9)
    assert sorted(name for name, _ in answers) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (torch.rand(8, 3, 16, 16), aim.InputError, "uint8 .* got torch.float32"),
        (torch.zeros(8, 16, 16, dtype=torch.uint8), aim.InputError, r"got \[8, 16, 16\]"),
        (np.zeros((0, 16, 16, 3), np.uint8), aim.InputError, r"got \[0, 16, 16, 3\]"),
        (np.zeros((8, 16, 16, 4), np.uint8), aim.InputError, r"got \[8, 16, 16, 4\]"),
        (torch.zeros(3, 8, 16, 16, dtype=torch.uint8), aim.InputError, r"channels are first: .*transpose"),
        ("missing.mp4", aim.VideoError, r"missing\.mp4: there is no such file"),
        (None, TypeError, "source must be"),
    ],
)
def test_what_is_no_video_is_named(net: nn.Module, source: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        aim.predict(net, source)


def test_wrong_arguments_are_named(net: nn.Module) -> None:
    with pytest.raises(aim.ConfigError, match="top"):
        aim.predict(net, videos() / "test" / "up" / "0.mp4", top=0)
    broken = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    spec = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3)
    broken(torch.zeros(1, 4, 3, 16, 16))
    nn.init.constant_(broken[1].weight, float("nan"))
    with pytest.raises(aim.StateError, match="not finite"):
        aim.predict(broken, videos() / "test" / "up" / "0.mp4", spec=spec)
    with pytest.raises(TypeError, match="model must be"):
        aim.predict("model", "a.mp4")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spec"):
        aim.predict(net, "a.mp4", spec={})  # type: ignore[arg-type]


def test_views_of_a_video_are_no_batch_in_the_wrong_order() -> None:
    frames = torch.randint(256, (10, 3, 16, 16), dtype=torch.uint8)  # none alike, but their views are
    net = aim.wrap_image_model(base("vit_tiny_patch16_224.test"), 8, labels=CLASSES)
    assert len(aim.predict(net, frames, views="3x1")) == 3
    clip = torch.randn(8, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"in the order \[T, B\]"):  # the caller's own first batch is looked at
        net(torch.stack([clip + 0.01 * index for index in range(8)]))
