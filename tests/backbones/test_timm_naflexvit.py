"""timm's NaFlexVit keeps every promise, of images and of patches cut beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.errors import InputError, UnsupportedModelError
from tests.backbones.cases import FRAMES, Case, process_group, scramble, wake, with_machinery
from tests.backbones.contract import Contract

__all__ = ["process_group"]

SIZE: dict[str, Any] = {
    "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "pos_embed_grid_size": (2, 2),
}  # fmt: skip
DROPOUT: dict[str, Any] = {
    "drop_rate": 0.5, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5,
}  # fmt: skip


def naflex(*, num_classes: int = 5, **config: Any) -> NaFlexVit:
    return NaFlexVit(NaFlexVitCfg(**{**SIZE, **config}), num_classes=num_classes)


def member(name: str, image_size: int = 16, **config: Any) -> Case:
    def build(**more: Any) -> Callable[[], nn.Module]:
        return lambda: naflex(**config, **more)

    mask = {"attn_mask": torch.zeros(5, 5)}
    return Case(name, build(), image_size=image_size, dropout=build(**DROPOUT), mask=mask)


CASES = [
    member("class_token", depth=2, class_token=True, global_pool="token"),
    member("average_pool_factorized", init_values=0.1, global_pool="avg", reg_tokens=2, pos_embed="factorized"),
    member("siglip", image_size=24, pos_embed_interp_mode="bilinear", pos_embed_ar_preserving=True),
    member(
        "radio", class_token=True, reg_tokens=2, global_pool="token", final_norm=False, num_classes=0, pre_norm=True,
        embed_proj_type="conv",
    ),
    member(
        "rotary_gated_norms", depth=2, rope_type="axial", attn_type="rope", pos_embed="none", class_token=True,
        global_pool="token", swiglu_mlp=True, scale_mlp_norm=True, qk_norm=True, scale_attn_inner_norm=True,
        init_values=0.1,
    ),
    member("mixed_rotary", rope_type="mixed", attn_type="eva", qkv_fused=False, global_pool="avg"),
]  # fmt: skip


MACHINERY = ("class_token", "rotary_gated_norms")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return with_machinery(request.param, MACHINERY)


class TestContract(Contract):
    pass


OLD = timm.__version__ == "1.0.24"  # its forward_intermediates takes images alone
ROTARY: dict[str, Any] = {"attn_type": "eva", "rope_type": "axial"}


def cut(video: Tensor, *, padding: int = 0, size: int = 8) -> dict[str, Tensor]:
    """Return the patches of a video ``[B, T, C, H, W]``, as timm's collator makes them."""
    rows, columns = (side // size for side in video.shape[-2:])
    patches = video.unflatten(-1, (columns, size)).unflatten(-3, (rows, size)).permute(0, 1, 3, 5, 4, 6, 2)
    patches = patches.flatten(4).flatten(2, 3)  # [B, T, N, P]
    coord = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).expand(*patches.shape[:3], 2)
    valid = torch.ones(patches.shape[:3], dtype=torch.bool)
    pad = nn.functional.pad
    return {
        "patches": pad(patches, (0, 0, 0, padding), value=9.0),
        "patch_coord": pad(coord, (0, 0, 0, padding)),
        "patch_valid": pad(valid, (0, padding)),
    }


def flat(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}


def frames(clips: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(clips, FRAMES, 3, height, width, generator=torch.Generator().manual_seed(0))


def model_of(**config: Any) -> NaFlexVit:
    torch.manual_seed(0)
    return scramble(naflex(**config)).eval()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_token": True, "reg_tokens": 1, "global_pool": "avg", "init_values": 0.1},
        {**ROTARY, "global_pool": "avgmax", "pos_embed": "factorized"},
        {"attn_type": "rope", "rope_type": "mixed", "class_token": True, "global_pool": "token"},
    ],
)
def test_patches_cut_beforehand_are_the_frames_they_were_cut_from(config: dict[str, Any]) -> None:
    model, video = model_of(**config), frames()
    with torch.no_grad():
        try:
            expected = model(flat(cut(video, padding=2))).unflatten(0, (2, FRAMES)).mean(1)
        except TypeError:
            pytest.skip("this version of timm cannot rotate patches cut beforehand in each block by itself")
        aim.wrap_image_model(model, FRAMES)
        torch.testing.assert_close(model(cut(video, padding=2)), expected, rtol=1e-5, atol=2e-6)
        wake(model)
        adapted = model(video)
        assert not torch.allclose(adapted, expected)
        for padding in (0, 3):  # neither is seen by the frames, nor along time
            clips = cut(video, padding=padding)
            coord, valid = clips["patch_coord"], clips["patch_valid"]
            sized = {**clips, "patches": clips["patches"].unflatten(-1, (8, 8, 3))}
            for out in (
                model(clips),
                model(flat(clips)),
                model(clips["patches"], coord, valid),
                model(clips["patches"].flatten(0, 1), patch_coord=coord, patch_valid=valid.flatten(0, 1)),
                model(sized),
                model(flat(sized)),
            ):
                torch.testing.assert_close(out, adapted, rtol=1e-5, atol=2e-6)
        with aim.disable_adapters(model):
            torch.testing.assert_close(model(clips), expected, rtol=1e-5, atol=2e-6)
    model.train()(clips).square().sum().backward()
    assert all(p.grad is not None for p in aim.trainable_parameters(model))


def test_methods_of_the_root_take_patches_too() -> None:
    model = wake(aim.wrap_image_model(model_of(class_token=True), FRAMES))
    video = frames()
    clips = cut(video, padding=1)
    with torch.no_grad():
        expected = model.forward_features(video)
        found = model.forward_features(**clips)["patches"]
        torch.testing.assert_close(found[:, :7], expected, rtol=1e-5, atol=2e-6)
        sized = {**clips, "patches": clips["patches"].unflatten(-1, (8, 8, 3))}
        torch.testing.assert_close(model.forward_features(**flat(sized))["patches"], found)
        if not OLD:
            last = model.forward_intermediates(clips, output_fmt="NLC", intermediates_only=True)[-1]
            right = model.forward_intermediates(video, output_fmt="NLC", intermediates_only=True)[-1]
            torch.testing.assert_close(last[:, :6], right, rtol=1e-5, atol=2e-6)


def test_tubelets_average_patches_as_they_average_pixels() -> None:
    video = frames()
    model = wake(aim.wrap_image_model(model_of(), FRAMES, tubelet_size=2))
    with torch.no_grad():
        expected = model(video)
        assert expected.shape == (2, 5)
        for inputs in (cut(video, padding=1), flat(cut(video, padding=1))):
            torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=2e-6)


def test_patches_of_any_size_go_where_the_image_model_takes_them() -> None:
    model, video = model_of(enable_patch_interpolator=True), frames()
    clips = cut(video, size=4)
    clips["patches"] = clips["patches"].unflatten(-1, (4, 4, 3))
    with torch.no_grad():
        expected = model(flat(clips)).unflatten(0, (2, FRAMES)).mean(1)
        aim.wrap_image_model(model, FRAMES)
        for inputs in (clips, flat(clips)):
            torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=2e-6)


def test_what_has_no_meaning_along_time_is_refused() -> None:
    model = aim.wrap_image_model(model_of(), FRAMES)
    clips = cut(frames(), padding=2)
    moved = {**clips, "patch_coord": clips["patch_coord"].clone()}
    moved["patch_coord"][1, 2] = moved["patch_coord"][1, 2].flip(0)
    shorter = {**clips, "patch_valid": clips["patch_valid"].clone()}
    shorter["patch_valid"][1, 3, 5] = False
    for call in (model, lambda inputs: model(flat(inputs)), lambda inputs: model.forward_features(**inputs)):
        for name, inputs in (("patch_coord", moved), ("patch_valid", shorter)):
            with pytest.raises(InputError, match=rf"^{name} differs between the frames of clip 1: .* one size"):
                call(inputs)
    with pytest.raises(InputError, match=r"patch_valid must have one row for each of the 8 frames.*got \[7, 8\]"):
        model({**flat(clips), "patch_valid": clips["patch_valid"].flatten(0, 1)[1:]})
    with pytest.raises(InputError, match=r"patches must be \[B, T, N, P\].*4 frames, got \[2, 3, 8, 192\]"):
        model({name: tensor[:, 1:] for name, tensor in clips.items()})
    with pytest.raises(InputError, match="expected under 'patches', got image"):
        model({"image": frames()})
    for inputs in ({**clips, "attn_mask": torch.zeros(8, 8)}, {"patches": frames(), "attn_mask": torch.zeros(8, 8)}):
        with pytest.raises(UnsupportedModelError, match="attn_mask has no meaning along time"):
            model(inputs)
        with pytest.raises(UnsupportedModelError, match="attn_mask has no meaning along time"):
            model.forward_features(**inputs)


def test_wrong_pixels_are_explained_as_of_other_models() -> None:
    model = aim.wrap_image_model(model_of(), FRAMES)
    for inputs in (cut(frames().double()), flat(cut(frames().double()))):
        with pytest.raises(InputError, match=r"the video is torch\.float64 .* pass video\.to\(torch\.float32\)"):
            model(inputs)
    with pytest.raises(InputError, match=r"frames are 17 x 24 pixels, .* patches of 8 x 8, which must divide them"):
        model(torch.randn(2, FRAMES, 3, 17, 24))


def test_graphs_leave_patches_to_the_model_itself() -> None:
    model = aim.wrap_image_model(model_of(), FRAMES)
    clips = cut(frames())
    expected = model(clips)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU has no CUDA graphs
        aim.graph(model, frames())
        for inputs in ({"x": clips}, {"x": clips["patches"], **{name: clips[name] for name in list(clips)[1:]}}):
            assert torch.equal(model(**inputs), expected)
            assert torch.equal(model(*inputs.values()), expected)
    rows = aim.explain_graphs(model)
    reasons = [row.reason.partition(",")[0] for row in rows if row.reason is not None]
    assert reasons.count("it reads patches cut beforehand") == 4
    assert "0.patches=2x4x6x192 float32" in repr(rows)


def test_dropped_patches_and_other_attention_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="patch_drop_rate=0"):
        aim.wrap_image_model(naflex(patch_drop_rate=0.5), FRAMES)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.attn is a .*DiffAttention"):
        aim.wrap_image_model(naflex(attn_layer="diff"), FRAMES)


@pytest.mark.parametrize("config", [{}, ROTARY])
def test_videos_run_fused(config: dict[str, Any]) -> None:
    model = aim.wrap_image_model(model_of(**config), FRAMES)
    assert {row[1:] for row in aim.explain_execution(model)} == {("fused", "fused", "fused")}


TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("naflexvit_base_patch16_gap", {}, (384, 384)),
        ("vit_tiny_patch16_224", {"use_naflex": True, "img_size": 32}, (32, 32)),
    ],
)
def test_same_model_is_built_again_by_its_name(name: str, arguments: dict[str, Any], size: tuple[int, int]) -> None:
    model = timm.create_model(name, **TINY, **arguments)
    anatomy = read_anatomy(model)
    assert anatomy.image_size == size and anatomy.model_name.partition(".")[0] == name
    again = timm.create_model(name, **{**TINY, **anatomy.build_arguments})
    assert type(again) is NaFlexVit and read_anatomy(again) == replace(anatomy, overrides=anatomy.overrides)
