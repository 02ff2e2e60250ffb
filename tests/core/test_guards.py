"""Models in a state that a call cannot work on are refused before anything is changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint_sequential

import aim_adapters as aim
from aim_adapters.core.guards import require_bare, require_local, require_memory
from aim_adapters.errors import ConfigError, StateError
from tests.backbones.cases import assert_same, loss, process_group, snapshot
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video, wrapped

__all__ = ["process_group"]


def test_an_attribute_of_our_name_is_refused() -> None:
    model = base()
    model.blocks[0].aim = nn.Identity()
    with pytest.raises(aim.UnsupportedModelError, match=r"'blocks\.0'"):
        aim.wrap_image_model(model, T)


def test_a_forward_of_its_own_is_refused() -> None:
    model = base()
    block = model.blocks[1]
    block.forward = block.forward
    with pytest.raises(StateError, match=r"blocks\.1 is given a forward of its own"):
        aim.wrap_image_model(model, T)
    del block.forward
    aim.wrap_image_model(model, T)
    block.forward = functools.partial(type(block).forward, block)
    with pytest.raises(StateError, match="forward of its own"):
        aim.unwrap_image_model(model)


def test_wrapping_in_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(StateError, match="inference_mode"):
        wrapped()


def test_models_without_memory_are_refused() -> None:
    weight = torch.zeros(2)
    require_memory([weight])
    with pytest.raises(StateError, match="on the meta device, without weights; build it on a real device first"):
        require_memory([weight, torch.empty(2, device="meta")])


def test_what_other_tools_hold_is_named_with_its_place(process_group: None) -> None:
    model = nn.Sequential(wrapped(), nn.Linear(2, 2))
    require_bare(model, "this_call", "do that")
    require_local(model, "this_call", "do that")
    compiled = nn.Sequential(torch.compile(model[0], backend="eager"), nn.Linear(2, 2))
    require_local(compiled, "this_call", "do that")  # which may be compiled
    with pytest.raises(StateError, match=r"^this_call: 0 is a OptimizedModule; do that$"):
        require_bare(compiled, "this_call", "do that")
    model[1].compile(backend="eager")
    require_local(model, "this_call", "do that")
    with pytest.raises(StateError, match=r"^this_call: 1 is compiled in place; do that$"):
        require_bare(model, "this_call", "do that")
    for require in (require_bare, require_local):
        with pytest.raises(StateError, match=r"^this_call: the model is a DistributedDataParallel; do that$"):
            require(DistributedDataParallel(wrapped()), "this_call", "do that")
        with pytest.raises(StateError, match=r"^this_call: 0 is a FSDPModule; do that$"):
            require(nn.Sequential(fully_shard(wrapped())), "this_call", "do that")


class InTwoSegments(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint_sequential(list(self), 2, x, use_reentrant=True)


def by_timm(model: Any) -> None:
    model.set_grad_checkpointing(True)


def by_class_name(model: Any) -> None:
    wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT)
    apply_activation_checkpointing(model, wrapper, check_fn=lambda m: type(m).__name__ == "Block")


def in_segments(model: Any) -> None:
    model.blocks.__class__ = InTwoSegments


@pytest.fixture
def reentrant() -> Iterator[None]:
    timm.layers.set_reentrant_ckpt(True)
    yield
    timm.layers.set_reentrant_ckpt(False)


def gradients(model: nn.Module, clips: Tensor | None = None) -> list[Tensor | None]:
    loss(model.train()(video() if clips is None else clips)).backward()
    return [parameter.grad for parameter in aim.trainable_parameters(model)]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's own words before our error
@pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl")  # of PyTorch 2.6
@pytest.mark.usefixtures("reentrant")
@pytest.mark.parametrize("how", [by_timm, by_class_name, in_segments])
@pytest.mark.parametrize("components", [("temporal", "spatial", "joint"), ("spatial", "joint"), ()])
@pytest.mark.parametrize("layers", ["all", "top_half", [0], [1]])
def test_reentrant_checkpointing_gives_the_plain_gradients_or_an_error(
    how: Callable[[Any], None], components: tuple[str, ...], layers: Any
) -> None:
    plain = gradients(trained(components=components, layers=layers))
    model = trained(components=components, layers=layers)
    how(model)
    first = 0 if layers in ("all", [0]) else 1
    # Below the first adapted block nothing is recorded. The last segment, blocks 1 and 2, is never checkpointed.
    if components and (first or "temporal" not in components) and not (first and how is in_segments):
        with pytest.raises(StateError, match=r"gives blocks\.\d no gradients.*use_reentrant=False"):
            gradients(model)
        with torch.no_grad():
            assert torch.equal(model(video()), trained(components=components, layers=layers)(video()))
    torch.testing.assert_close(gradients(model, video().requires_grad_()), plain)


@pytest.mark.usefixtures("reentrant")
def test_frozen_adapters_need_no_gradients_of_reentrant_checkpointing() -> None:
    model = trained(components=("spatial", "joint"))
    model.blocks.requires_grad_(False)
    by_timm(model)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        found = gradients(model)
    assert all(grad is not None for grad in found)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.usefixtures("reentrant")
@pytest.mark.parametrize("each", [True, False])
def test_reentrant_checkpointing_of_compiled_blocks_is_noticed_or_exact(each: bool) -> None:
    plain, model = gradients(trained(layers="top_half")), trained(layers="top_half")
    by_timm(model)
    for module in model.blocks if each else [model]:
        module.compile(backend="eager")
    if each:
        with pytest.raises(StateError, match=r"gives blocks\.\d no gradients"):
            gradients(model)
    else:  # in a graph of the whole model the compiler makes no difference between the two ways
        torch.testing.assert_close(gradients(model), plain)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl")  # of PyTorch 2.6
def test_a_trained_norm_that_alone_is_checkpointed_is_noticed() -> None:
    model = trained(components=())
    model.norm = checkpoint_wrapper(model.norm, CheckpointImpl.REENTRANT)
    with pytest.raises(StateError, match="the copy of the final norm"):
        gradients(model)


def test_taps_that_never_meet_a_frame_are_noticed() -> None:
    model = wrapped(temporal="conv", conv_kernel=2 * T - 1)
    message = (
        rf"conv_kernel={2 * T + 1}: the frames of a clip \({T}\) .* {2 * T - 1} taps can meet one; the other 2 never"
    )
    with pytest.warns(UserWarning, match=message):
        wrapped(temporal="conv", conv_kernel=2 * T + 1)
    with pytest.warns(UserWarning, match=message):
        aim.add_adapter(model, "wide", aim.AIMConfig(T, temporal="both", conv_kernel=2 * T + 1))
    aim.set_num_frames(model, 1)  # whoever makes clips shorter knows


def test_settings_are_named_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*size: int, **place: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 274877906816 bytes")

    model = base()
    before = snapshot(model)
    monkeypatch.setattr("aim_adapters.core.build.new_temporal_embedding", refuse)
    with pytest.raises(ConfigError, match="no memory for an adapter of num_frames=2147483647"):
        aim.wrap_image_model(model, num_frames=2**31 - 1)
    assert_same(before, snapshot(model))
