"""Crops and augmentation of clips: one choice for all frames, exact geometry, and refusals that say what to do."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import aim_adapters as aim
from aim_adapters.video import Augmentation, ClipTransform, Normalize, transform_for
from tests.tiny import PREPROCESSING, trained

SPEC = aim.ClipSpec(4, None, (24, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
EVERYTHING = Augmentation(color=0.5, rand_augment=(2, 9), erasing=1.0)
# Nothing but the crop of everything.
PLAIN = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)


def moving(frames: int = 4, height: int = 40, width: int = 52) -> Tensor:
    small = torch.randint(0, 256, (frames, 3, 10, 13), dtype=torch.uint8)
    return v2.functional.resize(small, [height, width])  # type: ignore[no-any-return]


def still(frames: int = 4, height: int = 40, width: int = 52) -> Tensor:
    """Return a video whose frames are all the same."""
    return moving(1, height, width).expand(frames, -1, -1, -1)


def seeded(transform: Any, frames: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transform(frames)  # type: ignore[no-any-return]


# One choice for all frames


@pytest.mark.parametrize("seed", range(12))
def test_one_random_choice_holds_for_all_frames(seed: int) -> None:
    clip = seeded(ClipTransform((24, 24), train=True, augment=EVERYTHING), still(), seed)
    assert clip.dtype == torch.uint8 and clip.shape == (4, 3, 24, 24)
    assert all(torch.equal(frame, clip[0]) for frame in clip)


def test_choices_differ_from_clip_to_clip_and_follow_the_seed() -> None:
    transform, frames = ClipTransform((24, 24), train=True, augment=EVERYTHING), still()
    clips = [seeded(transform, frames, seed) for seed in range(8)]
    assert len({clip.numpy().tobytes() for clip in clips}) == 8
    assert all(torch.equal(clip, seeded(transform, frames, seed)) for seed, clip in enumerate(clips))
    assert torch.equal(clips[3], seeded(pickle.loads(pickle.dumps(transform)), frames, 3))


def test_frames_are_never_changed() -> None:
    frames = moving()
    kept = frames.clone()
    for seed in range(5):
        seeded(ClipTransform((40, 52), train=True, augment=EVERYTHING), frames, seed)
        seeded(ClipTransform((40, 52), train=True, augment=Augmentation((1, 1), erasing=1.0)), frames, seed)
    assert torch.equal(frames, kept)


def test_layout_in_memory_makes_no_difference() -> None:
    frames = moving(height=256, width=340)
    transform = ClipTransform((224, 224), train=True)
    last = seeded(transform, frames.contiguous(memory_format=torch.channels_last), 1)
    assert torch.equal(last, seeded(transform, frames, 1))
    assert torch.equal(last, seeded(transform, tv_tensors.Video(frames), 1))


# Each augmentation


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0), (1.0, 40), (0.5, 20)])
def test_flips_as_often_as_asked(flip: float, expected: int) -> None:
    frames = moving(1, 8, 8)
    augment = Augmentation((1.0, 1.0), (1.0, 1.0), flip)
    transform = ClipTransform((8, 8), train=True, augment=augment)
    clips = [seeded(transform, frames, seed) for seed in range(40)]
    assert all(torch.equal(clip, frames) or torch.equal(clip, frames.flip(-1)) for clip in clips)
    assert abs(sum(not torch.equal(clip, frames) for clip in clips) - expected) <= (12 if flip == 0.5 else 0)


def test_flips_swap_labels_where_direction_is_the_label() -> None:
    frames = moving(1, 8, 8)
    augment = Augmentation((1.0, 1.0), (1.0, 1.0), swapped_labels={1: 2, 2: 1, 4: None})
    transform = ClipTransform((8, 8), train=True, augment=augment)
    flipped = dict.fromkeys(range(5), 0)
    for seed in range(20):
        for label in range(5):
            torch.manual_seed(seed)
            clip, got = transform.with_label(frames, label)
            flips = not torch.equal(clip, frames)
            assert got == ({1: 2, 2: 1}.get(label, label) if flips else label)
            flipped[label] += flips
    assert flipped.pop(4) == 0 and all(4 < count < 16 for count in flipped.values())
    with pytest.raises(aim.ConfigError, match="with_label"):
        transform(frames)
    assert torch.equal(ClipTransform((8, 8), augment=augment)(frames), frames)  # in testing nothing is flipped


def test_erased_is_one_gray_box_of_all_frames() -> None:
    augment = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, erasing=1.0)
    frames = torch.randint(0, 100, (4, 3, 24, 24), dtype=torch.uint8)
    erased = seeded(ClipTransform((24, 24), train=True, augment=augment), frames, 0) != frames
    rows, columns = erased[0, 0].any(1), erased[0, 0].any(0)
    assert 0.02 <= erased.float().mean() <= 0.34
    assert torch.equal(erased, (rows[:, None] & columns).expand_as(erased))


def test_color_noise_shifts_each_channel_of_the_whole_clip() -> None:
    augment = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, color=1.0)
    transform = ClipTransform((24, 24), train=True, augment=augment)
    frames = torch.full((2, 3, 24, 24), 128, dtype=torch.uint8)
    shifts = torch.stack([seeded(transform, frames, seed).float() - 128 for seed in range(200)])
    assert torch.equal(shifts, shifts[:, :1, :, :1, :1].expand_as(shifts))
    # AlexNet's principal components: their covariance is that of the shifts.
    got = torch.cov(shifts[:, 0, :, 0, 0].T)
    expected = 255**2 * torch.tensor([[0.0155, 0.0154, 0.0154], [0.0154, 0.0160, 0.0161], [0.0154, 0.0161, 0.0163]])
    torch.testing.assert_close(got, expected, rtol=0.25, atol=0)
    dark = torch.zeros_like(frames)
    assert all(seeded(transform, dark, seed).max() < 200 for seed in range(20))  # nothing wraps around


def test_crops_cover_the_shares_of_area_and_aspect() -> None:
    """Where a picture's pixels are their coordinates, a crop tells where it is from."""
    height, width = 200, 256
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = torch.stack([y, x, x]).to(torch.uint8)[None]
    transform = ClipTransform((32, 64), train=True, augment=Augmentation(flip=0.0))
    areas, ratios = [], []
    for seed in range(150):
        clip = seeded(transform, frames, seed)[0].float()
        tall = (clip[0, -1].mean() - clip[0, 0].mean()) * 32 / 31
        wide = (clip[1, :, -1].mean() - clip[1, :, 0].mean()) * 64 / 63
        areas.append(float(tall * wide / (height * width)))
        ratios.append(float(wide / tall / 2))  # images are twice as wide as high
    assert 0.07 < min(areas) < 0.2 and max(areas) > 0.6
    assert 0.7 < min(ratios) < 0.85 and 1.15 < max(ratios) < 1.45


# Geometry in testing


@pytest.mark.parametrize("shape", [(256, 340), (340, 256), (224, 398), (100, 130), (300, 300), (225, 1000)])
def test_the_center_is_that_of_torchvision(shape: tuple[int, int]) -> None:
    frames = moving(2, *shape)
    expected = v2.Compose([v2.Resize(224, antialias=True), v2.CenterCrop(224)])(frames)
    assert torch.equal(ClipTransform((224, 224))(frames), expected)


def test_frames_that_the_decoder_resized_are_only_cropped() -> None:
    transform = ClipTransform((224, 224))
    frames = moving(2, 224, 297)
    assert transform.short_side == 224
    assert transform(frames).untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("size", "train", "expected"), [((224, 224), True, 256), ((336, 336), True, 384), ((112, 200), False, 112)]
)
def test_short_side_is_the_papers_scaled_to_the_image(size: tuple[int, int], train: bool, expected: int) -> None:
    assert ClipTransform(size, train=train).short_side == expected
    assert ClipTransform(size, train=train, short_side=320).short_side == 320


@pytest.mark.parametrize("portrait", [False, True])
def test_crops_are_spread_along_the_longer_side(portrait: bool) -> None:
    frames = moving(2, 24, 60)
    turned = frames.transpose(2, 3) if portrait else frames
    crops = ClipTransform((24, 24), crops=3)(turned)
    assert crops.shape == (3, 2, 3, 24, 24)
    for crop, left in zip(crops, (0, 18, 36), strict=True):
        assert torch.equal(crop.transpose(2, 3) if portrait else crop, frames[..., left : left + 24])
    assert torch.equal(crops[1], ClipTransform((24, 24))(turned))


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    short_side=st.none() | st.integers(1, 60),
    crops=st.integers(1, 3),
)
def test_any_frames_become_the_size_that_was_asked_for(
    size: tuple[int, int], shape: tuple[int, int], short_side: int | None, crops: int
) -> None:
    frames = torch.zeros(2, 3, *shape, dtype=torch.uint8)
    clip = ClipTransform(size, crops=crops, short_side=short_side)(frames)
    assert clip.shape == (*((crops,) if crops > 1 else ()), 2, 3, *size) and clip.dtype == torch.uint8
    assert ClipTransform(size, train=True, short_side=short_side)(frames).shape == (2, 3, *size)


# Up to what a model reads


def test_a_model_reads_what_its_transform_returns() -> None:
    model = trained("vit_small_patch16_224.test")
    transform = transform_for(model)
    frames = moving(4, 30, 40)
    clip = transform(frames)
    assert clip.dtype == torch.float32 and clip.shape == (4, 3, 16, 16) and transform.short_side == 16
    cropped = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])(frames)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.equal(clip, (cropped / 255 - mean) / std)
    assert model(clip[None]).shape == (1, 5)
    assert torch.equal(transform_for(aim.clip_spec(model))(frames), clip)
    assert transform_for(model, crops=3)(frames).shape == (3, 4, 3, 16, 16)


def test_training_for_a_model_is_augmented_normalized_and_picklable() -> None:
    transform, frames = transform_for(SPEC, train=True), moving()
    uint8 = seeded(ClipTransform((24, 24), train=True), frames, 3)
    assert torch.equal(seeded(pickle.loads(pickle.dumps(transform)), frames, 3), Normalize(SPEC.mean, SPEC.std)(uint8))


def test_names_of_classes_tell_what_a_flip_swaps() -> None:
    spec = aim.ClipSpec(4, None, (8, 8), SPEC.mean, SPEC.std, ("sit", "go left", "go right", "turn right"))
    transform = transform_for(spec, train=True)
    assert transform.clip.augment.swapped_labels == {1: 2, 2: 1, 3: None}
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        clip, label = transform.with_label(moving(), 1)
        assert clip.dtype == torch.float32
        seen.add(label)
    assert seen == {1, 2}


# What is refused


@pytest.mark.parametrize(
    ("frames", "advice"),
    [
        (torch.zeros(4, 3, 8, 8), "must be uint8.*float32.*already normalized"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int32), r"frames.to\(torch.uint8\)"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"channels are last: pass frames.permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), r"frames.transpose\(0, 1\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "gray"),
        (torch.zeros(4, 4, 8, 8, dtype=torch.uint8), "alpha"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"frame\[None\]"),
        (torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8), "each clip"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\[T, 3, h, w\]"),
        (torch.zeros(4, 3, 0, 8, dtype=torch.uint8), r"\[T, 3, h, w\]"),
        (np.zeros((4, 3, 8, 8), np.uint8), "torch.from_numpy"),
        ([1], "torch.Tensor"),
        (None, "torch.Tensor"),
        ("clip.mp4", "open_video"),
    ],
)
def test_wrong_frames_are_refused(frames: Any, advice: str) -> None:
    for train in (False, True):
        with pytest.raises(aim.InputError, match=advice):
            ClipTransform((8, 8), train=train)(frames)
    with pytest.raises(aim.InputError, match=advice):
        transform_for(SPEC)(frames)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": 224}, "height and a width"),
        ({"size": (224,)}, "height and a width"),
        ({"size": (0, 224)}, "size"),
        ({"size": (22.4, 224)}, "size"),
        ({"train": 1}, "train"),
        ({"crops": 0}, "crops"),
        ({"crops": 3, "train": True}, "crops"),
        ({"short_side": 0}, "short_side"),
        ({"augment": {}}, "augment"),
        ({"augment": None}, "augment"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(aim.ConfigError, match=named):
        ClipTransform(**{"size": (8, 8), **arguments})


def test_a_transform_is_for_a_model_or_a_spec() -> None:
    with pytest.raises(TypeError, match="Module"):
        transform_for("model")  # type: ignore[arg-type]
    with pytest.raises(aim.ConfigError, match="crops"):
        transform_for(SPEC, crops=0)
    with pytest.raises(aim.ConfigError, match="crops"):
        transform_for(SPEC, True, 3)
    with pytest.raises(aim.StateError, match="not wrapped"):
        transform_for(torch.nn.Linear(2, 2))
