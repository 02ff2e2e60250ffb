"""Whatever a checkpoint holds: it loads, or `CheckpointError` says why not and the model is as it was."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME, WeightsFile
from benchmarks.checks.fuzz_checkpoint import OUR_WARNINGS, Loading, checkpoint_file, mutate
from tests.backbones.cases import assert_same, snapshot
from tests.checkpoint.cases import header, rewrite
from tests.memory import at_most
from tests.tiny import FRAMES, base, run, trained, wrapped

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def with_two() -> nn.Module:
    model = wrapped()
    aim.add_adapter(model, "second", aim.AIMConfig(num_frames=2, components=("joint",)))
    return model


STARTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "unwrapped": (base, {}),
    "wrapped": (wrapped, {}),
    "beside": (with_two, {"name": "third"}),
}
STRICTNESS = pytest.mark.parametrize("strict", [True, False])
IN_ONE_DIRECTORY = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(start: str, directory: Path, **arguments: Any) -> dict[str, Tensor]:
    """Load into a fresh model and return the adapter; if that is refused, check that the model is as it was."""
    make, more = STARTS[start]
    model = make()
    next(model.parameters()).requires_grad_(False)
    before, was_wrapped = snapshot(model), aim.is_wrapped(model)
    try:
        aim.load_adapters(model, directory, **more, **arguments)
    except CheckpointError:
        assert aim.is_wrapped(model) is was_wrapped
        assert_same(before, snapshot(model))
        raise
    return aim.adapter_state_dict(model, **more)


def assert_refused(start: str, directory: Path, match: str, **arguments: Any) -> None:
    """Check that loading is refused at once, in few words, without the memory that the file or its config speaks of."""
    begin = time.process_time()
    with at_most(100), pytest.raises(CheckpointError, match=match) as caught:
        load(start, directory, **arguments)
    assert time.process_time() - begin < 2
    assert len(str(caught.value)) < 2000


@contextmanager
def only_our_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        ours = (*OUR_WARNINGS, ".* differs from the config", "temporal positions interpolated")
        warnings.filterwarnings("ignore", "|".join(ours), UserWarning)
        yield


def rewrite_header(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the header of the weights as JSON, leaving the data."""
    content = (directory / WEIGHTS_NAME).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:end])
    edit(fields)
    text = json.dumps(fields).encode()
    (directory / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def inflate(directory: Path, shapes: dict[str, list[int]], **config: Any) -> int:
    """Give tensors other shapes, in header, config and size of the file, without writing what they would hold."""
    size = 0

    def edit(fields: dict[str, Any]) -> None:
        nonlocal size
        metadata = fields.pop("__metadata__")
        for key, entry in fields.items():
            entry["shape"] = shapes.get(key, entry["shape"])
            begin, size = size, size + 4 * torch.Size(entry["shape"]).numel()
            entry["data_offsets"] = [begin, size]
        metadata["aim_config"] = json.dumps({**json.loads(metadata["aim_config"]), **config})
        fields["__metadata__"] = metadata

    (directory / CONFIG_NAME).unlink()
    rewrite_header(directory, edit)
    start = int.from_bytes((directory / WEIGHTS_NAME).read_bytes()[:8], "little") + 8
    os.truncate(directory / WEIGHTS_NAME, start + size)
    return size


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


# Values of tensors


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("nan", torch.float32), ("-inf", torch.float16), ("inf", torch.bfloat16), ("-inf", torch.float64)],
)
def test_what_is_not_finite_is_refused_unless_asked_for(
    value: str, dtype: torch.dtype, start: str, saved: Path
) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        key = random.Random(str((value, dtype, start))).choice(list(state))
        state[key] = state[key].to(dtype)
        state[key].view(-1)[-1] = float(value)

    rewrite(saved, tensors=edit)
    assert_refused(start, saved, "NaN or infinities.*nothing was loaded.*allow_nonfinite=True")
    assert_refused(start, saved, "NaN or infinities", strict=False)
    state = load(start, saved, allow_nonfinite=True)
    assert sum(not tensor.isfinite().all() for tensor in state.values()) == 1


def test_infinities_of_both_signs_do_not_cancel(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda s: s["head.bias"].copy_(torch.tensor([float("inf"), -float("inf"), 0, 0, 0])))
    assert_refused(start, saved, "NaN or infinities")


def test_what_is_not_finite_and_not_read_does_not_matter(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda state: state.update(extra=torch.full((3,), float("nan"))))
    assert_refused(start, saved, "1 unexpected: extra")
    load(start, saved, strict=False)


def test_finite_values_whose_sum_overflows_load(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda state: state["head.bias"].fill_(3e38))
    assert load(start, saved)["head.bias"].tolist() == torch.full((5,), 3e38).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_files_of_any_precision_load(dtype: torch.dtype, start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda state: state.update({key: tensor.to(dtype) for key, tensor in state.items()}))
    expected = load_file(saved / WEIGHTS_NAME)
    state = load(start, saved)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert all(torch.equal(tensor, expected[key].float()) for key, tensor in state.items())


# Adapters that were never trained


def zero_up(state: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if ".up_proj." in key:
            tensor.zero_()


NEVER = "every up-projection in .* is zero: these adapters were never trained, and the model computes what the image"


def test_adapters_that_were_never_trained_are_told(start: str, saved: Path) -> None:
    rewrite(saved, tensors=zero_up)
    with pytest.warns(UserWarning, match=NEVER):
        load(start, saved)


def test_one_trained_value_is_enough(start: str, saved: Path) -> None:
    rewrite(saved, tensors=lambda s: [zero_up(s), s["blocks.1.joint.up_proj.weight"].view(-1)[-1].fill_(1e-30)])
    load(start, saved)


@pytest.mark.parametrize("components", [(), ("spatial",), ("joint",), ("temporal",)], ids=str)
@pytest.mark.parametrize("begin", ["unwrapped", "wrapped"])
def test_some_components_load_and_warn_only_if_they_have_adapters(
    components: tuple[str, ...], begin: str, tmp_path: Path
) -> None:
    model = trained(components=components)
    aim.save_adapters(model, tmp_path)
    other = base() if begin == "unwrapped" else wrapped(components=components)
    assert not any(aim.load_adapters(other, tmp_path))
    assert torch.equal(run(other), run(model))
    rewrite(tmp_path, tensors=zero_up)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aim.load_adapters(other, tmp_path)
    assert [bool(re.match(NEVER, str(each.message))) for each in caught] == [True] * bool(components)


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


# What lies under the names


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


@POSIX
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        lambda path: os.mkfifo(path),
        make_socket,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("."),
    ],
    ids=["directory", "pipe", "socket", "zeros", "link_to_directory"],
)
def test_what_is_no_file_is_refused(
    make: Callable[[Path], Any], name: str, start: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)  # the path of a socket must be short
    Path(name).unlink()
    make(Path(name))
    assert_refused(start, saved, f"{name} (cannot be read|is not a regular file)")
    assert_refused(start, saved, f"{name} (cannot be read|is not a regular file)", strict=False)


@POSIX
@pytest.mark.parametrize("target", ["nowhere", WEIGHTS_NAME])
def test_links_that_lead_nowhere_are_missing_files(target: str, start: str, saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    (saved / WEIGHTS_NAME).symlink_to(target)
    assert_refused(start, saved, f"holds no {WEIGHTS_NAME}")


@POSIX
def test_links_to_files_load(start: str, saved: Path) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (saved / name).rename(saved.with_name(name))
        (saved / name).symlink_to(saved.with_name(name))
    expected = aim.adapter_state_dict(trained())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load(start, saved).items())


@pytest.mark.parametrize("source", ["a\0b", "", "~", "..\0", "x" * 300, "/dev/zero", "a/b/c", "../..", "http://x/y"])
def test_sources_that_are_no_directory_are_refused(source: str, start: str) -> None:
    assert_refused(start, Path(source) if source.startswith("/") else source, ".")  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", ["..", "a/..", "/", "/tmp", "", ".", "a\0b", "a\\b", "C:a", "a//b"])
def test_subfolders_that_lead_elsewhere_are_refused(inner: str, start: str, saved: Path) -> None:
    assert_refused(start, saved, "subfolder|holds no folder", subfolder=inner)


# What others write, into a model


LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["qkv"], "base_model_name_or_path": "x"}
KEY = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"


@STRICTNESS
@pytest.mark.parametrize("described", [True, False])
def test_peft_adapter_is_refused_by_name(described: bool, strict: bool, start: str, tmp_path: Path) -> None:
    state = {KEY.format("A"): torch.ones(8, 32), KEY.format("B"): torch.ones(96, 8)}
    save_file(state, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    if described:
        (tmp_path / CONFIG_NAME).write_text(json.dumps(LORA), encoding="utf-8")
    match = "an adapter of type 'LORA', expected 'AIM'; load it with peft" if described else "it holds a peft adapter"
    assert_refused(start, tmp_path, match, strict=strict)


@STRICTNESS
def test_image_model_in_our_place_is_refused(strict: bool, start: str, saved: Path) -> None:
    save_file(base().state_dict(), saved / WEIGHTS_NAME, metadata=header(saved))
    if strict:
        assert_refused(start, saved, "the checkpoint does not fit the model, nothing was loaded")
    else:
        fresh = aim.adapter_state_dict(wrapped())
        loaded = load(start, saved, strict=False)  # norm and head have the same names; the rest is reported
        assert all(torch.equal(loaded[key], fresh[key]) for key in ("norm.weight", "head.weight"))


@pytest.mark.parametrize("where", ["gate", "clip"])
def test_unknown_keys_are_refused_or_told(where: str, start: str, saved: Path) -> None:
    rewrite(saved, config=lambda c: c.update(gate=0.5) if where == "gate" else c["clip"].update(gate=0.5))
    assert_refused(start, saved, "has unknown keys .*gate.*Update aim-adapters, or pass strict=False")
    with pytest.warns(UserWarning, match="has unknown keys .*gate"):
        load(start, saved, strict=False)


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


# Where it is loaded


@STRICTNESS
def test_default_device_does_not_matter(strict: bool, start: str, saved: Path) -> None:
    expected = aim.adapter_state_dict(trained())
    make, more = STARTS[start]
    model = make()
    with torch.device("meta"):
        aim.load_adapters(model, saved, strict, **more)
    state = aim.adapter_state_dict(model, **more)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


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
