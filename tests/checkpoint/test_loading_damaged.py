"""Damaged and foreign files are refused by name and change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import CONFIG_NAME, WEIGHTS_NAME
from tests.backbones.cases import assert_same, snapshot
from tests.checkpoint.cases import assert_refused, header, rewrite
from tests.tiny import base, run, trained, wrapped


def test_truncated_weights_are_refused_at_any_length(saved: Path) -> None:
    content = (saved / WEIGHTS_NAME).read_bytes()
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    lengths = {0, 1, 7, 8, 9, 100, end_of_header - 1, end_of_header, end_of_header + 1, len(content) - 1}
    lengths |= set(range(0, len(content), len(content) // 23))
    models = [base(), wrapped()]
    for length in sorted(lengths):
        (saved / WEIGHTS_NAME).write_bytes(content[:length])
        for model in models:
            assert_refused(model, saved, f"{WEIGHTS_NAME} is damaged or not a safetensors file")


def test_trailing_bytes_are_refused(fresh: VisionTransformer, saved: Path) -> None:
    with (saved / WEIGHTS_NAME).open("ab") as file:
        file.write(b"\0" * 16)
    assert_refused(fresh, saved, "is damaged or not a safetensors file")


@given(data=st.data())
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_load_or_are_refused_and_nothing_else(data: st.DataObject, saved: Path) -> None:
    good = saved.with_name("good")
    if not good.exists():
        shutil.copytree(saved, good)
    content = bytearray((good / WEIGHTS_NAME).read_bytes())
    end_of_header = 8 + int.from_bytes(content[:8], "little")
    for position in data.draw(st.lists(st.integers(0, end_of_header - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'"{}[],:0123456789'))
    (saved / WEIGHTS_NAME).write_bytes(content)
    (saved / CONFIG_NAME).unlink(missing_ok=True)
    model = data.draw(st.sampled_from([base, wrapped]))()
    before = snapshot(model)
    try:
        aim.load_adapters(model, saved)
    except CheckpointError:
        assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "content",
    [b"not safetensors at all", b"\xff" * 64, json.dumps({"peft_type": "AIM"}).encode(), b"\x80\x02}q\x00."],
    ids=["text", "huge_header", "json", "pickle"],
)
def test_what_is_not_safetensors_is_refused(content: bytes, fresh: VisionTransformer, saved: Path) -> None:
    (saved / WEIGHTS_NAME).write_bytes(content)
    assert_refused(fresh, saved, f"{WEIGHTS_NAME} is damaged or not a safetensors file")


def test_pickle_is_never_read(fresh: VisionTransformer, saved: Path) -> None:
    torch.save(aim.adapter_state_dict(trained()), saved / WEIGHTS_NAME)
    assert_refused(fresh, saved, "not a safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{}"}], ids=str)
def test_weights_without_a_config_in_the_header_are_refused(
    metadata: dict[str, str] | None, fresh: VisionTransformer, saved: Path
) -> None:
    save_file(load_file(saved / WEIGHTS_NAME), saved / WEIGHTS_NAME, metadata=metadata)
    assert_refused(fresh, saved, "no AIM config in its header; it was not made by save_adapters")


FOREIGN: dict[str, tuple[bytes, str]] = {
    "peft": (
        b'{"peft_type": "LORA", "r": 8}',
        "describes an adapter of type 'LORA', expected 'AIM'; load it with peft",
    ),
    "adapters": (
        b'{"config": {"mh_adapter": true}, "model_class": "ViTModel", "name": "x", "version": "adapters.1.0.0"}',
        "an adapter of type None, expected 'AIM'; it is an adapter of the adapters library",
    ),
    "no_type": (b'{"num_frames": 4}', "an adapter of type None, expected 'AIM'"),
    "newer": (
        b'{"peft_type": "AIM", "format_version": 2, "aim_version": "9.9.0"}',
        r"format version 2, this library reads 1; update aim-adapters \(it was written by 9.9.0\)",
    ),
    "no_version": (b'{"peft_type": "AIM"}', "format version None, this library reads 1"),
    "not_json": (b"{peft_type: AIM}", "is not JSON: "),
    "cut": (b'{"peft_type": "AIM", ', "is not JSON: "),
    "nothing": (b"", "is not JSON: "),
    "deep": (b"[" * 200_000, "is not JSON: "),
    "long_integer": (b'{"num_frames": ' + b"1" * 5000 + b"}", "is not JSON: "),
    "list": (b'["AIM"]', "must be a JSON object, got list"),
    "null": (b"null", "must be a JSON object, got NoneType"),
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("where", ["beside", "header"])
def test_foreign_config_is_refused(what: str, where: str, fresh: VisionTransformer, saved: Path) -> None:
    content, message = FOREIGN[what]
    name = CONFIG_NAME if where == "beside" else WEIGHTS_NAME
    if where == "beside":
        (saved / name).write_bytes(content)
    else:
        metadata = {**header(saved), "aim_config": content.decode()}
        save_file(load_file(saved / name), saved / name, metadata=metadata)
    assert_refused(fresh, saved, f"{name}.* {message}")


def test_config_that_is_not_text_is_refused(fresh: VisionTransformer, saved: Path) -> None:
    (saved / CONFIG_NAME).write_bytes(b'{"peft_type": "\xff\xfe"}')
    assert_refused(fresh, saved, f"{CONFIG_NAME} is not JSON: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "num_frames must be an integer >= 1, got 0"),
        ({"num_frames": "4"}, "num_frames must be an integer >= 1, got '4' of type str"),
        ({"bottleneck": -1}, "bottleneck must be a finite number > 0.0 and < 65536.0, got -1"),
        ({"scale": 10**400}, "scale must be a finite number, got 1000"),
        ({"components": "temporal"}, "components: expected some of"),
        ({"components": [["temporal"]]}, "components: expected some of"),
        ({"layers": {"0": 1}}, "layers: expected"),
        ({"layers": [5]}, "layers names block 5, but the model has 3 blocks"),
        ({"layers": [0, -3]}, "layers names a block twice"),
        ({"input_layout": "TCHW"}, "input_layout must be one of"),
        ({"train_norm": None}, "train_norm must be True or False"),
    ],
)
def test_invalid_settings_are_refused(
    fields: dict[str, Any], message: str, fresh: VisionTransformer, saved: Path
) -> None:
    rewrite(saved, config=lambda config: config.update(fields))
    assert_refused(fresh, saved, message)


def test_settings_without_frames_are_refused(fresh: VisionTransformer, saved: Path) -> None:
    rewrite(saved, config=lambda config: config.pop("num_frames"))
    assert_refused(fresh, saved, f"the config in .*{saved.name}.* is invalid: config lacks num_frames")


def test_settings_that_do_not_fit_an_unwrapped_model_are_refused(saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(bottleneck=1e-6))
    assert_refused(base(), saved, "do not fit this model: bottleneck=1e-06 gives adapters of width")


def test_model_that_cannot_be_adapted_is_refused(saved: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    assert_refused(model, saved, "not an image transformer", error=aim.UnsupportedModelError)


@pytest.mark.parametrize("case", ["empty", "config_only", "adapter_model.bin", "model.safetensors"])
def test_missing_files_are_named(case: str, fresh: VisionTransformer, saved: Path) -> None:
    for path in saved.iterdir():
        if case != "config_only" or path.name != CONFIG_NAME:
            path.unlink()
    hint = {"adapter_model.bin": "; it holds a pickled peft adapter", "model.safetensors": "; it holds a whole model"}
    if case in hint:
        (saved / case).write_bytes(b"")
    match = f"{saved.name} holds no {WEIGHTS_NAME}; expected a directory made by save_adapters{hint.get(case, '')}"
    assert_refused(fresh, saved, match)


def test_config_beside_the_weights_that_differs_is_refused_or_reported_and_the_header_wins(saved: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    (saved / CONFIG_NAME).write_text(json.dumps({**config, "scale": 9.0}), encoding="utf-8")
    model = base()
    assert_refused(model, saved, f"{CONFIG_NAME} differs from the config inside {WEIGHTS_NAME}.* in .'scale'.")
    with pytest.warns(UserWarning, match=f"{CONFIG_NAME} differs from the config inside {WEIGHTS_NAME}") as caught:
        aim.load_adapters(model, saved, strict=False)
    assert [warning.filename for warning in caught] == [__file__]
    assert model.aim.config.scale == 0.5
    assert torch.equal(run(model), run(trained()))
