"""Reference checkpoints compute in our models what they compute in the reference, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.convert import convert_official_checkpoint
from aim_adapters.errors import CheckpointError, ConfigError, StateError
from tests.backbones.cases import assert_same, snapshot
from tests.convert.cases import (
    FRAMES,
    VITS,
    clip_base,
    clip_file,
    load,
    run,
    small_swin_file,
    swin_base,
    video_of,
)
from tests.oracle import holders
from tests.oracle.reference import CLIP, run_swin, run_vit, vit_file
from tests.oracle.test_swin import DEPTHS, HEADS, WINDOW
from tests.oracle.vit import Size, random_weights

NOTHING = ((), (), ())


@pytest.mark.parametrize("backbone", ["verify", "fill"])
@pytest.mark.parametrize("input_adapter", [False, True])
@pytest.mark.parametrize("case", VITS)
def test_vit_computes_what_the_reference_computes(case: str, input_adapter: bool, backbone: str) -> None:
    size, holder = VITS[case]
    state = vit_file(random_weights(size), size, FRAMES, input_adapter=input_adapter)
    model = holder(random_weights(size, seed=int(backbone == "fill")), size)  # filled over other weights
    assert load(model, state, backbone=backbone) == NOTHING
    _, expected = run_vit(state, video_of(), size, scale=1.0 if input_adapter else 0.5)
    torch.testing.assert_close(run(model, video_of()), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backbone", ["verify", "fill"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_swin_computes_what_the_reference_computes(library: str, backbone: str) -> None:
    state = small_swin_file()
    model = swin_base(library, other_weights=backbone == "fill")
    assert load(model, state, backbone=backbone) == NOTHING
    expected = run_swin(state, video_of(8, 32), depths=DEPTHS, heads=HEADS, window=WINDOW)
    torch.testing.assert_close(run(model, video_of(8, 32)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backbone", ["verify", "fill"])
def test_transformers_clip_gives_the_features_that_the_classifier_reads(backbone: str) -> None:
    state = clip_file()
    model: Any = holders.hf_clip(random_weights(CLIP, seed=int(backbone == "fill")), CLIP)
    report = load(model, state, backbone=backbone, num_classes=0)
    assert report == ((), ("head.weight", "head.bias"), ())
    features, _ = run_vit(state, video_of(), CLIP)
    torch.testing.assert_close(run(model, video_of()).pooler_output, features, rtol=1e-10, atol=1e-10)


def test_single_precision() -> None:
    state = {key: tensor.float() for key, tensor in clip_file().items()}
    model = clip_base().float()
    load(model, state)
    _, expected = run_vit(state, video_of().float(), CLIP)
    torch.testing.assert_close(run(model, video_of().float()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_verified_to_its_rounding(dtype: torch.dtype) -> None:
    model = clip_base().to(dtype)
    assert load(model, clip_file()) == NOTHING
    assert aim.adapter_state_dict(model)["head.weight"].dtype == dtype


@settings(max_examples=20, deadline=None)
@given(
    frames=st.sampled_from([1, 8, 16]),
    ratio=st.sampled_from([0.0625, 0.125, 0.25, 0.3, 0.5, 1.0, 1.7]),
    input_adapter=st.booleans(),
    prefix=st.sampled_from(["", "module."]),
    nested=st.booleans(),
    scale=st.sampled_from([None, 0.5, 1.0, 2.0]),
)
def test_everything_is_read_from_the_shapes(
    frames: int, ratio: float, input_adapter: bool, prefix: str, nested: bool, scale: float | None
) -> None:
    state = vit_file(random_weights(CLIP), CLIP, frames, ratio=ratio, input_adapter=input_adapter)
    file: Any = {prefix + key: tensor for key, tensor in state.items()}
    model = clip_base()
    load(model, {"meta": {"epoch": 30}, "state_dict": file, "optimizer": {}} if nested else file, scale=scale)
    used = scale if scale is not None else 1.0 if input_adapter else 0.5
    _, expected = run_vit(state, video_of(frames, clips=1), CLIP, scale=used)
    video = video_of(frames, clips=1).flatten(0, 1)
    torch.testing.assert_close(run(model, video), expected, rtol=1e-10, atol=1e-10)


def test_a_full_checkpoint_counts_as_in_the_paper() -> None:
    state = clip_file(classes=400)
    model = clip_base()
    load(model, state)
    trained = [key for key in state if "Adapter" in key or "temporal_embedding" in key or "ln_post" in key]
    trained += [key for key in state if "cls_head" in key]
    count = aim.count_parameters(model)
    assert count.trainable == sum(state[key].numel() for key in trained)
    assert count.total == sum(tensor.numel() for tensor in state.values())


def test_a_path_is_read_as_what_it_holds(tmp_path: Path) -> None:
    torch.save({"meta": {"mmaction_version": "0.24"}, "state_dict": clip_file()}, tmp_path / "vit_b_clip.pth")
    models = clip_base(), clip_base()
    load(models[0], tmp_path / "vit_b_clip.pth")
    load(models[1], str(tmp_path / "vit_b_clip.pth"), backbone="fill")
    assert torch.equal(run(models[0], video_of()), run(models[1], video_of()))


def test_filling_leaves_norm_and_head_of_the_image_model() -> None:
    model: Any = clip_base(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load(model, clip_file(), backbone="fill")
    aim.unwrap_image_model(model)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    expected = clip_base().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items() if name not in same)


def test_training_goes_on_with_the_papers_settings() -> None:
    model: Any = clip_base()
    load(model, clip_file())
    assert (model.aim.config.drop_path, model.aim.config.head_dropout) == (0.2, 0.5)
    load(aim.unwrap_image_model(model), clip_file(), drop_path=0.1, head_dropout=0.0)
    assert (model.aim.config.drop_path, model.aim.config.head_dropout) == (0.1, 0.0)


def test_a_file_of_adapters_alone_is_loaded_and_said_so() -> None:
    state = clip_file()
    trained = ("Adapter", "temporal_embedding", "ln_post", "cls_head")
    adapters = {key: tensor for key, tensor in state.items() if any(name in key for name in trained)}
    model = clip_base()
    with pytest.warns(UserWarning, match="adapters only.*could not be compared"):
        assert load(model, adapters) == NOTHING
    torch.testing.assert_close(run(model, video_of()), run_vit(state, video_of(), CLIP)[1], rtol=1e-10, atol=1e-10)
    with pytest.raises(CheckpointError, match="holds no backbone"):
        load(clip_base(), adapters, backbone="fill")
    wrong = holders.timm(random_weights(CLIP), Size(eps=1e-5, pre_norm=True, patch_bias=False))
    with pytest.raises(CheckpointError, match="QuickGELU"), pytest.warns(UserWarning):
        load(wrong, adapters)


def test_unknown_keys_are_refused_by_name_or_reported() -> None:
    state = {**clip_file(), "backbone.text_projection": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"'text_projection'.*strict=False"):
        load(clip_base(), state)
    assert load(clip_base(), state, strict=False) == ((), ("text_projection",), ())


def test_missing_adapters_are_refused_or_reported() -> None:
    state = clip_file()
    del state["backbone.transformer.resblocks.1.S_Adapter.D_fc2.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.1\.spatial\.up_proj\.bias"):
        load(clip_base(), state)
    assert load(clip_base(), state, strict=False) == (("blocks.1.spatial.up_proj.bias",), (), ())


FAILURES: dict[str, Any] = {
    "not a checkpoint": lambda: {"a.weight": torch.zeros(3)},
    "another width": lambda: vit_file(random_weights(Size(dim=48, pre_norm=True)), Size(dim=48, pre_norm=True), 4),
    "another depth": lambda: vit_file(random_weights(Size(depth=3, pre_norm=True)), Size(depth=3, pre_norm=True), 4),
    "other weights": lambda: vit_file(random_weights(CLIP, seed=1), CLIP, 4),
    "another layout": lambda: vit_file(random_weights(Size()), Size(), 4),
    "missing half": lambda: dict(list(clip_file().items())[::2]),
    "missing the rest": lambda: dict(list(clip_file().items())[1::2]),
    "misshapen classifier": lambda: {**clip_file(), "cls_head.fc_cls.bias": torch.zeros(8)},
    "misshapen norm": lambda: {**clip_file(), "backbone.ln_post.weight": torch.zeros(8)},
    "misshapen adapter": lambda: {
        **clip_file(), "backbone.transformer.resblocks.1.T_Adapter.D_fc2.weight": torch.zeros(32, 9),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "backbone"),
    [(name, how) for name in FAILURES for how in ("verify", "fill") if (name, how) != ("other weights", "fill")],
)
def test_a_failure_changes_nothing(failure: str, backbone: str) -> None:
    state = FAILURES[failure]()
    model = clip_base().train()
    before = snapshot(model)
    with pytest.raises(CheckpointError):
        load(model, state, backbone=backbone)
    assert_same(before, snapshot(model))


def test_a_swin_with_temporal_adapters_where_ours_has_none_is_refused() -> None:
    state = {}
    for key, tensor in small_swin_file().items():
        at = key.replace("blocks.0.", "blocks.1.")
        if not ("S_Adapter" in key and "blocks.0." in key):
            state[at if "T_Adapter" in key or "temporal" in key else key] = tensor
    model = swin_base("timm")
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"settings do not fit.*none of the blocks \[1, 3\] attends over time"):
        load(model, state)
    assert_same(before, snapshot(model))


def test_models_that_have_no_place_for_it_are_refused() -> None:
    wrapped = aim.wrap_image_model(clip_base(), 4)
    with pytest.raises(StateError, match="unwrap_image_model"):
        load(wrapped, clip_file())
    with torch.device("meta"):
        meta = holders.TimmViT(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    with pytest.raises(StateError, match="meta device"):
        load(meta, clip_file())
    with pytest.raises(CheckpointError, match="num_classes=0"):
        load(holders.hf_clip(random_weights(CLIP), CLIP), clip_file())
    config = holders.hf.CLIPConfig(vision_config=holders._hf_config(CLIP))
    with pytest.raises(CheckpointError, match="CLIPVisionModel"):
        load(holders.hf.CLIPForImageClassification(config), clip_file())
    with pytest.raises(CheckpointError, match=r"model\.vision_model"):
        load(holders.hf.CLIPModel(config), clip_file())


def test_wrong_arguments() -> None:
    for arguments in ({"backbone": "check"}, {"head_width": 0}, {"head_width": True}, {"scale": "big"}):
        with pytest.raises(ConfigError):
            load(clip_base(), clip_file(), **arguments)
    with pytest.raises(CheckpointError, match="num_classes=5"):
        load(clip_base(), clip_file(), num_classes=5)
    with pytest.raises(TypeError, match="int"):
        load(clip_base(), 3)


WIDE = Size(dim=128, heads=2, eps=1e-5, quick_gelu=True, pre_norm=True, patch_bias=False)  # heads as wide as CLIP's


def test_converted_files_load_into_a_fresh_base(tmp_path: Path) -> None:
    weights = random_weights(WIDE)
    state = vit_file(weights, WIDE, FRAMES)
    model = holders.timm(weights, WIDE)
    before = snapshot(model)
    out = convert_official_checkpoint(
        model,
        state,
        tmp_path / "out",
        base_model_name_or_path="vit_base_patch16_clip_quickgelu_224.openai",
        frame_stride=16,
        labels=[str(i) for i in range(7)],
    )
    assert_same(before, snapshot(model))
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "vit_base_patch16_clip_quickgelu_224.openai"
    assert (config["num_frames"], config["scale"], config["clip"]["stride"]) == (FRAMES, 0.5, 16)
    fresh = holders.open_clip(weights, WIDE)
    assert not any(aim.load_adapters(fresh, out))
    torch.testing.assert_close(run(fresh, video_of()), run_vit(state, video_of(), WIDE)[1], rtol=1e-10, atol=1e-10)
    again = holders.timm(weights, WIDE)
    aim.load_adapters(again, out)
    load(model, state, head_width=64)
    assert torch.equal(run(again, video_of()), run(model, video_of()))


def test_a_conversion_that_fails_leaves_model_and_directory(tmp_path: Path) -> None:
    model = holders.timm(random_weights(WIDE, seed=1), WIDE)
    before = snapshot(model)
    state = vit_file(random_weights(WIDE), WIDE, FRAMES)
    with pytest.raises(CheckpointError, match="not those of the checkpoint"):
        convert_official_checkpoint(model, state, tmp_path / "out")
    model = holders.timm(random_weights(WIDE), WIDE)
    with pytest.raises(ConfigError, match="labels"):
        convert_official_checkpoint(model, state, tmp_path / "out", labels=["too", "few"])
    assert not aim.is_wrapped(model)
    assert not (tmp_path / "out").exists()
    assert before.keys() == snapshot(model).keys()
