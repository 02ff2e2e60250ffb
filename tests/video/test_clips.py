"""`ClipReader`: which frames, which views, and the same clip for the same seed."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aim_adapters.errors import ConfigError, VideoError
from aim_adapters.video import ClipReader
from tests.video.gray import brightness, write_video
from tests.video.videos import write_audio


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "a.mp4", level=40, frames=32))


def noisy(clip: Tensor) -> Tensor:
    """Draw from every generator that a transform of the user's may draw from."""
    return clip.float() + torch.rand(()) + random.random() + np.random.rand()


def crops(clip: Tensor) -> Tensor:
    return torch.stack([clip[..., :8], clip[..., -8:]])


def test_views_are_clips_of_the_video_and_crops_of_each_clip(path: str) -> None:
    assert ClipReader(4).read(path).shape == (4, 3, 24, 32)
    assert ClipReader(4).read(path).dtype == torch.uint8
    clips = ClipReader(4, stride=2, clips=3).read(path)
    assert clips.shape == (3, 4, 3, 24, 32)
    assert len({brightness(clip) for clip in clips}) == 3
    views = ClipReader(4, clips=3, transform=crops).read(path)
    assert views.shape == (6, 4, 3, 24, 8)
    assert brightness(views[0]) == pytest.approx(brightness(views[1]), abs=0.5) != brightness(views[2])
    assert ClipReader(4, transform=crops).read(path).shape == (2, 4, 3, 24, 8)


def test_decoder_resizes_to_the_short_side_of_the_transform(path: str) -> None:
    class Small:
        short_side = 12

        def __call__(self, clip: Tensor) -> Tensor:
            return clip

    assert ClipReader(2, transform=Small()).read(path).shape == (2, 3, 12, 16)
    assert ClipReader(2, transform=Small(), short_side=18).read(path).shape == (2, 3, 18, 24)


def test_seed_alone_decides_the_clip_and_moves_no_generator_on(path: str) -> None:
    reader = pickle.loads(pickle.dumps(ClipReader(4, stride=1, train=True, transform=noisy)))
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = reader.read(path, seed=2**62 + 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(reader.read(path, seed=2**62 + 1), first)
    assert len({brightness(reader.read(path, seed=seed)) for seed in range(6)}) > 3
    # Without one, PyTorch's own decides.
    plain = ClipReader(4, stride=1, train=True)
    drawn = []
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(seed)
        drawn.append(brightness(plain.read(path)))
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2


def test_a_transform_may_change_the_label(path: str) -> None:
    class Swap:
        def __call__(self, clip: Tensor) -> Tensor:
            raise AssertionError

        def with_label(self, clip: Tensor, label: int) -> tuple[Tensor, int]:
            return clip.flip(-1), 1 - label

    assert ClipReader(2, transform=Swap()).read_labeled(path, 1)[1] == 0


def test_errors_tell_the_video_from_the_transform(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    for broken in ("empty.mp4", "text.mp4", "absent.mp4", write_audio(tmp_path / "sound.mp4").name):
        with pytest.raises(VideoError, match=broken):
            ClipReader(2).read(str(tmp_path / broken))

    def bug(clip: Tensor) -> Tensor:
        return clip.nothing  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(AttributeError, match="nothing"):
        ClipReader(2, transform=bug).read(path)
    with pytest.raises(ConfigError, match=r"must return a clip.*got list"):
        ClipReader(2, transform=lambda clip: [clip]).read(path)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "settings",
    [{"frames": 0}, {"frames": 2.0}, {"stride": 0}, {"clips": 0}, {"short_side": -1}, {"train": 1}, {"transform": 3}],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings)).removeprefix("frames") or "num_frames"):
        ClipReader(**{"frames": 2, **settings})
