"""Fused branches in every dtype, on every device, with stochastic depth, and under transforms and compilers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import aim_adapters as aim
from aim_adapters.core import fused_branches, fusion
from aim_adapters.core.fusion import FusedBranch, compute_dtype, dtype_beside, held_weight
from tests.core.cases import (
    ALL,
    T,
    answers,
    block_of,
    gradients,
    model_of,
    tokens,
    video,
)

# Devices and dtypes


@pytest.mark.parametrize(
    ("device", "dtype", "missing", "reason"),
    [
        ("meta", torch.float32, None, "need a CUDA device or a CPU, got meta"),
        ("mps", torch.float32, None, "need a CUDA device or a CPU, got mps"),
        ("cuda", torch.bfloat16, "Triton is not installed", "Triton is not installed"),
        ("cuda", torch.float64, None, "on a GPU fused branches compute in torch.bfloat16, .*got torch.float64"),
        ("cuda", torch.float32, None, None),
        ("cuda", torch.float16, None, None),
        ("cpu", torch.float64, "Triton does not run on a CPU", None),
    ],
)
def test_devices(
    device: str, dtype: torch.dtype, missing: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "triton_missing", lambda device: missing)
    x: Any = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype)
    found = fusion._unfit(x)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(found)


def test_a_model_on_meta_runs() -> None:
    block = block_of().to("meta")
    assert answers(block, tokens().to("meta")) == ["fused branches need a CUDA device or a CPU, got meta"] * 3
    assert block(tokens().to("meta")).shape == (2 * T, 5, 32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pure_dtypes(dtype: torch.dtype, chains: list[list[str]]) -> None:
    block = block_of(drop_path=0.5).to(dtype).train()
    exact = block_of(drop_path=0.5)(tokens())
    out = block.eval()(tokens(dtype=dtype))
    assert out.dtype == dtype
    assert (out.double() - exact).norm() <= 30 * torch.finfo(dtype).eps * exact.norm()
    assert chains == [ALL, ALL]


@pytest.mark.parametrize(
    ("held", "given", "autocast", "computed", "between"),
    [
        (torch.float32, torch.float32, None, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, None, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float16, torch.float16, torch.float32),
        (torch.float64, torch.float64, torch.bfloat16, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_what_is_computed_and_handed_on(
    held: torch.dtype, given: torch.dtype, autocast: torch.dtype | None, computed: torch.dtype, between: torch.dtype
) -> None:
    block = block_of().to(held)
    for adapter in (block.aim.temporal, block.aim.spatial, block.aim.joint):
        adapter.to(given)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        x = tokens(dtype=given)
        assert compute_dtype(x) == computed
        assert dtype_beside(held_weight(block), x) == between
        assert answers(block, x) == ["fused"] * 3
        assert block(x).dtype == between


# Stochastic depth


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("temporal_input_adapter", [False, True])
def test_all_ways_to_run_draw_the_same(attention: Any, temporal_input_adapter: bool) -> None:
    model = model_of(attention=attention, temporal_input_adapter=temporal_input_adapter, drop_path=0.5).train()
    runs = []
    for fused in ("auto", False):
        aim.set_execution(model, fused=fused)  # type: ignore[arg-type]
        torch.manual_seed(3)
        runs.append((model(video(clips=5)), torch.get_rng_state()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-9, atol=1e-10)
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_are_exact(dtype: torch.dtype) -> None:
    """``1 / (1 - rate)`` has no short form, so it is not rounded to the dtype of the products."""
    block = model_of(drop_path=0.3).blocks[1].train().to(dtype)
    temporal, spatial, mlp = fused_branches(block, tokens(clips=6, dtype=dtype))
    assert isinstance(temporal, FusedBranch) and isinstance(spatial, FusedBranch) and isinstance(mlp, FusedBranch)
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    drawn = torch.cat([each.now(block, tokens(clips=6, dtype=dtype)).factor for each in (temporal, mlp)])  # type: ignore
    assert drawn.dtype == wide
    assert set(drawn.tolist()) == {0.0, (torch.ones((), dtype=wide) / 0.7).item()}
    assert spatial.now(block, tokens(clips=6, dtype=dtype)).factor is None
    block.eval()
    for each in fused_branches(block, tokens(dtype=dtype)):
        assert each.now(block, tokens(dtype=dtype)).factor is None  # type: ignore[union-attr]


# Transforms, exports and compilers


def test_function_transforms_run_modules(chains: list[list[str]]) -> None:
    block = block_of(attention="eager")
    weights = {name: p.detach() for name, p in block.named_parameters()}
    name = "aim.joint.up_proj.weight"

    def loss(weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(block, {**weights, name: weight}, (tokens(),))
        return out.square().sum()

    found = torch.func.grad(loss)(weights[name])
    assert not chains
    leaf = weights[name].clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(loss(leaf), leaf)[0], rtol=1e-10, atol=1e-10)
    assert chains == [ALL]


def test_exported_programs_know_nothing_of_ours() -> None:
    block = block_of().float()
    with torch.no_grad():
        program = torch.export.export(block, (tokens(dtype=torch.float32),), strict=False)
        out = program.module()(tokens(dtype=torch.float32))
        torch.testing.assert_close(out, block(tokens(dtype=torch.float32)), rtol=1e-5, atol=1e-5)
    assert "aim_adapters" not in str([node.target for node in program.graph.nodes])


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and sizes become constants; exporters still use it
def test_traced_programs_know_nothing_of_ours() -> None:
    block = block_of()
    with torch.no_grad():
        traced = torch.jit.trace(block, (tokens(),))
    assert "flash" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(tokens()), block(tokens()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
@pytest.mark.parametrize("fused", ["auto", False])
def test_compiled_blocks_do_the_same(fused: Any, memory: Any) -> None:
    model = model_of(init_values=0.1)
    aim.set_execution(model, fused=fused, memory=memory)
    block = model.blocks[0]
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(compiled, tokens()), gradients(block, tokens()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_second_derivatives_need_modules() -> None:
    model = model_of(attention="eager")

    def penalty() -> Tensor:
        clip = video().requires_grad_()
        (gradient,) = torch.autograd.grad(model(clip).square().sum(), clip, create_graph=True)
        return gradient.square().sum()

    with pytest.raises(aim.UnsupportedKernelError, match="set_execution"):
        penalty()
    aim.set_execution(model, fused=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # flash attention has none either
        penalty().backward()
    assert all(p.grad is not None for p in aim.trainable_parameters(model))


@pytest.mark.filterwarnings("ignore:var_mean.*degrees of freedom:UserWarning")
@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
def test_a_batch_without_clips(memory: Any) -> None:
    model = model_of(drop_path=0.5).train()
    aim.set_execution(model, memory=memory)
    out = model(video(clips=0))
    assert out.shape == (0, 5)
    out.sum().backward()
    assert not any(p.grad.any() for p in aim.trainable_parameters(model) if p.grad is not None)


@pytest.mark.parametrize("enter", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_without_gradients(enter: Callable[[], Any]) -> None:
    block = block_of()
    with enter():
        out = block(tokens())
    assert not out.requires_grad
    torch.testing.assert_close(out.clone(), block(tokens()).detach(), rtol=0, atol=0)
