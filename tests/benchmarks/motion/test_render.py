from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.motion.check import digest_frames
from benchmarks.motion.photographs import LEVELS, Photographs, build_photographs
from benchmarks.motion.programs import VARIANTS, Difficulty, classes_of, draw_programs, reverse
from benchmarks.motion.render import render
from benchmarks.motion.task import load_task
from tests.benchmarks.scenes import apart, picture, scenes

PHOTOGRAPHS = scenes()
PLAIN = Difficulty(
    crop=(30, 30), lean=0, jitter=0, wander=0, one_sprite=0, two_sprites=0, gain=(100, 100), color=(100, 100), drift=0
)
# Of the photographs in `scenes`: 24 clips of 4 frames of 20 pixels, each of another scene.
FROZEN = {
    "order": "16d2d403d717c6b5abbf346320920360e462de7583ac21bb7bb49518c7576a88",
    "composition": "8b19647f1e1d24ba3492c8b18ea8ad56c079647af2893310b869fe9b30f121dc",
    "appearance": "3ae46e8333c541c3fc84c97c340ed12e016d025c50fa4a14203253ec4f2f7d35",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_clips_are_the_frozen_ones(variant: str) -> None:
    programs = apart(variant, "test", 24, PHOTOGRAPHS, difficulty=Difficulty(crop=(25, 60)))
    assert digest_frames(render(PHOTOGRAPHS, programs, frames=4, size=20)) == FROZEN[variant]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("frames", [8, 16, 32])
def test_a_clip_backwards_is_a_clip_of_the_reverse_class(variant: str, frames: int) -> None:
    classes = classes_of(variant, PHOTOGRAPHS)
    programs = apart(variant, "train", 24, PHOTOGRAPHS)
    backwards = reverse(programs, classes)
    shown = render(PHOTOGRAPHS, programs, frames=frames, size=16)
    assert torch.equal(render(PHOTOGRAPHS, backwards, frames=frames, size=16), shown.flip(1))
    assert backwards.label.tolist() == [classes.reverses[label] for label in programs.label]
    assert not torch.equal(shown, shown.flip(1))


def ramps() -> Photographs:
    """Return photographs whose red tells the column, green the row, of 640 by 640 pixels."""
    place = torch.arange(640) * 255 // 639
    image = torch.stack((place.expand(640, 640), place[:, None].expand(640, 640), place.expand(640, 640)), -1)
    return build_photographs({"a": image.to(torch.uint8), "b": image.to(torch.uint8)}, {"a": "train", "b": "train"}, [])


def motion(clip: Tensor) -> Tensor:
    """Return how much the camera pans, tilts, zooms and rolls from frame to frame: [T - 1, 4]."""
    red, green = clip[:, 0].double(), clip[:, 1].double()
    half = clip.shape[-1] // 2
    across = red[:, :, half:].mean((1, 2)) - red[:, :, :half].mean((1, 2))
    down = red[:, half:].mean((1, 2)) - red[:, :half].mean((1, 2))
    span = torch.hypot(across, down)
    return torch.stack((red.mean((1, 2)), green.mean((1, 2)), -span, -torch.atan2(down, across) * 100), -1).diff(dim=0)


def test_classes_show_what_their_names_say() -> None:
    photographs = ramps()
    names = classes_of("composition", photographs).names
    programs = draw_programs("composition", "train", len(names), photographs, difficulty=PLAIN)
    signs = {"right": 1, "left": -1, "down": 1, "up": -1, "in": 1, "out": -1}
    for name, clip in zip(names, render(photographs, programs, frames=32, size=48), strict=True):
        first, _, second = name.partition(", ")
        axis, word = first.split()
        early, late = (motion(clip[part]).sum(0) for part in (slice(0, 16), slice(16, 32)))
        one = ("pan", "tilt", "zoom", "roll").index(axis)
        assert early[one] * signs[word] > 2, name
        if not second:
            assert late[one] * signs[word] > 2, name
        elif second.startswith("then"):
            assert late[one] * signs[word] < -2, name
        elif second in ("faster", "slower"):
            assert (late - early)[one] * signs[word] * (1 if second == "faster" else -1) > 2, name
        else:
            axis, word = second.split()
            other = ("pan", "tilt", "zoom", "roll").index(axis)
            assert late[other] * signs[word] > 2, name
            assert abs(early[other]) < 2 and abs(late[one]) < 2, name


def test_frames_are_what_floating_point_bilinear_sampling_gives() -> None:
    """Hold a still camera on a background against `grid_sample`."""
    photographs = build_photographs({"a": picture(1), "b": picture(2)}, {"a": "train", "b": "train"}, [])
    programs = apart("order", "train", 8, photographs, difficulty=PLAIN)
    still = programs._replace(amplitude=0 * programs.amplitude, crop=0 * programs.crop + 4096 * 36 // 120)
    shown = render(photographs, still, frames=1, size=36)[:, 0]
    for clip, frame in enumerate(shown):
        image = picture(1 + int(still.photo[clip])).permute(2, 0, 1)[None].double()
        crop = int(still.crop[clip]) * 120 * 16 // 4096 / 16
        # Halves of the crop's room, as the renderer sets it aside, lie at each border.
        middle = [
            crop * 660 / 1024 + (side - 2 * crop * 660 / 1024) * int(still.place[clip, axis]) / 4096
            for axis, side in enumerate((160, 120))
        ]
        steps = (torch.arange(36, dtype=torch.float64) + 0.5 - 18) * crop / 36
        x, y = (2 * (middle[0] + steps) / 160 - 1), (2 * (middle[1] + steps) / 120 - 1)
        grid = torch.stack((x.expand(36, 36), y[:, None].expand(36, 36)), -1)[None]
        expected = torch.nn.functional.grid_sample(image, grid, align_corners=False, padding_mode="reflection")[0]
        assert (frame.double() - expected).abs().max() <= 2


def test_pyramids_halve_by_means() -> None:
    image = picture(3, 70, 67)
    photographs = build_photographs({"a": image}, {"a": "train"}, [])
    assert photographs.levels == LEVELS
    height, width, start = photographs.table[0, 1]
    assert (height, width) == (35, 33)
    level = photographs.texels[start : start + height * width].view(height, width)
    blocks = image[:70, :66].double().reshape(35, 2, 33, 2, 3).mean((1, 3))
    for channel in range(3):
        assert torch.equal(level >> 8 * channel & 255, (blocks[..., channel] + 0.5).int())


def test_learning_sees_nothing_that_testing_sees() -> None:
    """Paint over what the other part sees: clips stay the same, to the bit."""
    white = torch.full((120, 160, 3), 255, dtype=torch.uint8)

    def clips(part: str, variant: str, photographs: Photographs) -> Tensor:
        return render(photographs, apart(variant, part, 40, photographs), frames=2, size=24)

    painted = scenes(y=white, z=white)
    assert torch.equal(clips("train", "order", painted), clips("train", "order", PHOTOGRAPHS))
    painted = scenes(**dict.fromkeys("abcdefg", white))
    assert torch.equal(clips("test", "order", painted), clips("test", "order", PHOTOGRAPHS))
    for part, seen in (("train", slice(0, 104)), ("test", slice(111, 160))):
        changed = {name: white.clone() for name in "abcde"}
        for seed, image in enumerate(changed.values()):
            image[:, seen] = picture(seed)[:, seen]
        assert torch.equal(clips(part, "appearance", scenes(**changed)), clips(part, "appearance", PHOTOGRAPHS))


def test_sprites_and_gains_change_frames() -> None:
    programs = apart("order", "train", 24, PHOTOGRAPHS)
    shown = render(PHOTOGRAPHS, programs, frames=2, size=24)
    bare = render(PHOTOGRAPHS, programs._replace(radius=0 * programs.radius), frames=2, size=24)
    changed = (shown != bare).flatten(1).any(1)
    assert changed.numpy().sum() > 6
    assert not changed[torch.from_numpy((programs.radius == 0).all(1))].any()
    black = render(PHOTOGRAPHS, programs._replace(gain=0 * programs.gain), frames=2, size=24)
    assert not black.any()


def test_a_task_has_what_training_needs() -> None:
    task = load_task("order", PHOTOGRAPHS, clips=30, test_clips=24, frames=4, size=20)
    assert task.train.frames.shape == (30, 4, 3, 20, 20) and task.train.frames.dtype == torch.uint8
    assert task.test.labels.tolist() == 2 * list(range(12)) and task.train.labels.dtype == torch.int64
    more = load_task("order", PHOTOGRAPHS, clips=40, test_clips=1, frames=4, size=20)
    assert torch.equal(more.train.frames[:30], task.train.frames)
    assert len(task.classes) == len(task.groups) == 12 and task.order_blind_bound == 8 / 12


@pytest.mark.parametrize(("frames", "size"), [(0, 84), (7, 84), (8, 0)])
def test_frames_that_do_not_divide_a_clip_are_an_error(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match="frames must divide 32 and size be positive"):
        render(PHOTOGRAPHS, draw_programs("order", "train", 1, PHOTOGRAPHS), frames=frames, size=size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gpu_and_cpu_agree_to_the_bit(variant: str) -> None:
    programs = apart(variant, "train", 64, PHOTOGRAPHS)
    there = PHOTOGRAPHS._replace(texels=PHOTOGRAPHS.texels.cuda())
    assert torch.equal(render(there, programs, size=40).cpu(), render(PHOTOGRAPHS, programs, size=40))
