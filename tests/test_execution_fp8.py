"""Products by frozen weights run in float8 if asked, for a whole model: near the same, as trainable, or an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.config import Execution
from aim_adapters.errors import ConfigError, UnsupportedKernelError
from tests.backbones.cases import scramble, wake

T = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs_fp8 = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="needs an Ada or Hopper GPU"
)


def vit(**arguments: Any) -> Any:
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 16}
    return VisionTransformer(**{**size, **arguments})


def wrapped(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(scramble(vit()), T, **arguments)).to(DEVICE).eval()


def video(clips: int = 4) -> Tensor:
    return torch.randn(clips, T, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def run(model: nn.Module, clips: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16):
        out: Tensor = model(clips)
    return out.float()


def test_is_chosen_by_itself() -> None:
    model = wrapped()
    assert model.aim.execution.frozen_precision == "auto"
    aim.set_execution(model, frozen_precision="fp8")
    aim.set_execution(model, memory="low")
    chosen = Execution(memory="low", frozen_precision="fp8")
    assert model.aim.execution == chosen
    with pytest.raises(ConfigError, match="frozen_precision must be one of 'auto', 'fp8', got 'int8'"):
        aim.set_execution(model, memory="fast", frozen_precision="int8")  # type: ignore[arg-type]
    assert model.aim.execution == chosen
    assert copy.deepcopy(model).aim.execution == chosen
    aim.set_execution(model, frozen_precision="auto")
    assert model.aim.execution == Execution(memory="low")


def test_holds_for_every_adapter() -> None:
    model = wrapped()
    aim.add_adapter(model, "before", aim.AIMConfig(num_frames=T))
    aim.set_execution(model, frozen_precision="fp8")
    aim.add_adapter(model, "after", aim.AIMConfig(num_frames=T))
    for name in ("before", "after", "default"):
        aim.set_adapter(model, name)
        assert model.aim.execution.frozen_precision == "fp8"


@runs_fp8
@pytest.mark.parametrize(
    "arguments", [{"mlp_layer": SwiGLUPacked}, {"scale_mlp_norm": True}, {"norm_layer": "rmsnorm"}], ids=str
)
def test_gated_mlps_and_rms_norms_are_refused_by_name(arguments: dict[str, Any]) -> None:
    model = aim.wrap_image_model(vit(**arguments), T).to(DEVICE).eval()
    aim.set_execution(model, frozen_precision="fp8")
    with pytest.raises(UnsupportedKernelError, match="float8 products know no RMSNorm, and no MLP that is gated"):
        run(model, video())


@runs_fp8
def test_is_explained() -> None:
    model = wrapped()
    aim.set_execution(model, frozen_precision="fp8")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert {row[1:] for row in aim.explain_execution(model)} == {("fused, fp8",) * 3}


@runs_fp8
@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
def test_is_near(memory: Any) -> None:
    model, clips = wrapped(drop_path=0.2).train(), video()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for precision in ("auto", "fp8"):
        aim.set_execution(model, memory=memory, frozen_precision=precision)  # type: ignore[arg-type]
        torch.manual_seed(3)  # stochastic depth
        out = run(model, clips)
        gradients = torch.autograd.grad(F.cross_entropy(out, torch.arange(4, device=DEVICE)), trained)
        found.append([out.flatten(), torch.cat([g.flatten() for g in gradients])])
    for plain, fp8 in zip(*found, strict=True):
        assert not torch.equal(plain, fp8)
        assert F.cosine_similarity(plain, fp8, dim=0) > 0.99


@runs_fp8
def test_stores_nothing_and_sees_new_weights() -> None:
    model, clips = wrapped(), video()
    keys = list(model.state_dict())
    aim.set_execution(model, frozen_precision="fp8")
    with torch.no_grad():
        before = run(model, clips)
        for block in model.blocks:
            block.mlp.fc1.weight.mul_(-1)
        after = run(model, clips)
        aim.set_execution(model, frozen_precision="auto")
        plain = run(model, clips)
    assert list(model.state_dict()) == keys
    assert (after - plain).norm() < 0.1 * (after - before).norm()


@runs_fp8
def test_learns_as_well() -> None:
    curves = []
    for precision in ("auto", "fp8"):
        model = wrapped().train()
        aim.set_execution(model, frozen_precision=precision)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        curve = []
        for _ in range(12):
            loss = F.cross_entropy(run(model, video()), torch.arange(4, device=DEVICE))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        curves.append(torch.tensor(curve))
    fell = curves[0][0] - curves[0][-1]
    assert fell > 0.5
    assert (curves[0] - curves[1]).abs().max() < 0.1 * fell


@runs_fp8
def test_compiles() -> None:
    model, clips = wrapped(), video()
    aim.set_execution(model, frozen_precision="fp8")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    out, expected = run(compiled, clips), run(model, clips)
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    torch.autograd.grad(out.sum(), model.aim.head.weight)


# Never falls back


def test_needs_a_gpu(no_triton: None) -> None:
    model = wrapped().cpu()
    aim.set_execution(model, frozen_precision="fp8")
    with pytest.raises(UnsupportedKernelError, match=r"temporal branch of 'blocks\.0' .* needs a CUDA device, got cpu"):
        model(video().cpu())
    aim.set_execution(model, frozen_precision="auto")
    model(video().cpu())


@runs_fp8
def test_needs_fused_branches() -> None:
    model = wrapped()
    aim.set_execution(model, frozen_precision="fp8", fused=False)
    with pytest.raises(
        UnsupportedKernelError, match=r"frozen_precision='fp8' was asked for, but .* asked for by name; use"
    ):
        run(model, video())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@runs_fp8
def test_needs_bfloat16() -> None:
    model = wrapped()
    aim.set_execution(model, frozen_precision="fp8")
    with pytest.raises(UnsupportedKernelError, match=r"float8 products return torch\.bfloat16, got torch\.float32"):
        model(video())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@runs_fp8
def test_needs_widths_of_sixteen() -> None:
    model = wake(aim.wrap_image_model(vit(embed_dim=72), T)).to(DEVICE)
    aim.set_execution(model, frozen_precision="fp8")
    with pytest.raises(UnsupportedKernelError, match=r"multiples of 16 .*, got \(216, 72\)"):
        run(model, video())
