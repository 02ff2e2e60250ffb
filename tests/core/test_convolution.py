"""The temporal convolution in front of a block: beside fused branches, hooks, sharding, graphs and compilers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from aim_adapters.core import Graphs
from aim_adapters.errors import StateError
from tests.backbones.cases import process_group, wake
from tests.core.cases import T, answers, block_of, gradients, model_of, tokens, video
from tests.core.graph_cases import FakeGraphs

__all__ = ["process_group"]


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("temporal", ["conv", "both"])
def test_branches_behind_it_run_fused_as_one_step(temporal: Any, memory: Any, chains: list[list[str]]) -> None:
    model = model_of(temporal=temporal)
    attends = ["frames"] if temporal == "both" else []
    assert answers(model.blocks[0]) == ["fused" if attends else None, "fused", "fused"]
    aim.set_execution(model, fused=True, memory=memory)
    found = gradients(model.blocks[0], tokens())
    assert chains[0] == [*attends, "tokens", "mlp"]
    aim.set_execution(model, fused=False)
    for one, other in zip(found, gradients(model.blocks[0], tokens()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_it_is_the_only_part_of_a_block(chains: list[list[str]]) -> None:
    block = block_of(components=("temporal",), temporal="conv", conv_layers=[0])
    out, before, *trained = gradients(block, tokens())
    assert len(trained) == 6
    assert all(gradient.any() for gradient in (out, before, *trained))
    assert chains == [["tokens", "mlp"]]


def test_the_last_block_narrows_behind_it(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of(temporal="conv")
    out = model(video())
    assert narrowed == [(2 * T, 5, 32)]
    aim.set_execution(model, fused=False)
    torch.testing.assert_close(model(video()), out, rtol=1e-10, atol=1e-10)


def hook(block: Any) -> None:
    block.aim.temporal_conv.register_forward_hook(lambda module, given, out: out * 2)


def hook_inside(block: Any) -> None:
    block.aim.temporal_conv.down_proj.register_forward_hook(lambda module, given, out: out * 2)


def replace(block: Any) -> None:
    block.aim.temporal_conv.up_proj = nn.Linear(8, 32, dtype=torch.float64)


def reassign(block: Any) -> None:
    block.aim.temporal_conv.conv_weight = nn.Parameter(block.aim.temporal_conv.conv_weight.detach() * 2)


@pytest.mark.parametrize("change", [hook, hook_inside, replace, reassign])
def test_what_others_change_in_it_counts_at_the_next_call(change: Any) -> None:
    block = block_of(temporal="both")
    before = block(tokens())
    change(block)
    after = block(tokens())
    assert not torch.allclose(after, before)
    fresh = copy.deepcopy(block)
    fresh.aim.decisions.clear()
    assert torch.equal(fresh(tokens()), after)


def test_its_implementation_is_that_of_attention() -> None:
    model = model_of(temporal="conv")
    expected = model(video())
    for name in ("eager", "sdpa", "auto"):
        aim.set_attention(model, name)
        torch.testing.assert_close(model(video()), expected, rtol=1e-10, atol=1e-10)
    asked: list[str] = []
    handle = model.blocks[0].aim.temporal_conv.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["implementation"]), with_kwargs=True
    )
    for name in ("eager", "sdpa", "auto"):
        aim.set_attention(model, name)
        model(video())
    handle.remove()
    assert asked == ["eager", "eager", "auto"]


def test_its_clips_are_dropped_whole() -> None:
    model = model_of(temporal="conv", components=("temporal",), drop_path=0.5)
    block, x = model.blocks[1].train(), tokens(64)
    kept = block(x)
    block.eval()
    whole = block(x)
    with aim.disable_adapters(model):
        plain = block(x)
    changed = (kept - plain).unflatten(0, (64, T)).flatten(1).abs().amax(1) > 1e-12
    assert 16 < changed.sum() < 48
    assert not torch.allclose(whole, plain)
    assert torch.equal(kept.unflatten(0, (64, T))[~changed], plain.unflatten(0, (64, T))[~changed])


def test_it_compiles_into_one_graph_and_is_replayed() -> None:
    model = model_of(components=("temporal", "joint"), temporal="conv", conv_kernel=5).train()
    aim.set_execution(model, memory="low")
    replayed = copy.deepcopy(model)
    replayed.aim.graphs = Graphs(replayed, 8, FakeGraphs())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run, held in ((model, model), (compiled, model), (replayed, replayed)):
        held.zero_grad()
        out = run(video())
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(held))])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-10)
    assert [row.runs for row in replayed.aim.graphs.rows()] == ["graph"]


def test_it_is_exported_and_called_functionally() -> None:
    model = model_of(temporal="conv")
    other = wake(copy.deepcopy(model))
    with torch.no_grad():
        expected = other(video())
        out = torch.func.functional_call(model, dict(other.named_parameters()), (video(),))
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        program = torch.export.export(other, (video(),), strict=False)
        torch.testing.assert_close(program.module()(video()), expected, rtol=1e-10, atol=1e-10)


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
@pytest.mark.parametrize("holder", ["ddp", "fsdp2", "fsdp2 of itself"])
def test_it_trains_when_distributed(holder: str) -> None:
    if holder != "ddp" and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this version of torch cannot run FSDP2 on a CPU")
    plain, model = model_of(temporal="both").train(), model_of(temporal="both").train()
    held: nn.Module = model
    if holder == "ddp":
        held = DistributedDataParallel(model)
    else:
        for block in model.blocks:
            fully_shard(block.aim.temporal_conv if holder == "fsdp2 of itself" else block)
        fully_shard(model)
    for module in (plain, held):
        module(video()).square().sum().backward()
    for one, other in zip(aim.trainable_parameters(plain), aim.trainable_parameters(model), strict=True):
        torch.testing.assert_close(full(other.grad), one.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's own words before our error
def test_a_block_with_nothing_else_is_not_left_without_gradients_in_silence() -> None:
    model = model_of(components=("temporal",), temporal="conv").train()
    forward = model.blocks[0].forward
    model.blocks[0].forward = lambda x: torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=True)
    with pytest.raises(StateError, match=r"gives blocks\.0 no gradients"):
        model(video())
