"""Features of a long video are what the classification layer reads of each clip, in memory that does not grow."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import aim_adapters as aim
from aim_adapters.errors import ConfigError, InputError, StateError
from aim_adapters.video.features import extract_features
from tests.backbones import test_open_clip_vit, test_swin, test_timm_vit, test_torchvision_vit, test_transformers
from tests.backbones.cases import FRAMES, Case, scramble, wake
from tests.memory import at_most

FAMILIES = (test_timm_vit, test_open_clip_vit, test_torchvision_vit, test_transformers, test_swin)
CASES: list[Any] = [pytest.param(case, id=case.name) for family in FAMILIES for case in family.CASES]
SIZE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def vit(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(scramble(VisionTransformer(**SIZE)), FRAMES, **kwargs)).eval()


def frames(number: int) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def cut(video: Tensor, stride: int) -> Tensor:
    """Cut a video into clips `[clips, T, C, H, W]` by the rule, in plain words."""
    starts = list(range(0, len(video) - FRAMES + 1, stride))
    if starts[-1] + FRAMES < len(video):
        starts.append(len(video) - FRAMES)
    return torch.stack([video[start : start + FRAMES] for start in starts])


@torch.no_grad()
def read_by_classifiers(model: nn.Module, case: Case, video: Tensor) -> Tensor:
    """Return what reaches our classification layers, or the tower's output where there are none."""
    root = next(module for module in model.modules() if hasattr(module, "aim") and hasattr(module.aim, "record"))
    read: list[Tensor] = []
    for name in ("head", "head_dist"):
        if layer := root.aim.classifier(name):
            layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    out = root(video)
    return torch.stack(read).mean(0) if read else case.output(out)


@pytest.mark.parametrize("case", CASES)
def test_every_family_gives_what_its_classification_layer_reads(case: Case) -> None:
    model = wake(aim.wrap_image_model(case.model(), FRAMES)).eval()
    video = case.video(clips=2)
    found = extract_features(model, video.flatten(0, 1))
    assert torch.equal(found, read_by_classifiers(model, case, video))


@pytest.mark.parametrize("num_classes", [0, 7])
def test_a_new_classification_layer_is_left_out(num_classes: int) -> None:
    # open_clip's tower hides its projection under a new layer.
    for case in (test_timm_vit.CASES[0], test_open_clip_vit.CASES[0], test_open_clip_vit.CASES[-1]):
        model = wake(aim.wrap_image_model(case.model(), FRAMES, num_classes=num_classes)).eval()
        video = case.video()
        found = extract_features(model, video.flatten(0, 1))
        assert found.shape == (2, 32)
        assert torch.equal(found, read_by_classifiers(model, case, video))


def chunks(video: Tensor, *sizes: int) -> Iterator[Tensor]:
    """Yield chunks of these sizes in turn; 0: a single frame."""
    while len(video):
        for size in sizes:
            if len(video):
                yield video[:size] if size else video[0]
                video = video[size or 1 :]


@pytest.mark.parametrize("stride", [1, 3, 4, 5, 11])
@pytest.mark.parametrize("number", [4, 5, 15, 24])
def test_clips_follow_the_rule_however_frames_come(number: int, stride: int) -> None:
    model, video = vit(), frames(number)
    head = model.get_submodule("aim.head")
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in cut(video, stride).split(3)])
    ways: tuple[Tensor | Iterable[Tensor], ...] = (video, chunks(video, 0), chunks(video, 1, 7, 0, 3), list(video))
    for way in ways:
        found = extract_features(model, way, stride=stride, batch_size=3)
        assert torch.equal(torch.cat([head(batch) for batch in found.split(3)]), expected)


def test_one_call_per_clip_gives_the_same_to_rounding() -> None:
    model, video = vit(tubelet_size=2), frames(21)
    one = torch.cat([extract_features(model, clip) for clip in cut(video, 3)])
    torch.testing.assert_close(extract_features(model, video, stride=3, batch_size=5), one, rtol=1e-5, atol=1e-6)


def test_frames_are_let_go_of_when_no_clip_needs_them() -> None:
    model, alive, most = vit(), set[int](), 0

    def decode() -> Iterator[Tensor]:
        nonlocal most
        for index in range(100):
            frame = np.zeros((3, 16, 16), np.float32)
            alive.add(index)
            weakref.finalize(frame, alive.discard, index)  # called when no tensor has its memory any more
            most = max(most, len(alive))
            yield torch.from_numpy(frame)
            del frame

    for stride in (1, 4, 50):
        extract_features(model, decode(), stride=stride, batch_size=2)
        assert not alive
    assert FRAMES <= most <= 2 * FRAMES


def test_memory_does_not_grow_with_the_video() -> None:
    torch.manual_seed(0)
    model = aim.wrap_image_model(VisionTransformer(**{**SIZE, "img_size": 224, "patch_size": 112}), FRAMES)

    def decode(number: int) -> Iterator[Tensor]:
        return (torch.full((3, 224, 224), 0.1) for _ in range(number))

    extract_features(model, decode(16), batch_size=2)
    with at_most(100):  # the frames are 574 MiB
        assert len(extract_features(model, decode(1000), stride=2, batch_size=2)) == 499


def test_no_more_is_read_than_the_next_batch_needs() -> None:
    model, number = vit(), 0
    seen: list[int] = []

    def decode() -> Iterator[Tensor]:
        nonlocal number
        for frame in frames(24):
            number += 1
            yield frame

    model.register_forward_pre_hook(lambda *_: seen.append(number))
    extract_features(model, decode(), batch_size=2)
    assert seen == [8, 16, 24]


def test_modes_are_as_before_also_after_an_error() -> None:
    model = vit(drop_path=0.5, head_dropout=0.5).train()
    model.get_submodule("aim.head").eval()
    before = {name: module.training for name, module in model.named_modules()}
    expected = extract_features(vit(), frames(8))
    assert torch.equal(extract_features(model, frames(8)), expected)

    def broken() -> Iterator[Tensor]:
        yield from frames(8)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        extract_features(model, broken())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model(frames(4)).shape == (1, 5)


def test_a_probe_can_be_trained_on_them() -> None:
    found = extract_features(vit(), frames(8))
    probe = nn.Linear(32, 2)
    probe(found).sum().backward()
    assert probe.weight.grad is not None
    assert not found.requires_grad


def test_autocast_is_the_callers() -> None:
    model = vit()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract_features(model, frames(8))
    exact = extract_features(model, frames(8))
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)


def test_a_compiled_model_runs_compiled() -> None:
    model, counter = vit(), CompileCounter()
    expected = extract_features(model, frames(8))
    assert torch.equal(extract_features(torch.compile(model, backend=counter, fullgraph=True), frames(8)), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 8, 3, 16, 16), r"one video, \[S, C, H, W\], got \[1, 8, 3, 16, 16\]"),
        (torch.zeros(3, 8, 16, 16), "3 channels, got"),
        (torch.zeros(3, 3, 16, 16), "4 frames, got a video of 3"),
        (torch.zeros(8, 3, 16, 16, dtype=torch.uint8), "floating-point.*uint8"),
        ([], "4 frames, got a video of 0"),
        (["frame"], "got str"),
        ([torch.zeros(3, 16)], r"\[C, H, W\] or \[n, C, H, W\]"),
        ([torch.zeros(3, 3, 16, 16), torch.zeros(3, 16, 8)], r"one size, got \[3, 16, 16\] and then \[3, 16, 8\]"),
        (None, "an iterable of them, got NoneType"),
    ],
)
def test_wrong_videos_are_refused(video: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        extract_features(vit(), video)


@pytest.mark.parametrize("name", ["stride", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True])
def test_wrong_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be an integer >= 1, got {value}"):
        extract_features(vit(), frames(8), **{name: value})


def test_models_without_features_are_refused() -> None:
    with pytest.raises(StateError, match="not wrapped"):
        extract_features(VisionTransformer(**SIZE), frames(8))
    model = vit()
    with aim.disable_adapters(model), pytest.raises(StateError, match="disabled"):
        extract_features(model, frames(8))
    own = VisionTransformer(**SIZE)
    own.head = nn.Sequential(nn.Linear(32, 5), nn.ReLU())
    with pytest.raises(aim.UnsupportedModelError, match=r"'head' is a Sequential.*num_classes=0"):
        extract_features(aim.wrap_image_model(own, FRAMES), frames(8))
    tower: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    unpooled = hf.ViTModel(hf.ViTConfig(**tower, image_size=16, patch_size=8), add_pooling_layer=False)
    with pytest.raises(aim.UnsupportedModelError, match="pools nothing"):
        extract_features(aim.wrap_image_model(unpooled, FRAMES), frames(8))
    naflex = hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**tower, intermediate_size=64, patch_size=8, num_patches=4))
    with pytest.raises(aim.UnsupportedModelError, match="patches cut beforehand"):
        extract_features(aim.wrap_image_model(naflex, FRAMES), frames(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_does_not_grow_with_the_video() -> None:
    model = vit().cuda()
    extract_features(model, frames(16), stride=2)
    peaks = []
    for number in (64, 512):
        torch.cuda.reset_peak_memory_stats()
        assert extract_features(model, frames(number).pin_memory(), stride=2).is_cuda
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] < 2**20
