"""What a block decided once holds until something that it was decided by changes, and no longer."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrize

import aim_adapters as aim
from aim_adapters.core import decisions
from aim_adapters.core.fusion import fused_branches
from tests.core.cases import LowRank, T, block_of, model_of, tokens, video


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda _, __, out: out * 2)


def set_forward(block: Any) -> None:
    original = block.mlp.forward
    block.mlp.forward = lambda x: original(x) * 2


def other_class(block: Any) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    block.attn.proj.__class__ = Doubled


def double(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach() * 2, requires_grad=parameter.requires_grad)


def swapped(block: Any) -> None:
    torch.utils.swap_tensors(block.attn.qkv.weight, double(block.attn.qkv.weight))


# What a block is made of, changed in every way that others change it.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "a hook on a layer": lambda block: hooked(block.attn.proj),
    "a hook in front of a layer": lambda block: block.mlp.register_forward_pre_hook(lambda _, given: (given[0] * 2,)),
    "a hook on the attention": lambda block: hooked(block.attn),
    "a hook on an adapter": lambda block: hooked(block.aim.joint.down_proj),
    "a forward of its own": set_forward,
    "another class": other_class,
    "a layer around another": lambda block: setattr(block.attn, "qkv", LowRank(block.attn.qkv).double()),
    "another layer": lambda block: setattr(block.mlp, "act", nn.ReLU()),
    "an adapter's layer": lambda block: setattr(block.aim.temporal, "up_proj", nn.Linear(8, 32).double()),
    "another norm": lambda block: setattr(block, "norm1", nn.LayerNorm(32, eps=0.5).double()),
    "a setting": lambda block: setattr(block.attn, "scale", 3.0),
    "a norm's epsilon": lambda block: setattr(block.norm2, "eps", 0.5),
    "another parameter": lambda block: setattr(block.mlp.fc1, "weight", double(block.mlp.fc1.weight)),
    "a removed bias": lambda block: setattr(block.mlp.fc1, "bias", None),
    "an exchanged tensor": swapped,
    "data of its own": lambda block: setattr(block.mlp.fc1.weight, "data", block.mlp.fc1.weight.data * 2),
    "a parametrization": lambda block: parametrize.register_parametrization(block.attn.proj, "weight", Halved()),
    "values": lambda block: block.attn.qkv.weight.data.mul_(2),
    "what trains": lambda block: block.attn.qkv.weight.requires_grad_(),
}

UNSEEN = ("a layer around another", "what trains")  # as it starts at zero; and by the output


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_counts_at_the_next_call(change: str) -> None:
    block, x = block_of(), tokens()
    for _ in range(2):
        before = block(x)
    CHANGES[change](block)
    after = block(x)
    fresh = copy.deepcopy(block) if "forward of its own" not in change else block
    fresh.aim.decisions.clear()
    assert torch.equal(after, fresh(x))
    assert torch.allclose(after, before) == (change in UNSEEN)
    if change == "what trains":
        assert torch.autograd.grad(after.sum(), block.attn.qkv.weight)[0].abs().max() > 0


def test_a_decision_is_made_once_for_a_kind_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = model_of(), []

    def counted(block: Any, x: Tensor, *, positions: bool) -> Any:
        made.append(block)
        return fused_branches(block, x, positions=positions)

    monkeypatch.setattr(decisions, "fused_branches", counted)
    for clips in (1, 2, 1):
        model(video(clips))
    assert len(made) == 2
    with torch.no_grad():
        model(video())
    aim.set_execution(model, memory="low")
    model(video())
    model.train()
    model(video())
    assert len(made) == 2 * 4


def test_each_adapter_has_its_own() -> None:
    model = model_of()
    expected = model(video())
    aim.add_adapter(model, "second", aim.AIMConfig(num_frames=T))
    aim.set_adapter(model, "second")
    assert not torch.equal(model(video()), expected)
    aim.set_adapter(model, "default")
    assert torch.equal(model(video()), expected)


def test_it_is_neither_copied_nor_pickled_nor_a_cycle() -> None:
    model = model_of()
    expected = model(video())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(not block.aim.decisions for block in other.blocks)
        assert torch.equal(other(video()), expected)
    gone = weakref.ref(model.blocks[0])
    gc.disable()
    try:
        del model, other
        assert gone() is None
    finally:
        gc.enable()


def test_what_is_derived_has_the_values_of_now() -> None:
    """As the bias of Swin's windows, which is gathered from a table at every call."""
    swin = SwinTransformer(img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=2)
    block = aim.wrap_image_model(swin.double(), T, num_classes=3).eval().layers[0].blocks[0]
    x = torch.randn(T, 4, 4, 16, dtype=torch.float64)
    before = block(x)
    for table in (block.aim.temporal.up_proj.weight, block.aim.temporal_bias, block.attn.relative_position_bias_table):
        table.data.normal_()
        after = block(x)
        block.aim.decisions.clear()
        assert torch.equal(after, block(x))
        assert not torch.equal(after, before)
        before = after


def test_frozen_weights_written_to_before_the_backward_pass_are_refused() -> None:
    block = block_of()
    out = block(tokens().requires_grad_())
    with torch.no_grad():
        block.mlp.fc2.weight.mul_(2)
    with pytest.raises(aim.StateError, match="frozen weight was written to"):
        out.sum().backward()
