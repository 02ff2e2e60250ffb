"""A checkpoint of another base or other settings is refused, or told of where not strict, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import aim_adapters as aim
from tests.checkpoint.cases import Edit, assert_refused, rewrite
from tests.tiny import FRAMES, base, trained, wrapped

# Strict: another base


@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 48},
        {"depth": 4},
        {"patch_size": 4},
        {"num_heads": 4},
        {"mlp_ratio": 2.0},
        {"in_chans": 1},
        {"reg_tokens": 1},
    ],
    ids=str,
)
def test_another_base_is_refused(changes: dict[str, Any], strict: bool, start: str, saved: Path) -> None:
    model = base("vit_y.in1k", **changes)
    if start == "wrapped":
        aim.wrap_image_model(model, FRAMES)
    match = r"trained on another base: an unnamed model with fingerprint \w{16}, this model is vit_y.in1k with \w{16}"
    assert_refused(model, saved, match, strict=strict)


@pytest.mark.parametrize("start", [base, wrapped])
def test_another_model_of_the_same_library_and_shape_is_refused(
    start: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path)
    message = "the adapters were trained on vit_x.in1k, this model is vit_x.in21k"
    assert_refused(start("vit_x.in21k"), tmp_path, f"{message}; nothing was loaded. Pass strict=False")
    other = start("vit_x.in21k")
    with pytest.warns(UserWarning, match=message) as caught:
        assert not any(aim.load_adapters(other, tmp_path, strict=False))
    assert [warning.filename for warning in caught] == [__file__]


def test_classification_layer_of_another_size_is_refused(saved: Path) -> None:
    assert_refused(base(num_classes=6), saved, r"2 of another shape: head.weight \(\[5, 32\] for \[6, 32\]\)")


# Strict: other settings


MEANINGS: list[tuple[dict[str, Any], str]] = [
    ({"num_frames": 8}, r"num_frames=4 \(this model: 8\)"),
    ({"scale": 1.0}, r"scale=0.5 \(this model: 1.0\)"),
    ({"components": ("temporal",)}, r"components=\('temporal', 'spatial', 'joint'\) \(this model: \('temporal',\)\)"),
    ({"layers": "top_half"}, r"layers='all' \(this model: 'top_half'\)"),
    ({"layers": [0, 2]}, r"layers='all' \(this model: \(0, 2\)\)"),
    ({"tubelet_size": 2, "num_frames": 8}, r"num_frames=4 \(this model: 8\), tubelet_size=1 \(this model: 2\)"),
    ({"temporal_input_adapter": True}, r"temporal_input_adapter=False \(this model: True\)"),
    ({"adapter_activation": "none"}, r"adapter_activation='gelu' \(this model: 'none'\)"),
]


@pytest.mark.parametrize(("arguments", "message"), MEANINGS)
def test_other_settings_are_refused(arguments: dict[str, Any], message: str, saved: Path) -> None:
    match = f"the adapters were saved with {message}; nothing was loaded. Pass strict=False"
    assert_refused(wrapped(**arguments), saved, match)


@pytest.mark.parametrize(("arguments", "message"), MEANINGS)
def test_other_settings_are_a_warning_when_not_strict(arguments: dict[str, Any], message: str, saved: Path) -> None:
    model = wrapped(**arguments)
    with pytest.warns(UserWarning, match=f"the adapters were saved with {message}$") as caught:
        aim.load_adapters(model, saved, strict=False)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bottleneck": 0.5}, r"of another shape: .*down_proj.weight \(\[8, 32\] for \[16, 32\]\).* and 22 more"),
        ({"num_classes": 7}, r"2 of another shape: head.weight \(\[5, 32\] for \[7, 32\]\)"),
        ({"num_classes": 0}, r"2 unexpected: head.bias, head.weight"),
        ({"train_norm": False}, r"2 unexpected: norm.bias, norm.weight"),
    ],
)
def test_other_shapes_are_refused(arguments: dict[str, Any], message: str, saved: Path) -> None:
    assert_refused(
        wrapped(**arguments), saved, rf"does not fit the model, nothing was loaded:.*{message}.*strict=False"
    )


# Strict: missing, extra, misshapen


DAMAGE: dict[str, tuple[Edit, str]] = {
    "missing": (
        lambda s: [s.pop("blocks.1.spatial.up_proj.bias"), s.pop("temporal_embedding")],
        "nothing was loaded: 2 missing: .*blocks.1.spatial.up_proj.bias.*. Wrap the model with",
    ),
    "extra": (lambda s: s.update({"blocks.3.joint.up_proj.bias": torch.zeros(32)}), "1 unexpected: blocks.3.joint"),
    "prefixed": (
        lambda s: [s.update({f"module.{key}": s.pop(key)}) for key in list(s)],
        "41 missing: .* and 36 more; 41 unexpected: module.* and 36 more. Wrap",
    ),
    "misshapen": (
        lambda s: s.update({"norm.weight": torch.zeros(1, 32)}),
        r"1 of another shape: norm.weight \(\[1, 32\] for \[32\]\)",
    ),
    "scalar": (lambda s: s.update({"norm.weight": torch.zeros(())}), r"norm.weight \(\[\] for \[32\]\)"),
    "integer": (
        lambda s: s.update({"head.bias": torch.zeros(5, dtype=torch.int64)}),
        "'head.bias' in .* must be a floating-point tensor, got the dtype 'I64'",
    ),
    "boolean": (
        lambda s: s.update({"extra": torch.zeros(5, dtype=torch.bool)}),
        "'extra' in .* must be a floating-point tensor, got the dtype 'BOOL'",
    ),
    "empty": (lambda s: s.clear(), "41 missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_are_refused(damage: str, fresh: VisionTransformer, saved: Path) -> None:
    edit, message = DAMAGE[damage]
    rewrite(saved, tensors=edit)
    assert_refused(fresh, saved, message)


@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
def test_not_strict_loads_what_fits_and_reports_the_rest(start: str, saved: Path) -> None:
    rewrite(
        saved, tensors=lambda s: [s.pop("norm.bias"), s.update(extra=torch.zeros(1), **{"head.bias": torch.ones(6)})]
    )
    model = base() if start == "unwrapped" else wrapped()
    report = aim.load_adapters(model, saved, strict=False)
    assert report == aim.LoadReport(missing=("norm.bias",), unexpected=("extra",), mismatched=("head.bias",))
    before, after, full = (aim.adapter_state_dict(m) for m in (wrapped(), model, trained()))
    for key, tensor in after.items():
        expected = before if key in ("norm.bias", "head.bias") else full
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("start", ["wrapped", "base"])
def test_when_nothing_fits_that_is_said(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda s: [s.update({f"module.{key}": s.pop(key)}) for key in list(s)])
    model = base() if start == "base" else wrapped()
    with pytest.warns(UserWarning, match="nothing in .* fits this model, and nothing was loaded"):
        report = aim.load_adapters(model, saved, strict=False)
    assert len(report.missing) == len(report.unexpected) == 41
