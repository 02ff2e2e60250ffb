"""Keys and shapes of a reference checkpoint say how to wrap; what they cannot mean is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aim_adapters.config import AIMConfig
from aim_adapters.convert.layout import CLIP as CLIP_LAYOUT
from aim_adapters.convert.layout import IMAGENET, SWIN, Reference, infer_config, read_reference
from aim_adapters.convert.reading import read_tensors
from aim_adapters.errors import CheckpointError
from tests.convert.cases import clip_file, small_swin_file
from tests.oracle.reference import vit_file
from tests.oracle.vit import Size, Weights, random_weights


def parsed(state: dict[str, Any]) -> Reference:
    return read_reference(read_tensors(state))


def config_of(state: dict[str, Any], widths: tuple[int, ...] = (32, 32), **arguments: Any) -> AIMConfig:
    settings = {"scale": None, "num_classes": None, "drop_path": 0.2, "head_dropout": 0.5, **arguments}
    return infer_config(parsed(state), widths, **settings)


def without(state: Weights, *names: str) -> Weights:
    return {key: tensor for key, tensor in state.items() if not any(name in key for name in names)}


def test_each_layout_is_recognized_and_every_key_has_its_place() -> None:
    files = {
        CLIP_LAYOUT: clip_file(input_adapter=True),
        IMAGENET: vit_file(random_weights(Size()), Size(), 4),
        SWIN: small_swin_file(),
    }
    for layout, state in files.items():
        reference = parsed(state)
        assert reference.layout is layout
        assert reference.unknown == ()
        buffers = [key for key in state if key.endswith(("_index", "_coords", "attn_mask"))]
        assert len(reference.base) + len(reference.adapters) == len(state) - len(buffers)


def test_adapters_of_a_swin_have_other_names() -> None:
    reference, state = parsed(small_swin_file()), small_swin_file()
    for theirs, ours in {"S_Adapter": "joint", "S_Adapter2": "spatial", "T_Adapter": "temporal"}.items():
        tensor = state[f"backbone.layers.1.blocks.0.{theirs}.D_fc1.weight"]
        assert torch.equal(reference.adapters[f"blocks.2.{ours}.down_proj.weight"], tensor)
    assert reference.depths == (2, 2)


def test_settings_are_read_from_the_shapes() -> None:
    assert config_of(clip_file()) == AIMConfig(
        num_frames=4, bottleneck=0.25, scale=0.5, num_classes=7, drop_path=0.2, head_dropout=0.5
    )
    assert config_of(clip_file(input_adapter=True)) == AIMConfig(
        num_frames=4, scale=1.0, num_classes=7, temporal_input_adapter=True, drop_path=0.2, head_dropout=0.5
    )
    swin = config_of(small_swin_file(frames=12), (16, 16, 32, 32))
    assert (swin.num_frames, swin.tubelet_size, swin.attention_frames) == (12, 2, 6)
    assert config_of(clip_file(), num_classes=0).num_classes == 0
    assert config_of(clip_file(), scale=2.0).scale == 2.0


@pytest.mark.parametrize("ratio", [0.0625, 0.125, 0.25, 0.3, 0.34, 0.5, 0.75, 1.0, 2.3])
@pytest.mark.parametrize("dim", [32, 48, 96])
def test_the_bottleneck_gives_the_width_that_is_there(ratio: float, dim: int) -> None:
    size = Size(dim=dim)
    config = config_of(vit_file(random_weights(size), size, 2, ratio=ratio), (dim, dim))
    assert config.adapter_width(dim) == int(dim * ratio)


def test_a_quarter_is_preferred_where_it_fits() -> None:
    # 0.25 * 54 = 13.5: widths from 13/54 to below 14/54 fit
    size = Size(dim=54)
    assert config_of(vit_file(random_weights(size), size, 2, ratio=0.245), (54, 54)).bottleneck == 0.25


def test_absent_components_are_read_too() -> None:
    state = without(clip_file(), "MLP_Adapter")
    assert config_of(state).components == ("temporal", "spatial")
    state = without(small_swin_file(), "S_Adapter2", "T_Adapter.")
    state = without(clip_file(), "T_Adapter")
    state["backbone.temporal_embedding"] = torch.zeros(1, 4, 32)  # never trained
    assert config_of(state).components == ("spatial", "joint")
    state = without(clip_file(), "resblocks.1.T_Adapter", "resblocks.1.S_Adapter", "resblocks.1.MLP_Adapter")
    assert config_of(state).layers == (0,)


def test_tubelets() -> None:
    key = "backbone.patch_embed.proj.weight"
    state = small_swin_file()
    assert torch.equal(parsed(state).base["patch.weight"], state[key].sum(2))
    flat = config_of({**state, key: state[key].sum(2)}, (16, 16, 32, 32))
    assert (flat.num_frames, flat.tubelet_size) == (4, 1)
    adapters = {k: t for k, t in state.items() if any(n in k for n in ("Adapter", "temporal", "ne.norm.", "cls_head"))}
    assert config_of(adapters, (16, 16, 32, 32)).tubelet_size == 2
    state[key] = state[key].clone()
    state[key][0, 0, 1, 0, 0] += 0.1
    with pytest.raises(CheckpointError, match="differs from frame to frame"):
        parsed(state)


def test_the_index_of_the_temporal_bias_tells_its_orientation() -> None:
    key = "backbone.layers.0.blocks.0.attn.t_relative_coords"
    state = small_swin_file()
    assert parsed({**state, key: state[key].view(4, 4)}).unknown == ()
    for other in (state[key].flip(0), state[key].view(4, 4).T.flatten(), state[key][:5]):
        with pytest.raises(CheckpointError, match=r"query frame - key frame \+ T - 1"):
            parsed({**state, key: other})


def changed(**changes: Any) -> dict[str, Any]:
    return {**clip_file(), **changes}


BLOCK = "backbone.transformer.resblocks."
HOSTILE: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "no checkpoint of the AIM reference"),
    "foreign": ({"encoder.w": torch.ones(1)}, r"no checkpoint of the AIM reference.*got 'encoder\.w'"),
    "an image model": (without(clip_file(), "Adapter", "temporal"), "without adapters"),
    "a gap": (without(clip_file(), "resblocks.0."), "holds block 1 of stage 0, but none before it"),
    "no frames": (without(clip_file(), "temporal_embedding"), "number of frames is unknown"),
    "flat frames": (changed(**{"backbone.temporal_embedding": torch.ones(32)}), r"must be \[1, T, D\].*got \[32\]"),
    "no such frames": (changed(**{"backbone.temporal_embedding": torch.ones(1, 0, 32)}), "number of frames is unk"),
    "no norm": (without(clip_file(), "ln_post.bias"), r"lacks 'ln_post\.bias'"),
    "no head": (without(clip_file(), "cls_head"), r"must be \[classes, D\], got none; pass num_classes=0"),
    "a flat head": (changed(**{"cls_head.fc_cls.weight": torch.ones(7)}), r"got the shape \[7\]"),
    "integers": (changed(**{f"{BLOCK}0.ln_1.weight": torch.ones(32).int()}), "floating-point tensor, got torch.int32"),
    "a flat adapter": (changed(**{f"{BLOCK}0.T_Adapter.D_fc1.weight": torch.ones(8)}), r"must be \[width, 32\]"),
    "an empty adapter": (changed(**{f"{BLOCK}0.T_Adapter.D_fc1.weight": torch.ones(0, 32)}), r"must be \[width, 32\]"),
    "uneven adapters": (changed(**{f"{BLOCK}0.T_Adapter.D_fc1.weight": torch.ones(9, 32)}), "no bottleneck ratio"),
    "no first layers": (without(clip_file(), "D_fc1"), "lack their first layers"),
    "a late start": (without(clip_file(), "resblocks.0.T_", "resblocks.0.S_", "resblocks.0.MLP_"), "in block 1"),
    "time without adapters": (without(clip_file(), "T_Adapter"), "no temporal adapters"),
    "depth": (vit_file(random_weights(Size(depth=3)), Size(depth=3), 4), "has 3 blocks, this model has 2 blocks"),
    "stages": (small_swin_file(), r"stages of 2 \+ 2 blocks, this model has 2 blocks"),
    "two spellings": (changed(**{f"{BLOCK}0.attn.in_proj.weight": torch.ones(96, 32)}), "given twice"),
    "a long number": (changed(**{f"{BLOCK}{'9' * 5000}.ln_1.weight": torch.ones(1)}), ""),
}


@pytest.mark.parametrize("case", [case for case in HOSTILE if case != "a long number"])
def test_what_fits_no_settings_is_refused(case: str) -> None:
    state, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message):
        config_of(state)


def test_unknown_keys_are_listed() -> None:
    state, _ = HOSTILE["a long number"]
    assert len(parsed(state).unknown) == 1
    more = {"optimizer": torch.ones(1), f"{BLOCK}0.T_Adapter.D_fc3.weight": torch.ones(1), f"{BLOCK}0.x": torch.ones(1)}
    assert parsed({**clip_file(), **more}).unknown == (
        "optimizer", "transformer.resblocks.0.T_Adapter.D_fc3.weight", "transformer.resblocks.0.x"
    )  # fmt: skip


def test_a_patch_kernel_of_a_wrong_rank() -> None:
    for shape in ((4,), (4, 3, 0, 4, 4), (1,) * 6):
        with pytest.raises(CheckpointError, match="patch kernel must be"):
            parsed({**small_swin_file(), "backbone.patch_embed.proj.weight": torch.ones(shape)})
