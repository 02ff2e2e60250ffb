"""One real scenario for each room of the package, together in seconds: what `make quick` runs.

Each fails if its room is broken. They call public names and the front doors of `backbones` and `ops`, so that they
outlive moves inside the package. What a room promises in full is tested in the folder of its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.ops.spatial_attention import spatial_attention
from aim_adapters.ops.temporal_attention import temporal_attention_packed
from aim_adapters.recipes import get_recipe
from aim_adapters.video import transform_for
from tests.loopback_hub import LoopbackHub

T, N, D, DEPTH, CLASSES = 4, 5, 32, 3, 3  # frames, tokens, width, blocks, classes


def base(seed: int = 0) -> nn.Module:
    """Return a tiny image transformer that does not treat all images alike."""
    torch.manual_seed(seed)
    size = {"img_size": 32, "patch_size": 16, "embed_dim": D, "depth": DEPTH, "num_heads": 2, "num_classes": CLASSES}
    model = timm.create_model("vit_tiny_patch16_224", **size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def trained(model: nn.Module, *, side: int = 32) -> nn.Module:
    """Train a wrapped model for two steps, after which every parameter that trains has changed."""
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=0.01)
    model.train()
    for step in range(2):
        optimizer.zero_grad()
        model(clips(seed=step, side=side)).square().sum().backward()
        optimizer.step()
    return model.eval()


def clips(frames: int = T, *, seed: int = 0, side: int = 32) -> Tensor:
    """Return two clips ``[2, T, 3, side, side]``."""
    return torch.randn(2, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def outputs(model: nn.Module, video: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(video)
    return out


def averaged(model: nn.Module, video: Tensor) -> Tensor:
    """Return an image model's output for each frame, averaged over frames."""
    return outputs(model, video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


def test_core_wraps_trains_and_unwraps() -> None:
    model, video = base(), clips()
    expected, state = averaged(model, video), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frames = outputs(model, video.flatten(0, 1))
    assert aim.wrap_image_model(model, num_frames=T) is model
    torch.testing.assert_close(outputs(model, video), expected)
    before = [parameter.detach().clone() for parameter in aim.trainable_parameters(model)]
    trained(model)
    after = aim.trainable_parameters(model)
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not torch.allclose(outputs(model, video), outputs(model, video.flip(1)))  # the order of frames counts
    aim.unwrap_image_model(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(outputs(model, video.flatten(0, 1)), frames)


def test_core_compiles_in_one_graph() -> None:
    model = trained(aim.wrap_image_model(base(), num_frames=T))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(outputs(compiled, clips()), outputs(model, clips()))


def test_execution_fused_and_by_modules_agree() -> None:
    video = clips().double()
    found = []
    for fused in (True, False):
        model = trained(aim.wrap_image_model(base(), num_frames=T)).double()
        aim.set_execution(model, fused=fused)
        out = model(video)
        found.append([out, *torch.autograd.grad(out.square().sum(), aim.trainable_parameters(model))])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("attention", "arguments"),
    [(temporal_attention_packed, {"num_frames": T}), (spatial_attention, {})],
    ids=["time", "space"],
)
def test_ops_kernels_answer_to_the_reference(attention: Callable[..., Tensor], arguments: dict[str, int]) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton interprets its kernels
    packed = torch.randn(2 * T, N, 3, 2, 16, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)

    def run(implementation: str, dtype: torch.dtype) -> list[Tensor]:
        qkv = packed.to(dtype).requires_grad_()
        out = attention(qkv, implementation=implementation, **arguments)
        return [out.double(), torch.autograd.grad(out.square().sum(), qkv)[0].double()]

    kernel, plain, exact = run("triton", torch.float16), run("eager", torch.float16), run("eager", torch.float64)
    for ours, theirs, true in zip(kernel, plain, exact, strict=True):
        assert (ours - true).norm() <= 2 * (theirs - true).norm() + 4 * torch.finfo(torch.float16).eps * true.norm()


def test_checkpoint_loads_to_the_bit(tmp_path: Path) -> None:
    model = trained(aim.wrap_image_model(base(), num_frames=T, num_classes=7))
    aim.save_adapters(model, tmp_path)
    again = base()
    report = aim.load_adapters(again, tmp_path)
    assert not any(report)
    assert torch.equal(outputs(again.eval(), clips()), outputs(model, clips()))


def test_storage_refuses_hostile_files(tmp_path: Path) -> None:
    aim.save_adapters(trained(aim.wrap_image_model(base(), num_frames=T)), tmp_path)
    file, model = tmp_path / "adapter_model.safetensors", base()
    good = file.read_bytes()
    for content, says in (
        (good[:-1], "is damaged or not a safetensors file"),
        (b"\x80\x04" + good, "it looks like a pickle"),
        ((2**62).to_bytes(8, "little") + good[8:], "its header should have"),
    ):
        file.write_bytes(content)
        with pytest.raises(aim.CheckpointError, match=says):
            aim.load_adapters(model, tmp_path)
        assert not aim.is_wrapped(model)


def test_hub_brings_back_what_was_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub = LoopbackHub()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_DISABLE_TELEMETRY", True)):
        monkeypatch.setattr(constants, name, value)
    model = trained(aim.wrap_image_model(timm.create_model("test_vit"), num_frames=T, num_classes=CLASSES), side=160)
    commit = aim.push_to_hub(model, "me/tiny", token="hf_secret")
    assert "me/tiny" in hub.repos["me/tiny"].files()["README.md"].decode()
    arguments = {"revision": commit, "cache_dir": tmp_path, "token": False}
    built = aim.load_video_model("me/tiny", pretrained=False, **arguments)  # base model and adapters, by their names
    ours, theirs = aim.adapter_state_dict(model), aim.adapter_state_dict(built)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    hub.shutdown()


def test_adapters_take_turns() -> None:
    model = trained(aim.wrap_image_model(base(), num_frames=T))
    first = outputs(model, clips())
    aim.add_adapter(model, "short", aim.AIMConfig(num_frames=2, num_classes=7, layers="top_half"))
    aim.set_adapter(model, "short")
    assert outputs(model, clips(2)).shape == (2, 7)
    aim.set_adapter(model, "default")
    assert torch.equal(outputs(model, clips()), first)
    aim.add_adapter(model, "other", aim.AIMConfig(num_frames=T))
    aim.average_adapters(model, ["default", "other"], weights=[1, 0], into="soup")
    aim.set_adapter(model, "soup")
    assert torch.equal(outputs(model, clips()), first)


def test_frames_and_video_features() -> None:
    model = trained(aim.wrap_image_model(base(), num_frames=T))
    with pytest.warns(UserWarning, match="interpolated from 4 to 6 frames"):
        aim.set_num_frames(model, 6)
    assert outputs(model, clips(6)).shape == (2, CLASSES)
    long = clips(12)[0]  # [12, 3, 32, 32]
    features = aim.extract_features(model, iter(long), stride=3)
    head = model.get_submodule("aim.head")
    torch.testing.assert_close(head(features), outputs(model, torch.stack([long[:6], long[3:9], long[6:]])))


def test_analysis_counts_what_is_computed() -> None:
    model = aim.wrap_image_model(base(), num_frames=T)
    width = D // 4
    per_block = (
        2 * (N * D * 4 * D)  # projections of both attentions
        + 2 * N * T * D  # scores and values over frames
        + 2 * N * N * D  # and over tokens
        + N * D * 8 * D  # MLP
        + 3 * (2 * N * D * width)  # adapters
    )
    per_frame = (N - 1) * 3 * 16 * 16 * D + DEPTH * per_block
    assert aim.count_flops(model).gmacs * 1e9 == pytest.approx(T * per_frame + D * CLASSES, rel=1e-12)
    count = aim.count_parameters(model)
    ours = DEPTH * 3 * (2 * D * width + width + D) + T * D + 2 * D + D * CLASSES + CLASSES
    assert count.trainable == ours


BASES: dict[str, Callable[[], nn.Module]] = {
    "timm_swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2)
    ),
    "open_clip_vit": lambda: open_clip.model.VisionTransformer(32, 16, 32, 2, 2, 4.0, output_dim=8),
    "torchvision_vit": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64),
}


@pytest.mark.parametrize("family", BASES)
def test_backbones_start_as_the_image_model(family: str) -> None:
    torch.manual_seed(0)
    model = BASES[family]().eval()
    expected = averaged(model, clips())
    assert family in aim.list_backbones()
    aim.wrap_image_model(model, num_frames=T)
    torch.testing.assert_close(outputs(model, clips()), expected)


@pytest.mark.parametrize("family", ["open_clip_vit", "torchvision_vit"])  # Swin's own attention adds positions
def test_backbones_read_attention_as_it_is(family: str) -> None:
    torch.manual_seed(0)
    model = BASES[family]().eval()
    path, anatomy = read_anatomy(model).blocks[0]
    block = model.get_submodule(path)
    attention, h = getattr(block, anatomy.attention), torch.randn(T, N, 32)
    q, k, v = (each.transpose(1, 2) for each in anatomy.project_qkv(attention, h))  # [T, H, N, d]
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=anatomy.softmax_scale(attention))
    torch.testing.assert_close(anatomy.project_out(attention, o.transpose(1, 2), h), anatomy.attend(block, h))


def test_backbones_refuse_what_they_do_not_know() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))
    with pytest.raises(aim.UnsupportedModelError, match="is not an image transformer that can be adapted"):
        aim.wrap_image_model(model, num_frames=T)


def test_convert_computes_what_the_reference_computes() -> None:
    from tests.oracle import holders
    from tests.oracle.reference import CLIP, run_vit, vit_file
    from tests.oracle.vit import random_weights

    weights = random_weights(CLIP)
    file, model = vit_file(weights, CLIP, T), holders.timm(weights, CLIP)
    assert not any(aim.load_official_checkpoint(model, file, head_width=16))
    video = clips(side=16).double()
    torch.testing.assert_close(outputs(model, video), run_vit(file, video, CLIP, scale=0.5)[1], rtol=1e-10, atol=1e-10)


def test_recipes_wrap_and_transforms_feed_a_model() -> None:
    assert {row.paper for row in aim.list_recipes()} >= {83.9, 70.6}
    recipe = dataclasses.replace(get_recipe("ssv2-clip-vit-b16-8f").for_batch(8), frames=T)
    model = aim.wrap_image_model(base(), **recipe.wrap_settings())
    assert recipe.check_fits(aim.AIMConfig(**recipe.wrap_settings()), read_anatomy(base()))  # another image model
    frames = torch.randint(0, 256, (T, 3, 60, 90), dtype=torch.uint8)
    for transform in (transform_for(model), transform_for(model, train=True)):
        assert outputs(model, transform(frames)[None]).shape == (1, CLASSES)
