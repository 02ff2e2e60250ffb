"""Exported video models compute the same for any number of clips, without this package: torch.export, ONNX, traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import SwinTransformer as TorchvisionSwin
from torchvision.models import VisionTransformer as TorchvisionTransformer
from transformers import ViTConfig, ViTForImageClassification

import aim_adapters as aim
from tests.backbones.cases import FRAMES, scramble, wake

# PyTorch's own exporters warn of what is deprecated in PyTorch; a trace warns of checks of shapes, which it skips.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
    pytest.mark.filterwarnings("ignore:# '_dynamo':UserWarning"),
]

SIZE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,),
    "num_classes": 5,
}  # fmt: skip
VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: VisionTransformer(**SIZE),
    "timm_swin": lambda: SwinTransformer(**SWIN),
    "timm_eva": lambda: Eva(**SIZE, use_rot_pos_emb=True),
    "timm_naflexvit": lambda: NaFlexVit(
        patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5, pos_embed_grid_size=(2, 2)
    ),
    "timm_beit": lambda: Beit(**SIZE, use_rel_pos_bias=True),
    "open_clip": lambda: OpenClipTransformer(
        image_size=16, patch_size=8, width=32, layers=1, heads=2, mlp_ratio=2.0, output_dim=8
    ),
    "torchvision": lambda: TorchvisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5
    ),
    "torchvision_swin": lambda: TorchvisionSwin([2, 2], 16, [2], [2], [4, 4], num_classes=5),
    "transformers": lambda: Logits(ViTForImageClassification(VIT)),
}
CLIPS = torch.export.Dim("clips", min=1, max=1024)


class Logits(nn.Module):
    """A model that returns a record, as one that returns a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        return self.model(video).logits


def video(clips: int) -> Tensor:
    return torch.randn(clips, FRAMES, 3, 16, 16, generator=torch.Generator().manual_seed(clips))


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = scramble(MODELS[name]())
    aim.wrap_image_model(model.model if isinstance(model, Logits) else model, FRAMES)
    return wake(model).eval()


def assert_same(model: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
    for clips in (2, 1, 3, 7):
        with torch.no_grad():
            expected = model(video(clips))
        torch.testing.assert_close(run(video(clips)), expected, rtol=1e-5, atol=1e-5)


def onnx_session(file: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(np.asarray(session.run(None, {"video": clips.numpy()})[0]))


def test_exported_programs_take_any_number_of_clips() -> None:
    model = model_of("timm")
    with torch.no_grad():
        program = torch.export.export(model, (video(2),), dynamic_shapes=({0: CLIPS},), strict=False)
        assert_same(model, program.module())


@pytest.mark.parametrize("name", ["timm_swin", "transformers"])  # docs/export.md does the same with one of timm
def test_onnx_by_torch_export_takes_any_number_of_clips(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    program = torch.onnx.export(
        model, (video(2),), dynamo=True, dynamic_shapes=({0: CLIPS},), input_names=["video"], verbose=False
    )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    assert_same(model, onnx_session(tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", list(MODELS))
def test_onnx_by_tracing_takes_any_number_of_clips(name: str, tmp_path: Path) -> None:
    model, file, axes = model_of(name), tmp_path / "model.onnx", {"video": {0: "clips"}}
    torch.onnx.export(model, (video(2),), str(file), dynamo=False, input_names=["video"], dynamic_axes=axes)
    assert_same(model, onnx_session(file))


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("name", ["timm", "timm_swin", "open_clip"])
def test_traces_take_any_number_of_clips(name: str, attention: Any) -> None:
    model = model_of(name)
    aim.set_attention(model, attention)
    with torch.no_grad():
        traced = torch.jit.trace(model, (video(2),), check_trace=False)
        assert_same(model, traced)
