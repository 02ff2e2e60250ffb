"""An adapter goes in whole or not at all, and comes out whole."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import aim_adapters as aim
from aim_adapters.errors import StateError
from tests.backbones.cases import snapshot
from tests.several import NAMES, alone, out, several
from tests.tiny import run


@pytest.mark.parametrize("call", ["add_module", "train"])  # while its parts go in; when all are in
def test_failing_install_puts_the_old_one_back(call: str) -> None:
    model = several()
    before, block = snapshot(model), model.blocks[1]  # which both adapters change

    def fail_once(*args: Any) -> None:
        delattr(block, call)
        raise MemoryError("once")

    setattr(block, call, fail_once)
    with pytest.raises(MemoryError):
        aim.set_adapter(model, "other")
    after = snapshot(model)
    assert all(before[what] == after[what] for what in before if what != "state")
    with warnings.catch_warnings():
        aim.set_adapter(model, "other")
    assert torch.equal(out(model, "other"), out(alone("other"), "other"))


def test_names_that_the_caller_gave_to_classes_rest_with_the_adapter() -> None:
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_labels=4,
    )  # fmt: skip
    model = aim.wrap_image_model(transformers.ViTForImageClassification(config), num_frames=2, num_classes=3)
    names = {0: "zoom in", 1: "zoom out", 2: "still"}
    model.config.id2label, model.config.label2id = names, {name: index for index, name in names.items()}
    aim.add_adapter(model, "other", aim.AIMConfig(num_frames=2, num_classes=2))
    assert model.config.id2label == names
    aim.set_adapter(model, "other")
    assert (model.config.id2label, model.num_labels) == ({0: "LABEL_0", 1: "LABEL_1"}, 2)
    model = copy.deepcopy(model)
    aim.set_adapter(model, "default")
    assert (model.config.id2label, model.num_labels) == (names, 3)
    assert aim.unwrap_image_model(model).num_labels == 4


def test_adapter_inside_which_another_tool_has_wrapped_something_stays() -> None:
    model = several()
    apply_activation_checkpointing(model, check_fn=lambda module: module is model.blocks[1].aim)
    before = run(model)
    with pytest.raises(StateError, match=r"'blocks\.1\.aim' is a CheckpointWrapper, so the adapter cannot be"):
        aim.set_adapter(model, "same")
    assert list(aim.list_adapters(model)) == list(NAMES)
    assert torch.equal(run(model), before)
