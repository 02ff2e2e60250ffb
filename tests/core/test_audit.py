"""What other tools do to a wrapped model is noticed when it trains and when it is saved; ordinary use is not."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

import aim_adapters as aim
from aim_adapters.core import by_modules
from aim_adapters.errors import StateError
from tests.backbones.cases import loss
from tests.core.cases import LowRank
from tests.tiny import FRAMES, base, run, trained, video, wrapped


class Merging(Block):
    """A block as another tool writes one."""


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        return self.inner(x, **arguments)


def swap_class(model: Any) -> None:
    model.blocks[1].__class__ = Merging


def replace_block(model: Any) -> None:
    model.blocks[1] = base().blocks[1]


def replace_norm(model: Any) -> None:
    model.norm = nn.LayerNorm(32)


def replace_entry(model: Any) -> None:
    model.norm_pre = nn.Identity()


def remove_block(model: Any) -> None:
    model.blocks = model.blocks[1:]


def truncate(model: Any) -> None:
    model.blocks = model.blocks[:1]


def replace_head(model: Any) -> None:
    model.head = nn.Linear(32, 3)


def sgd_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss(model(video())).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (swap_class, "blocks.1"), (replace_block, "blocks.1"), (replace_norm, "norm"), (replace_entry, "norm_pre"),
        (remove_block, "blocks.0"), (truncate, "blocks.1"), (replace_head, "'head'"),
    ],
)  # fmt: skip
def test_swapped_parts_are_refused_in_training_at_grouping_and_at_saving(
    change: Callable[[Any], None], name: str, tmp_path: Path
) -> None:
    model = trained()
    change(model)
    for use in (
        model.train,
        model.eval,
        lambda: aim.adapter_param_groups(model, 0.1),
        lambda: aim.save_adapters(model, tmp_path / "new"),
    ):
        with pytest.raises(StateError, match=rf"^{name} was (swapped or )?replaced after wrapping"):
            use()
    assert not (tmp_path / "new").exists()


def test_what_is_put_around_a_part_is_anybodys(tmp_path: Path) -> None:
    model = trained()
    expected = run(model)
    model.norm_pre = Around(model.norm_pre)
    model.head = Around(model.head)
    assert torch.equal(run(model.train()), expected)
    aim.save_adapters(model, tmp_path)


def test_a_forward_on_the_instance_is_named_once_unless_it_wraps_the_one_before() -> None:
    model = trained()
    block = model.blocks[1]
    block.forward = functools.wraps(block.forward)(functools.partial(lambda forward, x: forward(x), block.forward))
    model.train()
    block.forward = types.MethodType(lambda self, x: x, block)
    with pytest.warns(UserWarning, match=r"^blocks\.1 was given a forward of its own"):
        model.train()
    model.train()


def test_thawed_weights_are_named_once_and_never_saved_around(tmp_path: Path) -> None:
    model = trained()
    weight = model.blocks[0].attn.qkv.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"image model require a gradient: blocks\.0\.attn\.qkv\.weight;"):
        model.train()
    model.train()
    before = weight.detach().clone()
    sgd_step(model)
    assert not torch.equal(weight, before)
    with pytest.raises(StateError, match=r"image model were trained: blocks\.0\.attn\.qkv\.weight;"):
        aim.save_adapters(model, tmp_path)
    weight.requires_grad_(False)
    with pytest.raises(StateError, match=r"image model were trained: blocks\.0\.attn\.qkv\.weight;"):
        aim.save_adapters(model, tmp_path)
    assert not list(tmp_path.iterdir())
    model.load_state_dict(base().state_dict())
    aim.save_adapters(model, tmp_path)


def test_weights_thawed_by_mistake_and_frozen_again_are_no_obstacle(tmp_path: Path) -> None:
    model = trained().requires_grad_(True)
    with pytest.warns(UserWarning, match="of the image model require a gradient"):
        model.train()
    with pytest.raises(StateError, match=r"require a gradient: cls_token, .* and 41 more"):
        aim.save_adapters(model, tmp_path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("aim" in name.split("."))
    sgd_step(model.train())
    aim.save_adapters(model, tmp_path)


def test_what_was_thawed_is_known_after_another_adapter_ran(tmp_path: Path) -> None:
    model = trained()
    aim.add_adapter(model, "two", aim.AIMConfig(num_frames=FRAMES))
    weight = model.patch_embed.proj.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match="patch_embed"):
        model.train()
    sgd_step(model)
    weight.requires_grad_(False)
    aim.set_adapter(model, "two")
    for name in ("default", "two"):
        with pytest.raises(StateError, match=r"image model were trained: patch_embed\.proj\.weight;"):
            aim.save_adapters(model, tmp_path, name=name)


def test_layers_around_the_model_are_named_once_when_it_is_saved(tmp_path: Path) -> None:
    net = nn.Sequential(trained(num_classes=0), nn.Linear(32, 3)).train()
    with pytest.warns(UserWarning, match=r"^parameters beside the wrapped model train.*: 1\.weight, 1\.bias$"):
        aim.save_adapters(net, tmp_path)
    aim.save_adapters(net, tmp_path)


def test_a_tool_that_chooses_what_trains_is_named() -> None:
    model = trained().requires_grad_(False)
    model.blocks[0].attn.qkv = LowRank(model.blocks[0].attn.qkv)  # as peft does
    with pytest.warns(UserWarning, match=r"^all adapters are frozen, and blocks\.0\.attn\.qkv\.lora_a,.* such as peft"):
        model.train()
    with pytest.raises(StateError, match="no parameter of the adapters requires a gradient"):
        aim.adapter_param_groups(model, 0.1)


@pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl")  # of PyTorch 2.6
def test_layers_of_an_adapter_checkpointed_by_class_name_are_refused_if_reentrant() -> None:
    for impl in CheckpointImpl:
        model = trained()
        wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=impl)
        apply_activation_checkpointing(model, wrapper, check_fn=lambda m: type(m) is nn.Linear and m.in_features == 32)
        if impl is CheckpointImpl.REENTRANT:
            with pytest.raises(StateError, match=r"^blocks\.0\.\w+\.down_proj is checkpointed.*use_reentrant=False"):
                model.train()
        else:
            model.train()


def test_adapters_quantized_after_wrapping_are_named() -> None:
    model = trained()
    down = model.blocks[0].aim.joint.down_proj
    down.weight = nn.Parameter(down.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.warns(UserWarning, match=r"quantized and cannot train: blocks\.0\.joint\.down_proj\.weight;"):
        model.train()


def test_ordinary_use_is_silent(tmp_path: Path) -> None:
    """Every warning is an error here."""
    model = trained()
    aim.add_adapter(model, "two", aim.AIMConfig(num_frames=2, num_classes=3))
    aim.set_num_frames(copy.deepcopy(wrapped(components=("spatial",))), 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    nn.ModuleList([model, average, teacher, trained().requires_grad_(False).eval()]).train()
    aim.set_adapter(model, "two")
    aim.adapter_param_groups(model.train(), 0.1)
    aim.set_adapter(model, "default")
    for part in model.aim.parameters():
        part.requires_grad_(False)
    model.aim.head.requires_grad_(True)
    with aim.disable_adapters(model.train()), by_modules(model.aim):
        model.eval()
        model.train()
    sgd_step(model)
    average.update_parameters(model)
    copied = copy.deepcopy(model)
    for each in (model, average, copied, torch.compile(copied, backend="eager")):
        aim.save_adapters(each, tmp_path)
    aim.set_base_dtype(model, torch.bfloat16)
    model.load_state_dict(base().state_dict(), strict=False)
    aim.save_adapters(model.train().eval(), tmp_path)
    aim.unwrap_image_model(model).requires_grad_(True).train()
