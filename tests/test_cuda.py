"""On a GPU: the same answers, in every precision, compiled or not, and for more sequences than a grid has blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.ops.temporal_attention import temporal_attention
from tests.backbones.cases import loss, scramble, wake

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
T = 8


def vit() -> nn.Module:
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=128, depth=3, num_heads=2, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5
    )


def wrapped(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(scramble(make()), T)).cuda()


def video(clips: int = 2) -> Tensor:
    return torch.randn(clips, T, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()


def results(model: nn.Module, run: Any, clips: Tensor) -> list[Tensor]:
    model.train().zero_grad()
    out = run(clips)
    loss(out.float()).backward()
    return [out.detach().float(), *(p.grad.float() for p in aim.trainable_parameters(model))]


def error(got: list[Tensor], exact: list[Tensor]) -> float:
    """Return the relative error of output and all gradients together; a single gradient may be nearly zero."""
    difference = torch.cat([(g.double() - e.double()).flatten() for g, e in zip(got, exact, strict=True)])
    return (difference.norm() / torch.cat([e.double().flatten() for e in exact]).norm()).item()


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [((g.double() - e.double()).norm() / e.double().norm()).item() for g, e in zip(got, exact, strict=True)]


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # on for convolutions unless told otherwise


@pytest.mark.parametrize("make", [vit, swin])
def test_the_gpu_agrees_with_float64(make: Any) -> None:
    model = wrapped(make)
    fused = results(model, model, video())
    model.double()
    exact = results(model, model, video().double())
    assert error(fused, exact) < 1e-4


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_no_worse_than_the_eager_attention(make: Any, dtype: torch.dtype) -> None:
    model = wrapped(make)
    low = {}
    for attention in ("sdpa", "eager"):
        aim.set_attention(model, attention)
        with torch.autocast("cuda", dtype):
            low[attention] = results(model, model, video())
    exact = results(model.double(), model, video().double())
    sdpa, eager = (errors(low[name], exact) for name in ("sdpa", "eager"))
    assert all(s < 2 * e + 1e-3 for s, e in zip(sdpa, eager, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # inductor's own
@pytest.mark.parametrize("make", [vit, swin])
def test_compiled_agrees(make: Any) -> None:
    model = wrapped(make)
    eager = results(model, model, video())
    torch._dynamo.reset()
    compiled = results(model, torch.compile(model, fullgraph=True), video())
    assert error(compiled, eager) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_sequences_than_a_grid_has_blocks(dtype: torch.dtype) -> None:
    frames, tokens, clips = 2, 4_097, 17  # 69,649 sequences
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(clips * frames, tokens, 2, 16, device="cuda", dtype=dtype, generator=generator).requires_grad_()
        for _ in range(3)
    )
    outputs, grads = [], []
    for implementation in ("sdpa", "eager"):
        out = temporal_attention(q, k, v, num_frames=frames, implementation=implementation)
        outputs.append(out.detach())
        grads.append(torch.autograd.grad(out.float().square().sum(), (q, k, v)))
    for sdpa, eager in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        difference = (sdpa.float() - eager.float()).norm() / eager.float().norm()
        assert difference < (1e-5 if dtype == torch.float32 else 1e-2)
