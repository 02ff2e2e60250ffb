"""What the first token of each frame attends to is what it attends to among all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aim_adapters.ops.branches import AttentionTensors, BranchTensors, attend_from_first
from tests.ops.branches.cases import EPS, SCALE, Case, mapped, plain_attention

CASES = {
    "whole": Case(adapter=False),
    "bare": Case(adapter=False, gamma=False, biases=False, affine=False),
    "narrow_heads": Case(adapter=False, heads=3, head_dim=2),
    "one_token": Case(adapter=False, tokens=1),
    "no_clips": Case(adapter=False, clips=0),
}


def run(x: Tensor, tensors: BranchTensors, case: Case) -> Tensor:
    assert isinstance(tensors.frozen, AttentionTensors)
    return attend_from_first(x, tensors.frozen, heads=case.heads, scale=SCALE, eps=EPS)


@pytest.mark.parametrize("autocast", [False, True])  # which leaves float64 alone
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradient(case: Case, autocast: bool) -> None:
    plan = case.attention("tokens")
    tensors, x = case.tensors(plan), case.tokens_in().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = run(x, tensors, case)
    expected = (plain_attention(x, tensors, plan, case.frames) - x)[:, :1]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(each.square().sum(), x)[0] for each in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("held", "tokens", "autocast"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.bfloat16, False),
    ],
    ids=str,
)
def test_low_precision_errs_no_more_than_twice_what_plain_operators_do(
    held: torch.dtype, tokens: torch.dtype, autocast: bool
) -> None:
    case = Case(adapter=False, tokens=9, dim=32, head_dim=16)
    plan = case.attention("tokens")
    exact_tensors = case.tensors(plan)
    (low,) = mapped([exact_tensors], lambda t: t.to(held))
    x = case.tokens_in()
    exact = (plain_attention(x, exact_tensors, plan, case.frames) - x)[:, :1]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = run(x.to(tokens), low, case).double()
        given = x.to(tokens)
        theirs = (plain_attention(given, low, plan, case.frames).double() - given.double())[:, :1]
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


class Recorder(TorchDispatchMode):
    """Keep the names of all operators that run, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_no_operator_sums_in_an_order_of_its_own() -> None:
    """On a GPU attention's own gradients, scattered sums and the like differ from run to run."""
    case = Case(adapter=False, tokens=9)
    tensors, x = case.tensors(case.attention("tokens")), case.tokens_in().requires_grad_()
    with Recorder() as ran:
        run(x, tensors, case).square().sum().backward()
    assert {"aten::bmm", "aten::_softmax", "aten::_softmax_backward_data"} <= ran.names
    assert not [name for name in ran.names if any(word in name for word in ("attention", "scatter", "index", "gather"))]
