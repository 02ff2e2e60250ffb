"""Every library's ViT agrees with the plainest possible AIM ViT: forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.backbones.cases import wake
from tests.oracle import holders
from tests.oracle.agreement import assert_agree
from tests.oracle.vit import Size, Weights, aim_vit, random_weights

Holder = Callable[[Weights, Size], nn.Module]
PLAIN, CLIP, DINO = (
    Size(),
    Size(eps=1e-5, quick_gelu=True, pre_norm=True, patch_bias=False),
    Size(layer_scale=True),
)
AGREE: list[tuple[str, Holder, Size]] = [
    ("plain", holders.timm, PLAIN), ("plain", holders.torchvision, PLAIN), ("plain", holders.hf_vit, PLAIN),
    ("clip", holders.timm, CLIP), ("clip", holders.open_clip, CLIP), ("clip", holders.hf_clip, CLIP),
    ("dino", holders.timm, DINO), ("dino", holders.hf_dinov2, DINO),
]  # fmt: skip
HOLDERS = pytest.mark.parametrize(
    ("holder", "size"), [pytest.param(holder, size, id=f"{kind}-{holder.__name__}") for kind, holder, size in AGREE]
)


def video_of(frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, frames, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)


def output(model: nn.Module, video: Tensor) -> Tensor:
    out = model(video)
    for name in ("logits", "pooler_output"):
        out = getattr(out, name, out)
    return out


def expected_output(model: nn.Module, w: Weights, a: Weights, video: Tensor, size: Size) -> Tensor:
    features, logits = aim_vit(w, a, video, size)
    return features @ w["head.weight"].T if hasattr(model, "proj") else logits


@HOLDERS
@pytest.mark.parametrize("frames", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("flat", [False, True])
def test_forward_and_every_gradient(holder: Holder, size: Size, frames: int, flat: bool) -> None:
    w = random_weights(size)
    model = holder(w, size)
    aim.wrap_image_model(model, frames, temporal_input_adapter=frames == 8, input_layout="BTCHW")
    wake(model)
    a = {key: tensor.clone().requires_grad_() for key, tensor in aim.adapter_state_dict(model).items()}
    ours, theirs = (video_of(frames).requires_grad_() for _ in range(2))
    out, expected = output(model, ours.flatten(0, 1) if flat else ours), expected_output(model, w, a, theirs, size)
    assert_agree(model, a, out, expected, ours, theirs)


@HOLDERS
def test_float32_agrees(holder: Holder, size: Size) -> None:
    w = random_weights(size)
    model = wake(aim.wrap_image_model(holder(w, size), 8)).float()
    a = {key: tensor.double() for key, tensor in aim.adapter_state_dict(model).items()}
    with torch.no_grad():
        expected = expected_output(model, w, a, video_of(8), size)
        error = (output(model, video_of(8, torch.float32)).double() - expected).norm() / expected.norm()
    assert error < 1e-5


@pytest.mark.parametrize("size", [CLIP, DINO, PLAIN], ids=["clip", "dino", "plain"])
def test_one_adapter_file_serves_every_library_that_holds_the_same_weights(size: Size, tmp_path: Path) -> None:
    w, video = random_weights(size), video_of(4)
    models = [holder(w, size) for _, holder, of in AGREE if of is size]
    first: Any = wake(aim.wrap_image_model(models[0], 4, num_classes=7))
    aim.save_adapters(first, tmp_path)
    features = []
    for model in models:
        other = model
        if other is not first:
            if isinstance(model, (holders.hf.CLIPVisionModel, holders.hf.Dinov2Model)):
                # headless in transformers: the trained classifier has no place there, and is reported
                aim.wrap_image_model(model, 4)
                report = aim.load_adapters(model, tmp_path, strict=False)
                assert report == ((), ("head.bias", "head.weight"), ())
            else:
                assert not any(aim.load_adapters(model, tmp_path))
        with torch.no_grad():
            out = output(other, video)
        if "head.weight" not in aim.adapter_state_dict(other):
            state = aim.adapter_state_dict(first)
            out = out @ state["head.weight"].T + state["head.bias"]
        features.append(out)
    for out in features[1:]:
        torch.testing.assert_close(out, features[0], rtol=1e-10, atol=1e-10)
