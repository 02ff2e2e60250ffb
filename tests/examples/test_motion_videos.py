from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import motion_videos
from aim_adapters.video import open_video, uniform_indices
from motion_videos import CLASSES, Clip, make_videos, plan, render, write_video


def decode(path: Path, num_frames: int) -> torch.Tensor:
    """Return the frames of a clip `[T, 3, H, W]`, as the test rule takes them."""
    with open_video(path) as video:
        return video.get_frames(uniform_indices(len(video), num_frames)[0])


def picture(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"photograph-{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        picture(seed).save(path)
    return paths


def clip(motion: int, *, backwards: bool = False) -> Clip:
    near = (0.4, 0.3, 0.25) if motion == 0 else (0.1, 0.1, 0.8)
    return Clip(0, motion, backwards, (0.1, 0.1, 0.8), near, strength=1.0, ease=1.0, mirrored=False)


def sharpness(frames: torch.Tensor) -> list[float]:
    return frames.float().diff(dim=-1).abs().mean((1, 2, 3)).tolist()


@pytest.mark.parametrize("motion", range(3))
def test_a_clip_stored_backwards_holds_the_same_pictures_to_the_bit(tmp_path: Path, motion: int) -> None:
    """Otherwise a single frame could tell the direction of time by how it was coded."""
    for name, backwards in (("forwards.mp4", False), ("backwards.mp4", True)):
        write_video(tmp_path / name, render(picture(0), clip(motion, backwards=backwards), size=64, frames=24))
    for num_frames in (24, 8):
        forwards = decode(tmp_path / "forwards.mp4", num_frames)
        assert torch.equal(decode(tmp_path / "backwards.mp4", num_frames), forwards.flip(0))


def test_frames_are_coded_alone_and_alike(tmp_path: Path) -> None:
    write_video(tmp_path / "still.mp4", [picture(0, (64, 64))] * 6)
    with av.open(str(tmp_path / "still.mp4")) as container:
        assert (container.streams.video[0].codec.name, container.streams.video[0].pix_fmt) == ("h264", "yuv420p")
        assert all(frame.key_frame for frame in container.decode(video=0))
    frames = decode(tmp_path / "still.mp4", 6)
    assert all(torch.equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("motion", range(3))
def test_the_two_classes_of_a_pair_are_drawn_alike(motion: int) -> None:
    details = [motion_videos._detail(picture(0))]
    for seed in range(20):
        one, other = (
            motion_videos._draw(np.random.default_rng(seed), details, label=2 * motion + backwards, index=0)
            for backwards in (0, 1)
        )
        assert dataclasses.replace(one, backwards=True) == other
        assert (CLASSES[one.label].split()[0], CLASSES[other.label].split()[0]) == (CLASSES[2 * motion].split()[0],) * 2


def test_motions_are_what_their_names_say(tmp_path: Path) -> None:
    shown = {}
    for label, name in enumerate(CLASSES):
        path = tmp_path / f"{label}.mp4"
        write_video(path, render(picture(0), clip(label // 2, backwards=bool(label % 2)), size=64, frames=8))
        shown[name] = decode(path, 8)
    brightness = shown["fade in"].float().mean((1, 2, 3)).tolist()
    assert brightness == sorted(brightness)
    assert brightness[0] < 0.1 * brightness[-1]
    assert sharpness(shown["focus in"])[0] < 0.3 * sharpness(shown["focus in"])[-1]
    assert sharpness(shown["zoom in"])[-1] < 0.6 * sharpness(shown["zoom in"])[0]  # near things are large and smooth
    assert all(torch.equal(shown[f"{m} out"], shown[f"{m} in"].flip(0)) for m in ("zoom", "fade", "focus"))


def test_boxes_stay_inside_the_photograph_and_inside_one_another() -> None:
    for size in ((200, 160), (160, 200), (160, 160)):
        width, height = (side / min(size) for side in size)
        for drawn in plan([picture(0, size)], clips=60, seed=1):
            left, top, side = drawn.far
            assert 0 <= left <= left + side <= width + 1e-9
            assert 0 <= top <= top + side <= height + 1e-9
            assert drawn.near[2] < side
            assert all(
                f <= n <= n + drawn.near[2] <= f + side + 1e-9
                for f, n in zip(drawn.far[:2], drawn.near[:2], strict=True)
            )


def test_crops_show_something() -> None:
    half = Image.new("RGB", (320, 160), "white")
    half.paste(picture(0, (160, 160)), (0, 0))
    # The white half covers most places a box may have: without a choice more than a third would lie in it.
    lost = [drawn.near[0] > 1.0 for drawn in plan([half], clips=60, seed=0)]
    assert sum(lost) <= 3


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mp4"))}


def test_make_videos_is_balanced_and_repeatable(photographs: list[Path], tmp_path: Path) -> None:
    made = files(make_videos(photographs, tmp_path / "a", clips=12, size=32, frames=6, seed=3))
    assert sorted(Path(name).parent.name for name in made) == sorted([*CLASSES, *CLASSES])
    assert made == files(make_videos(photographs, tmp_path / "b", clips=12, size=32, frames=6, seed=3))
    assert made != files(make_videos(photographs, tmp_path / "c", clips=12, size=32, frames=6, seed=4))
    rows = list(csv.DictReader((tmp_path / "a" / ".index.csv").read_text().splitlines()))
    assert [row["file"].split("/")[0] for row in rows] == [row["class"] for row in rows]
    assert sorted(row["photograph"] for row in rows) == sorted(path.name for path in photographs * 3)


def test_videos_are_made_once_but_anew_for_other_settings(photographs: list[Path], tmp_path: Path) -> None:
    made = files(make_videos(photographs, tmp_path / "a", clips=6, size=32, frames=4))
    first = tmp_path / "a" / next(iter(made))
    written = first.stat().st_mtime_ns
    assert files(make_videos(photographs, tmp_path / "a", clips=6, size=32, frames=4)) == made
    assert first.stat().st_mtime_ns == written
    assert len(files(make_videos(photographs, tmp_path / "a", clips=3, size=32, frames=5))) == 3  # no old ones left


@pytest.mark.parametrize("wrong", [{"size": 33}, {"clips": 0}, {"frames": 0}])
def test_impossible_numbers_are_refused(photographs: list[Path], tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be even and every number at least 1"):
        make_videos(photographs, tmp_path / "a", **({"clips": 6, "size": 32, "frames": 4} | wrong))
