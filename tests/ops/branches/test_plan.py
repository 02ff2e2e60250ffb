"""A plan becomes text that an operator can take, and comes back whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan, decode, encode
from tests.ops.branches.cases import ACTIVATIONS, MEMORY

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ATTENTIONS = st.builds(
    AttentionPlan,
    over=st.sampled_from(["frames", "tokens", "windows"]),
    heads=st.integers(1, 64),
    scale=NUMBERS,
    eps=NUMBERS,
    implementation=st.sampled_from(["eager", "triton", "flash"]),
    shares=st.booleans(),
    norm=st.sampled_from(["layer", "rms"]),
    head_norm=st.sampled_from(["", "layer", "rms"]),
    head_eps=NUMBERS,
    rotary=st.sampled_from(["", "interleaved", "halves"]),
    inner_norm=st.sampled_from(["", "layer"]),
    inner_eps=NUMBERS,
    adapter=st.sampled_from(["gelu", "none"]),
)
MLPS = st.builds(
    MlpPlan,
    activation=st.sampled_from(ACTIVATIONS),
    eps=NUMBERS,
    scale=NUMBERS,
    norm=st.sampled_from(["layer", "rms"]),
    gated=st.booleans(),
    inner_norm=st.sampled_from(["", "layer"]),
    inner_eps=NUMBERS,
    adapter=st.sampled_from(["gelu", "none"]),
)
CHAINS = st.builds(
    ChainPlan,
    branches=st.lists(ATTENTIONS | MLPS, min_size=1, max_size=4).map(tuple),
    num_frames=st.integers(1, 128),
    dtype=st.sampled_from(["float64", "float32", "bfloat16", "float16"]),
    memory=st.sampled_from(MEMORY),
    tokens=st.just(0),  # no part of the text
    frozen_precision=st.sampled_from(["auto", "fp8"]),
)


@given(CHAINS)
def test_comes_back_whole(plan: ChainPlan) -> None:
    again = decode(encode(plan))
    assert again == plan
    assert [type(branch) for branch in again.branches] == [type(branch) for branch in plan.branches]


@given(ATTENTIONS)
def test_shares_all_but_what_says_so(branch: AttentionPlan) -> None:
    assert branch.sharing() == branch._replace(shares=True)


@given(CHAINS, CHAINS)
def test_plans_that_differ_have_texts_that_differ(one: ChainPlan, other: ChainPlan) -> None:
    assert (encode(one) == encode(other)) == (repr(one) == repr(other))  # repr: -0.0 is not 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_names_its_dtype(dtype: torch.dtype) -> None:
    assert ChainPlan((), 8, str(dtype).removeprefix("torch."), "fast").compute_dtype == dtype
