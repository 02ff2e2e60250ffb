"""Whatever a checkpoint holds: it loads, or `CheckpointError` says why not and the model is as it was."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import aim_adapters as aim
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import leases
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME, WeightsFile
from benchmarks.checks.fuzz_checkpoint import Loading, checkpoint_file, mutate
from tests.backbones.cases import assert_same, snapshot
from tests.checkpoint.cases import header, rewrite
from tests.checkpoint.hostile_cases import (
    IN_ONE_DIRECTORY,
    POSIX,
    STARTS,
    STRICTNESS,
    assert_refused,
    inflate,
    load,
    only_our_warnings,
)
from tests.tiny import FRAMES, base, trained, wrapped

# Any bytes and any values


@IN_ONE_DIRECTORY
@given(chance=st.randoms(use_true_random=False), times=st.integers(1, 3))
def test_changed_files_load_or_are_refused_and_nothing_else(chance: random.Random, times: int, tmp_path: Path) -> None:
    content = content_of_a_checkpoint()
    for _ in range(times):
        content = mutate(content, chance)
    Loading(chance).check(tmp_path / WEIGHTS_NAME, content)


content_of_a_checkpoint = functools.cache(checkpoint_file)

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["all", "temporal", "triton", "BTCHW", 2**31 - 1, 60000.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYS = [*json.loads(json.dumps(aim.AIMConfig(num_frames=1).to_dict())), "base_model_name_or_path", "clip", "other"]
KEYS += ["base_model_library", "base_fingerprint", "peft_type", "format_version", "aim_version", "library_name"]


@settings(IN_ONE_DIRECTORY, max_examples=100)
@given(key=st.sampled_from(KEYS), value=ANY, start=st.sampled_from([*STARTS]), strict=st.booleans(), more=st.booleans())
def test_any_value_in_the_config_loads_or_is_refused(
    key: str, value: Any, start: str, strict: bool, more: bool, good: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "saved"
    shutil.copytree(good, directory, dirs_exist_ok=True)
    rewrite(directory, config=lambda config: config.update({key: value}))
    try:
        with only_our_warnings():
            state = load(start, directory, strict=strict, resize_frames=more, allow_nonfinite=more)
    except CheckpointError as error:
        assert len(str(error)) < 2000
    else:
        assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_every_truncation_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(content_of_a_checkpoint())
    (tmp_path / CONFIG_NAME).write_text(header(tmp_path)["aim_config"], encoding="utf-8")
    content = (tmp_path / name).read_bytes()
    model = base()
    before = snapshot(model)
    # Of the data behind the header, some lengths: all of them are told from the header alone.
    for length in [*range(min(len(content), 300)), *range(300, len(content), 101), len(content) - 1]:
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=name):
            aim.load_adapters(model, tmp_path)
    assert_same(before, snapshot(model))


# Absurd settings and shapes


ABSURD: list[dict[str, Any]] = [
    {"num_frames": 10**9},
    {"num_frames": 2**31 - 1},
    {"num_frames": 10**400},
    {"num_frames": 2**31 - 2, "tubelet_size": 2},
    {"bottleneck": 1e12},
    {"bottleneck": 60000},
    {"bottleneck": 60000, "num_frames": 2**31 - 1, "num_classes": 2**31 - 1},
    {"num_classes": 2**31 - 1},
    {"num_classes": 10**30},
    {"layers": list(range(10**6))},
    {"layers": list(range(200_000))},
    {"layers": [0] * 200_000},
    {"layers": [10**30]},
    {"drop_path": 1e308},
    {"scale": 10**400},
]


@STRICTNESS
@pytest.mark.parametrize("fields", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize("begin", ["unwrapped", "beside"])
def test_absurd_settings_are_refused_at_once(fields: dict[str, Any], begin: str, strict: bool, saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(fields))
    assert_refused(begin, saved, ".", strict=strict)


@STRICTNESS
@pytest.mark.parametrize("fields", ABSURD, ids=range(len(ABSURD)))
def test_absurd_settings_do_not_reach_a_wrapped_model(fields: dict[str, Any], strict: bool, saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(fields))
    try:
        with only_our_warnings():
            state = load("wrapped", saved, strict=strict)
    except CheckpointError as error:
        assert len(str(error)) < 2000
    else:
        shapes = {key: tensor.shape for key, tensor in aim.adapter_state_dict(wrapped()).items()}
        assert {key: tensor.shape for key, tensor in state.items()} == shapes


SPARSE: dict[str, tuple[dict[str, list[int]], dict[str, Any]]] = {
    "classes": ({"head.weight": [2**31 - 1, 32], "head.bias": [2**31 - 1]}, {"num_classes": 2**31 - 1}),
    "frames": ({"temporal_embedding": [1, 2**31 - 1, 32]}, {"num_frames": 2**31 - 1}),
    "not_in_the_config": ({"head.weight": [2**35, 32]}, {}),
}


@POSIX
@STRICTNESS
@pytest.mark.parametrize("case", SPARSE)
def test_huge_sparse_files_are_refused_at_once(case: str, strict: bool, start: str, saved: Path) -> None:
    assert inflate(saved, SPARSE[case][0], **SPARSE[case][1]) > 2**37
    if start == "wrapped" and not strict:
        with only_our_warnings():
            load(start, saved, strict=False)  # what does not fit is not read
    elif case == "not_in_the_config" and not strict:
        with only_our_warnings():
            assert load(start, saved, strict=False)["head.weight"].shape == (5, 32)
    else:
        assert_refused(start, saved, ".", strict=strict)


# Changes while it is read


def change_while_reading(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any], *, after: int = 5
) -> Callable[[], int]:
    """Do something to the file after some tensors were read; return how many were read."""
    read, count = WeightsFile.read, 0

    def counted(self: WeightsFile, key: str) -> Tensor:
        nonlocal count
        count += 1
        if count == after:
            change()
        return read(self, key)

    monkeypatch.setattr(WeightsFile, "read", counted)
    monkeypatch.setattr(leases, "_lease", lambda descriptor: False)  # which would keep writers waiting
    return lambda: count


@STRICTNESS
@pytest.mark.parametrize("length", [0, 100, 10_000])
def test_file_cut_while_it_is_read_changes_nothing(
    length: int, strict: bool, start: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = change_while_reading(monkeypatch, lambda: os.truncate(saved / WEIGHTS_NAME, length))
    assert_refused(start, saved, "was changed while it was read", strict=strict)
    assert read() >= 5


def test_file_overwritten_while_it_is_read_changes_nothing(
    start: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (saved / WEIGHTS_NAME).read_bytes()
    other = content[: -len(content) // 2] + bytes(len(content) - len(content[: -len(content) // 2]))
    os.utime(saved / WEIGHTS_NAME, ns=(0, 10**18))
    change_while_reading(monkeypatch, lambda: (saved / WEIGHTS_NAME).write_bytes(other))
    assert_refused(start, saved, "was changed while it was read")


@POSIX
def test_file_replaced_while_it_is_read_loads_as_it_was(
    start: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace() -> None:
        (saved / "new").write_bytes(b"another")
        (saved / "new").replace(saved / WEIGHTS_NAME)

    change_while_reading(monkeypatch, replace)
    expected = aim.adapter_state_dict(trained())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load(start, saved).items())


# What a file and its config, and a call and what it writes, must agree on


@pytest.mark.parametrize("frames", [0, 1, 7, 9])
@STRICTNESS
def test_resizing_refuses_positions_of_other_frames_than_the_config_says(
    frames: int, strict: bool, saved: Path, tmp_path: Path
) -> None:
    aim.save_adapters(trained(num_frames=8), saved)
    rewrite(saved, tensors=lambda state: state.update(temporal_embedding=torch.ones(1, frames, 32)))
    if strict:
        with only_our_warnings():
            assert_refused("wrapped", saved, r"temporal_embedding \(\[1, ", resize_frames=True)
    else:
        state = load("wrapped", saved, strict=False, resize_frames=True)  # nothing interpolated, so nothing is said
        assert torch.equal(state["temporal_embedding"], torch.zeros(1, FRAMES, 32))


def test_values_beyond_the_models_precision_are_refused(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda s: s.update({"head.bias": torch.full((5,), 1e300, dtype=torch.float64)}))
    assert_refused(start, saved, "head.bias")


def test_bad_name_is_an_error_of_the_call(saved: Path) -> None:
    for make in (base, wrapped):
        for name in ("a.b", "forward", ""):
            model = make()
            before = snapshot(model)
            with pytest.raises(ConfigError, match="an adapter's name must be a string without dots"):
                aim.load_adapters(model, saved, name=name)
            assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": ["中" * 45] * 30_000},
        {"labels": ["a" * 400] * 30_000},
        {"labels": [", " * 20] * 30_000},
        {"labels": list(range(30_000))},
        {"base_model_name_or_path": 7},
    ],
    ids=["escapes", "long", "commas", "numbers", "name"],
)
def test_what_could_not_be_read_again_is_not_saved(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = trained(num_classes=30_000)
    aim.save_adapters(model, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError):
        aim.save_adapters(model, tmp_path, **arguments)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_name_of_a_base_that_is_no_text_can_be_saved_and_loaded(start: str, tmp_path: Path) -> None:
    aim.save_adapters(trained(), tmp_path, base_model_name_or_path=os.fsdecode(b"/data/caf\xe9"))
    load(start, tmp_path)
