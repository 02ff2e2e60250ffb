"""A checkpoint that was made for something else is refused, whatever of it would fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import aim_adapters as aim
from aim_adapters.anatomy import fingerprint
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint.agreement import require_reasonable, require_same_base, require_same_meaning
from aim_adapters.config import AIMConfig
from aim_adapters.errors import CheckpointError
from tests.tiny import FRAMES, base, wrapped

# The base


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return what a checkpoint trained on ``base(name)`` says of its base."""
    model = base(name)
    anatomy = read_anatomy(model)
    fields = {
        "base_model_name_or_path": anatomy.model_name,
        "base_model_library": anatomy.library,
        "base_fingerprint": fingerprint(model, anatomy),
    }
    return {**fields, **changes}


def require_base(config: dict[str, Any], *, strict: bool = True) -> None:
    model = base("vit_x.in1k")
    require_same_base(model, read_anatomy(model), config, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_model_name_or_path": None},
        {"base_model_name_or_path": ""},
        {"base_model_name_or_path": "timm/vit_x.in1k"},
        {"base_model_name_or_path": "hf-hub:timm/vit_x.in1k"},
        {"base_model_library": "open_clip", "base_model_name_or_path": "ViT-X:openai"},
        {"base_model_revision": "another"},
    ],
    ids=str,
)
def test_same_base_passes(changes: dict[str, Any], strict: bool) -> None:
    require_base(config_of("vit_x.in1k", **changes), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("expected", ["0123456789abcdef", "", "x" * 10**6])
def test_other_shapes_are_refused_strict_or_not(expected: str, strict: bool) -> None:
    match = rf"on another base: vit_x\.in1k with fingerprint {expected:.80}, this model is vit_x\.in1k with \w{{16}};"
    with pytest.raises(CheckpointError, match=match) as caught:
        require_base(config_of("vit_x.in1k", base_fingerprint=expected), strict=strict)
    assert len(str(caught.value)) < 1000


def test_checkpoint_that_does_not_name_its_base_is_refused() -> None:
    with pytest.raises(CheckpointError, match="an unnamed model with fingerprint None"):
        require_base({})


def test_other_weights_of_the_same_shapes_are_refused_or_told() -> None:
    config = config_of("vit_x.in21k")
    match = r"the adapters were trained on vit_x\.in21k, this model is vit_x\.in1k"
    with pytest.raises(CheckpointError, match=rf"{match}; nothing was loaded\. Pass strict=False"):
        require_base(config)
    with pytest.warns(UserWarning, match=f"{match}$"):
        require_base(config, strict=False)


def test_long_names_are_compared_whole_and_shown_short() -> None:
    with pytest.raises(CheckpointError, match=r"trained on x{200}, this model") as caught:
        require_base(config_of("vit_x.in1k", base_model_name_or_path="x" * 10**6))
    assert len(str(caught.value)) < 1000


# The settings


def require_meaning(settings: AIMConfig, *, strict: bool = True, **arguments: Any) -> None:
    require_same_meaning(wrapped(**arguments).aim, settings, strict=strict)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": (0, 1, 2)},
        {"layers": (-1, 1, -3)},
        {"drop_path": 0.5, "head_dropout": 0.5, "input_layout": "BCTHW"},
        {"num_classes": 0},  # shows in the tensors' names, as this model has a classification layer
        {"bottleneck": 0.5, "train_norm": False},  # show in their shapes and names
    ],
    ids=str,
)
def test_settings_that_mean_the_same_pass(changes: dict[str, Any]) -> None:
    require_meaning(AIMConfig(FRAMES, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 8},
        {"num_frames": 10**9},
        {"scale": 1.0},
        {"tubelet_size": 2},
        {"components": ("joint",)},
        {"components": ()},
        {"layers": "top_half"},
        {"layers": (0,)},
        {"temporal_input_adapter": True},
        {"adapter_activation": "none"},
    ],
    ids=str,
)
def test_settings_that_mean_something_else_are_refused_or_told(changes: dict[str, Any]) -> None:
    settings = dataclasses.replace(AIMConfig(FRAMES), **changes)
    (name,) = changes
    match = rf"the adapters were saved with {name}=.* \(this model: .*\)"
    with pytest.raises(CheckpointError, match=rf"{match}; nothing was loaded\. Pass strict=False"):
        require_meaning(settings)
    with pytest.warns(UserWarning, match=f"{match}$"):
        require_meaning(settings, strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "layers", [(3,), (-4,), (0, -3), (10**30,), (0,) * 10**5], ids=lambda layers: f"{layers!s:.20}"
)
def test_blocks_that_the_model_does_not_have_are_refused(layers: tuple[int, ...], strict: bool) -> None:
    with pytest.raises(
        CheckpointError, match="the checkpoint's settings do not fit this model: layers names"
    ) as caught:
        require_meaning(AIMConfig(FRAMES, layers=layers), strict=strict)
    assert len(str(caught.value)) < 1000


# Memory


def test_settings_may_ask_for_some_times_the_models_memory() -> None:
    model = base()
    most = 4 * sum(parameter.numel() for parameter in model.parameters()) + 2**24
    require_reasonable(model, {})
    require_reasonable(model, {"a": torch.empty(most, device="meta")})
    more = {"a": torch.empty(most, device="meta"), "b": torch.empty(1, device="meta")}
    with pytest.raises(CheckpointError, match=rf"ask for {most + 1:,} parameters, many times the image model's"):
        require_reasonable(model, more)


@pytest.mark.parametrize("changes", [{"num_frames": 10**9}, {"bottleneck": 60000}, {"num_classes": 2**31 - 1}], ids=str)
def test_absurd_settings_can_be_built_without_storage(changes: dict[str, Any]) -> None:
    from aim_adapters.core import build_adapter
    from aim_adapters.wrapping import make_record

    model = base()
    record = make_record(model, read_anatomy(model))
    settings = AIMConfig(**{"num_frames": FRAMES, **changes})
    targets = build_adapter(model, settings, record=record, name="x", on_meta=True).declared()
    with pytest.raises(CheckpointError, match=r"they are damaged"):
        require_reasonable(model, targets)
    assert not aim.is_wrapped(model)
