"""The config says what a checkpoint is; what is not one is named, and told what to do with it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from aim_adapters.checkpoint.format import open_checkpoint
from aim_adapters.config import AIMConfig
from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME

CONFIG: dict[str, Any] = {
    "library_name": "aim-adapters",
    "peft_type": "AIM",
    "format_version": 1,
    "aim_version": "0.1.0",
    **AIMConfig(num_frames=4).to_dict(),
    "base_model_name_or_path": "vit_x.in1k",
    "base_model_library": "timm",
    "base_model_revision": None,
    "base_model_arguments": {"num_classes": 5},
    "base_fingerprint": "0123456789abcdef",
    "clip": {"frames": 4, "stride": 2, "size": [16, 16], "mean": [0.5, 0, 1], "std": [1.0], "labels": ["a", "b"]},
}  # fmt: skip


def write(directory: Path, config: Any, *, beside: Any = None) -> Path:
    """Write a checkpoint with any config in its header, and perhaps another beside it."""
    text = config if isinstance(config, str) else json.dumps(config)
    save_file({"head.bias": torch.ones(2)}, directory / WEIGHTS_NAME, metadata={"aim_config": text})
    if beside is not None:
        (directory / CONFIG_NAME).write_text(json.dumps(beside), encoding="utf-8")
    return directory


def read(directory: Path, *, strict: bool = True) -> dict[str, Any]:
    with open_checkpoint(directory, strict=strict) as checkpoint:
        assert checkpoint.directory == directory and checkpoint.file.metadata["aim_config"]
        return checkpoint.config


def settings_of(directory: Path, *, strict: bool = True) -> AIMConfig:
    with open_checkpoint(directory, strict=strict) as checkpoint:
        return checkpoint.settings()


def assert_refused(directory: Path, match: str, *, strict: bool = True) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        settings_of(directory, strict=strict)
    assert len(str(caught.value)) < 1500


def test_config_and_settings_are_read(tmp_path: Path) -> None:
    write(tmp_path, CONFIG, beside=CONFIG)
    assert read(tmp_path) == CONFIG
    assert settings_of(tmp_path) == AIMConfig(num_frames=4)


@pytest.mark.parametrize("attention", ["auto", "triton", "flash", None, 3])
def test_attention_that_earlier_versions_saved_says_nothing(attention: Any, tmp_path: Path) -> None:
    write(tmp_path, {**CONFIG, "attention": attention})
    assert settings_of(tmp_path) == AIMConfig(num_frames=4)


def test_fields_that_say_nothing_may_be_missing_or_null(tmp_path: Path) -> None:
    config = {"peft_type": "AIM", "format_version": 1, "num_frames": 4, "clip": {"stride": None, "labels": None}}
    assert read(write(tmp_path, config)) == config


# Types


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["all", "temporal"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
PATHS = [(key,) for key in CONFIG] + [("clip", key) for key in CONFIG["clip"]]


def with_value(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return the config with one value replaced, of the clip where the path leads there."""
    if len(path) == 1:
        return {**CONFIG, path[0]: value}
    return {**CONFIG, "clip": {**CONFIG["clip"], path[1]: value}}


@pytest.mark.parametrize("strict", [True, False])
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), value=ANY)
def test_any_value_in_place_of_any_other_is_taken_or_refused(
    path: tuple[str, ...], value: Any, strict: bool, tmp_path: Path
) -> None:
    config = with_value(path, value)
    write(tmp_path, config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the config in .* has unknown keys", UserWarning)
        try:
            read_back = read(tmp_path, strict=strict)
            taken = settings_of(tmp_path, strict=strict)
        except CheckpointError as error:
            assert str(tmp_path) in str(error)
            assert len(str(error)) < 1500
            return
    assert read_back == json.loads(json.dumps(config))
    assert AIMConfig.from_dict(taken.to_dict()) == taken


WRONG: list[tuple[tuple[str, ...], Any, str]] = [
    (("library_name",), None, "library_name=None, expected str"),
    (("aim_version",), 1, "aim_version=1, expected str"),
    (("base_model_name_or_path",), ["x"], r"base_model_name_or_path=\['x'\], expected str or null"),
    (("base_model_library",), {}, "base_model_library={}, expected str"),
    (("base_model_revision",), True, "base_model_revision=True, expected str or null"),
    (("base_model_arguments",), [], r"base_model_arguments=\[\], expected dict"),
    (("base_fingerprint",), 7, "base_fingerprint=7, expected str"),
    (("base_fingerprint",), ["x" * 10**6], r"base_fingerprint=\['x+, expected str"),
    (("clip",), None, "clip=None, expected dict"),
    (("clip", "frames"), True, r"clip\.frames=True, expected int"),
    (("clip", "frames"), 4.0, r"clip\.frames=4\.0, expected int"),
    (("clip", "stride"), "2", r"clip\.stride='2', expected int or null"),
    (("clip", "size"), 16, r"clip\.size=16, expected a list or null"),
    (("clip", "size"), [16.5], r"clip\.size=\[16\.5\], expected a list of int"),
    (("clip", "mean"), ["0.5"], r"clip\.mean=\['0\.5'\], expected a list of int or float"),
    (("clip", "std"), {"0": 1}, r"clip\.std=.*, expected a list or null"),
    (("clip", "labels"), "ab", r"clip\.labels='ab', expected a list or null"),
    (("clip", "labels"), ["a", None], r"clip\.labels=\['a', None\], expected a list of str"),
    (("format_version",), True, "format version True, this library reads 1; save it again"),
    (("format_version",), "1", "format version '1', this library reads 1; save it again"),
    (("format_version",), 1.0, r"format version 1\.0, this library reads 1"),
    (("format_version",), 0, "format version 0, this library reads 1; save it again"),
    (("format_version",), 2, r"format version 2, this library reads 1; update aim-adapters \(it was written by 0\.1"),
    (("format_version",), int("9" * 4000), "format version 9{80}, this library reads 1; update aim-adapters"),
    (("peft_type",), "aim", "an adapter of type 'aim', expected 'AIM'; load it with peft"),
    (("peft_type",), "x" * 10**6, "an adapter of type 'x+, expected 'AIM'; load it with peft"),
    (("peft_type",), ["AIM"], r"an adapter of type \['AIM'\], expected 'AIM'$"),
    (("layers",), [0] * 200_000 + ["x"], "is invalid: layers: expected"),
    (("num_frames",), None, "is invalid: num_frames must be an integer >= 1, got None"),
    (("scale",), "1e999", "is invalid: scale must be a finite number"),
]  # fmt: skip


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("path", "value", "match"), WRONG, ids=lambda each: f"{each!s:.20}")
def test_wrong_types_are_refused(path: tuple[str, ...], value: Any, match: str, strict: bool, tmp_path: Path) -> None:
    assert_refused(write(tmp_path, with_value(path, value)), match, strict=strict)


def test_numbers_beyond_floats_are_refused(tmp_path: Path) -> None:
    text = json.dumps(CONFIG).replace('"scale": 0.5', '"scale": 1e999')
    assert_refused(write(tmp_path, text), "scale must be a finite number, got inf")


# Unknown keys


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**CONFIG, "gate": 0.5}, r"\['gate'\]"),
        ({**CONFIG, "zeta": 1, "alpha": None}, r"\['alpha', 'zeta'\]"),
        (with_value(("clip", "jitter"), 1), r"\['clip\.jitter'\]"),
        ({**with_value(("clip", "jitter"), 1), "gate": 1}, r"\['gate', 'clip\.jitter'\]"),
        ({**CONFIG, "": 1, "\x1b[31m": 1}, r"\['', '\\x1b\[31m'\]"),
        ({**CONFIG, "x" * 10**6: 1}, "'x+"),
        ({**CONFIG, **{f"x{i}": 1 for i in range(10**4)}}, "'x0', 'x1'"),
    ],
    ids=["one", "two", "clip", "both", "odd", "long", "many"],
)
def test_unknown_keys_are_an_error_or_a_warning(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    write(tmp_path, config, beside=config)
    message = f"the config in .*{WEIGHTS_NAME} has unknown keys .*{named}.*they may change what the adapters mean"
    assert_refused(tmp_path, rf"{message}\. Update aim-adapters, or pass strict=False")
    with pytest.warns(UserWarning, match=f"{message}$") as caught:
        assert read(tmp_path, strict=False) == config
    assert [warning.filename for warning in caught] == [__file__]
    assert len(str(caught[0].message)) < 1500


# Header and file


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale": 9.0}, "scale"),
        ({"scale": 9.0, "layers": [0]}, "layers', 'scale"),
        ({"base_model_name_or_path": "another"}, "base_model_name_or_path"),
        ({"aim_version": "0.0"}, "aim_version"),
        ({"clip": {**CONFIG["clip"], "labels": ["a"], "stride": None}}, "clip.labels"),
        ({"clip": None}, "clip"),
        ({"clip": [1]}, "clip"),
        ({"num_frames": None}, "num_frames"),
        ({"scale": "x" * 10**5}, "scale"),
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_header_is_the_one_used_and_a_contradiction_is_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write(tmp_path, CONFIG, beside={**CONFIG, **changes})
    match = rf"{CONFIG_NAME} differs from the config inside {WEIGHTS_NAME}, .*{named}.*Delete the file, or save"
    assert_refused(tmp_path, rf"{match}.*pass strict=False")
    with pytest.warns(UserWarning, match=match) as caught:
        assert read(tmp_path, strict=False) == CONFIG
    assert len(str(caught[0].message)) < 1500


def test_what_does_not_contradict_passes_or_is_told(tmp_path: Path) -> None:
    # Other order, spacing and kinds of numbers; null for what is not there.
    same = {**dict(reversed(CONFIG.items())), "auto_mapping": None, "scale": json.loads(f"{CONFIG['scale']}0")}
    write(tmp_path, CONFIG, beside=same)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(same, indent=7), encoding="utf-8")
    assert read(tmp_path) == CONFIG
    write(tmp_path, CONFIG, beside={**CONFIG, "transformers_version": "5.0"})
    with pytest.warns(UserWarning, match="in \\['transformers_version'\\]"):
        assert read(tmp_path) == CONFIG


def test_config_file_may_be_missing(tmp_path: Path) -> None:
    assert read(write(tmp_path, CONFIG)) == CONFIG


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Path.mkdir, "cannot be read: "),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    ],
    ids=["directory", "pipe", "zeros"],
)
def test_other_things_under_the_names_are_refused(
    make: Callable[[Path], Any], match: str, name: str, tmp_path: Path
) -> None:
    write(tmp_path, CONFIG, beside=CONFIG)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    assert_refused(tmp_path, f"{name} {match}")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_directory_that_may_not_be_looked_into_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def refuse(self: Path) -> bool:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self)

    monkeypatch.setattr(Path, "exists", refuse)
    assert_refused(write(tmp_path, CONFIG), f"{name} cannot be read: .*Permission denied")


# What others write


LORA = {
    "peft_type": "LORA", "auto_mapping": None, "base_model_name_or_path": "google/vit-base-patch16-224", "bias": "none",
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.1,
    "modules_to_save": ["classifier"], "r": 8, "target_modules": ["query", "value"], "task_type": None,
}  # fmt: skip
LORA_KEY = "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_{}.weight"
ADAPTERS = {
    "config": {"mh_adapter": True, "reduction_factor": 16}, "config_id": "0a1b", "hidden_size": 768,
    "model_class": "ViTAdapterModel", "model_name": "google/vit-base-patch16-224", "model_type": "vit", "name": "x",
    "version": "adapters.1.1.0",
}  # fmt: skip


def lora(directory: Path) -> None:
    state = {LORA_KEY.format("A"): torch.zeros(8, 32), LORA_KEY.format("B"): torch.zeros(32, 8)}
    save_file(state, directory / WEIGHTS_NAME, metadata={"format": "pt"})


def describe(directory: Path, config: dict[str, Any]) -> None:
    (directory / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")


def touch(*names: str) -> Callable[[Path], None]:
    return lambda directory: [(directory / name).write_bytes(b"x") for name in names] and None


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "peft": (
        lambda d: [lora(d), describe(d, LORA)],
        f"{CONFIG_NAME} describes an adapter of type 'LORA', expected 'AIM'; load it with peft.PeftModel",
    ),
    "peft_without_config": (lora, f"{WEIGHTS_NAME} has no AIM config in its header; it holds a peft adapter"),
    "peft_pickled": (touch("adapter_model.bin"), "a pickled peft adapter; a pickle is never read"),
    "adapters": (
        lambda d: [describe(d, ADAPTERS), touch("pytorch_adapter.bin")(d)],
        "it is an adapter of the adapters library, load it with that",
    ),
    "adapters_safetensors": (touch("adapter.safetensors"), "it holds an adapter of the adapters library; load it with"),
    "adapters_without_config": (touch("pytorch_adapter.bin"), "it holds an adapter of the adapters library"),
    "timm": (touch("model.safetensors", "config.json"), "it holds a whole model; build it with its own library"),
    "transformers": (touch("pytorch_model.bin", "config.json"), "it holds a whole model; build it with its own"),
    "open_clip": (touch("open_clip_model.safetensors", "open_clip_config.json"), "build it with open_clip"),
    "whole_model_under_our_name": (
        lambda d: save_file({"blocks.0.attn.qkv.weight": torch.ones(3)}, d / WEIGHTS_NAME, metadata={"format": "pt"}),
        "has no AIM config in its header; it was not made by save_adapters",
    ),
    "pickle_under_our_name": (
        lambda d: torch.save({"head.bias": torch.ones(2)}, d / WEIGHTS_NAME),
        f"{WEIGHTS_NAME} is damaged or not a safetensors file: .*it looks like a pickle, which is never read",
    ),
    "old_pickle_under_our_name": (
        lambda d: torch.save({"a": torch.ones(2)}, d / WEIGHTS_NAME, _use_new_zipfile_serialization=False),
        "it looks like a pickle, which is never read",
    ),
    "pointer": (
        lambda d: (d / WEIGHTS_NAME).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"),
        "it looks like a Git LFS pointer; run `git lfs pull`",
    ),
    "nothing": (lambda d: None, f"holds no {WEIGHTS_NAME}; expected a directory made by save_adapters$"),
    "config_alone": (lambda d: describe(d, CONFIG), f"holds no {WEIGHTS_NAME}; expected a directory made by save"),
    "training_arguments": (lambda d: describe(d, {"lr": 0.1}), "an adapter of type None, expected 'AIM'$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("strict", [True, False])
def test_what_others_write_is_named(kind: str, strict: bool, tmp_path: Path) -> None:
    make, match = OTHERS[kind]
    make(tmp_path)
    assert_refused(tmp_path, match, strict=strict)


@pytest.mark.parametrize("where", ["beside", "header"])
def test_later_versions_are_named_whatever_else_they_hold(where: str, tmp_path: Path) -> None:
    later = {"peft_type": "AIM", "format_version": 2, "aim_version": "9.9.0", "frames": {"count": 8}}
    write(tmp_path, later if where == "header" else CONFIG, beside=later if where == "beside" else None)
    assert_refused(
        tmp_path, r"has format version 2, this library reads 1; update aim-adapters \(it was written by 9\.9\.0\)"
    )
