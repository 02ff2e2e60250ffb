"""Swin Transformers of timm and torchvision agree with the plainest possible AIM Swin, and with one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchvision.models import swin_transformer as torchvision_swin

import aim_adapters as aim
from tests.backbones.cases import scramble, wake
from tests.oracle.agreement import assert_agree
from tests.oracle.swin import aim_swin
from tests.oracle.vit import Weights

DEPTHS, HEADS, WINDOW = (2, 2), (2, 4), 4


def timm_swin(image: int = 32) -> nn.Module:
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=image, patch_size=4, embed_dim=16, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW, num_classes=5
    )
    return scramble(model).double().eval()


def torchvision_twin(model: nn.Module) -> nn.Module:
    """Put timm's weights into torchvision's model; patch merging lies at the end of a stage there."""
    twin = torchvision_swin.SwinTransformer([4, 4], 16, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=5)
    state: Weights = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            new = ["features", "0", {"proj": "0", "norm": "2"}[parts[1]], *parts[2:]]
        elif parts[0] == "layers" and parts[2] == "blocks":
            rest = ".".join(parts[4:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
            new = ["features", str(1 + 2 * int(parts[1])), parts[3], rest]
        elif parts[0] == "layers":
            new = ["features", str(2 * int(parts[1])), *parts[3:]]
        else:
            new = [parts[0], *(p for p in parts[1:] if p != "fc")]
        state[".".join(new)] = tensor
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return twin.double().eval()


def video_of(frames: int, image: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, frames, 3, image, image, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(("frames", "tubelet"), [(1, 1), (2, 1), (3, 1), (8, 1), (8, 2), (16, 2)])
def test_forward_and_every_gradient(library: str, frames: int, tubelet: int) -> None:
    model = timm_swin()
    w = dict(model.state_dict())
    if library == "torchvision":
        model = torchvision_twin(model)
    aim.wrap_image_model(model, frames, tubelet_size=tubelet, input_layout="BTCHW")
    wake(model)
    a = {key: tensor.clone().requires_grad_() for key, tensor in aim.adapter_state_dict(model).items()}
    ours, theirs = (video_of(frames).requires_grad_() for _ in range(2))
    out = model(ours)
    expected = aim_swin(w, a, theirs, depths=DEPTHS, heads=HEADS, window=WINDOW, tubelet=tubelet)
    assert_agree(model, a, out, expected, ours, theirs)


def test_one_adapter_file_serves_timm_and_torchvision(tmp_path: Path) -> None:
    base = timm_swin()
    twin = torchvision_twin(base)
    aim.save_adapters(wake(aim.wrap_image_model(base, 4)), tmp_path)
    assert not any(aim.load_adapters(twin, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(twin(video_of(4)), base(video_of(4)), rtol=1e-10, atol=1e-10)


def test_temporal_pass_runs_on_unshifted_blocks_only() -> None:
    model = aim.wrap_image_model(timm_swin(), 4)
    keys = {key.split(".")[1] for key in aim.adapter_state_dict(model) if ".temporal." in key}
    assert keys == {"0", "2"}
    with pytest.raises(aim.AIMError, match=r"none of the blocks \[1, 3\] attends over time.*\[0, 2\]"):
        aim.wrap_image_model(timm_swin(), 4, layers=[1, 3])
    spatial: Any = aim.wrap_image_model(timm_swin(), 4, layers=[1, 3], components=("spatial", "joint"))
    assert spatial(video_of(4)).shape == (2, 5)


def test_swin_b_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        model = timm.create_model("swin_base_patch4_window7_224.ms_in22k")
        aim.wrap_image_model(model, 32, tubelet_size=2, num_classes=400)
    count = aim.count_parameters(model)
    assert f"{count.trainable / 1e6:.1f}" == "9.2"
    assert aim.adapter_state_dict(model)["blocks.0.temporal_bias"].shape == (2 * 16 - 1, 4)
