"""What a file's tensors hold: values that are not finite, adapters never trained, any precision, any device."""

from __future__ import annotations

import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import aim_adapters as aim
from aim_adapters.storage.files import WEIGHTS_NAME
from tests.checkpoint.cases import rewrite
from tests.checkpoint.hostile_cases import STARTS, STRICTNESS, assert_refused, load
from tests.tiny import base, run, trained, wrapped

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
