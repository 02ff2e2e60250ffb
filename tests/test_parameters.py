"""Counts equal the paper's tables, and groups hold what should decay."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.parameters import canonical_path
from tests import tiny

LADDER = [
    ((), False, "0.1", "86"),
    (("spatial",), False, "3.7", "89"),
    (("temporal", "spatial"), True, "10.8", "97"),
    (("temporal", "spatial", "joint"), True, "14.3", "100"),
]


def wrapped(name: str, num_frames: int = 8, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return aim.wrap_image_model(timm.create_model(name), num_frames, **kwargs)


def assert_printed(count: int, printed: str) -> None:
    """Hold a count to the paper's figure in millions, which is rounded in some rows and cut off in others."""
    assert abs(count / 1e6 - float(printed)) < 10 ** -len(printed.partition(".")[2])


def test_vit_b_clip_has_exactly_the_papers_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model = wrapped("vit_base_patch16_clip_quickgelu_224.openai", num_classes=400)
    assert aim.count_parameters(model) == (10_966_672, 96_764_560)
    aim.print_trainable_parameters(model)
    expected = "trainable params: 10,966,672 || all params: 96,764,560 || trainable%: 11.3334\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("components", "input_adapter", "trainable", "total"), LADDER)
def test_table_1(components: tuple[str, ...], input_adapter: bool, trainable: str, total: str) -> None:
    model = wrapped(
        "vit_base_patch16_224", num_classes=174, components=components, temporal_input_adapter=input_adapter
    )
    count = aim.count_parameters(model)
    assert_printed(count.trainable, trainable)
    assert_printed(count.total, total)


@pytest.mark.parametrize(
    ("classes", "input_adapter", "trainable", "total"), [(400, False, "38", "341"), (174, True, "50", "354")]
)
def test_vit_l(classes: int, input_adapter: bool, trainable: str, total: str) -> None:
    model = wrapped(
        "vit_large_patch14_clip_quickgelu_224.openai", num_classes=classes, temporal_input_adapter=input_adapter
    )
    count = aim.count_parameters(model)
    assert_printed(count.trainable, trainable)
    assert_printed(count.total, total)


@pytest.mark.parametrize("layers", ["bottom_half", "top_half", "alternate"])
def test_table_7(layers: str) -> None:
    model = wrapped("vit_base_patch16_clip_quickgelu_224.openai", num_classes=400, layers=layers)
    assert aim.count_parameters(model).trainable == 5_640_976
    assert_printed(5_640_976, "5.6")


@pytest.mark.parametrize(
    ("ratio", "exact", "printed"),
    [(0.0625, 2_998_864, "3"), (0.125, 5_654_800, "5.6"), (0.25, 10_966_672, "11"), (0.5, 21_590_416, "21")],
)
def test_table_8(ratio: float, exact: int, printed: str) -> None:
    model = wrapped("vit_base_patch16_clip_quickgelu_224.openai", num_classes=400, bottleneck=ratio)
    assert aim.count_parameters(model).trainable == exact
    assert_printed(exact, printed)


def test_what_copies_replace_is_not_counted() -> None:
    model = timm.create_model("test_vit")
    plain = sum(p.numel() for p in model.parameters())
    ours = sum(p.numel() for p in aim.trainable_parameters(aim.wrap_image_model(model, 4)))
    replaced = sum(p.numel() for m in (model.norm, model.head) for n, p in m.named_parameters() if "aim" not in n)
    assert aim.count_parameters(model) == (ours, plain + ours - replaced)
    assert aim.count_parameters(torch.compile(model, backend="eager")) == (ours, plain + ours - replaced)
    assert aim.count_parameters(nn.ModuleDict({"module": model})) == (ours, plain + ours - replaced)


def test_groups_decay_weights_only() -> None:
    model = aim.wrap_image_model(timm.create_model("test_vit"), 4, num_classes=3)
    decayed, plain = aim.adapter_param_groups(model, weight_decay=0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert all(p.ndim == 2 for p in decayed["params"])
    rest = {names[id(p)] for p in plain["params"]}
    assert "aim.temporal_embedding" in rest
    assert {name for name in rest if name.endswith("weight")} == {"norm.aim.norm.weight"}
    grouped = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_parameters_frozen_by_hand_are_in_no_group() -> None:
    model = aim.wrap_image_model(timm.create_model("test_vit"), 4, num_classes=3)
    model.get_parameter("aim.head.weight").requires_grad_(False)
    with pytest.warns(UserWarning, match=r"adapters are frozen, and in no group: head\.weight$"):
        groups = aim.adapter_param_groups(model, weight_decay=0.05)
    assert len(aim.adapter_param_groups(model, weight_decay=0.05)) == len(groups)  # says it once
    grouped = {id(p) for group in groups for p in group["params"]}
    assert id(model.get_parameter("aim.head.weight")) not in grouped
    assert len(aim.trainable_parameters(model)) == len(grouped)


def test_no_empty_groups() -> None:
    model = aim.wrap_image_model(timm.create_model("test_vit"), 4, components=(), train_norm=False, num_classes=3)
    model.get_parameter("aim.head.bias").requires_grad_(False)
    with pytest.warns(UserWarning, match=r"in no group: head\.bias$"):
        aim.adapter_param_groups(model, weight_decay=0.1)
    assert [len(group["params"]) for group in aim.adapter_param_groups(model, weight_decay=0.1)] == [1]


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "0.05", None, True])
def test_wrong_weight_decay(decay: Any) -> None:
    model = aim.wrap_image_model(timm.create_model("test_vit"), 4)
    with pytest.raises(ConfigError, match="weight_decay"):
        aim.adapter_param_groups(model, decay)


def test_canonical_path() -> None:
    name = "module._orig_mod.blocks.3._checkpoint_wrapped_module.aim.temporal.up_proj.weight"
    assert canonical_path(name) == "blocks.3.aim.temporal.up_proj.weight"


def test_several_models_train_together() -> None:
    pair = nn.ModuleList([wrapped("vit_tiny_patch16_224"), wrapped("vit_tiny_patch16_224")])
    alone = len(aim.trainable_parameters(pair[0]))
    assert len(aim.trainable_parameters(pair)) == 2 * alone
    assert sum(len(group["params"]) for group in aim.adapter_param_groups(pair, weight_decay=0.1)) == 2 * alone
    assert aim.count_parameters(pair).trainable == 2 * aim.count_parameters(pair[0]).trainable


class Net(nn.Module):
    """A layer of the caller's own behind a wrapped model."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.vit = tiny.wrapped(num_classes=0, **arguments)
        self.fc = nn.Linear(32, 3)

    def forward(self, video: Tensor) -> Tensor:
        return self.fc(self.vit(video))


def ids(groups: list[dict[str, Any]]) -> list[int]:
    return sorted(id(p) for group in groups for p in group["params"])


def test_layers_of_the_callers_own_are_grouped_on_request_and_named_otherwise() -> None:
    net = Net()
    with pytest.warns(UserWarning, match=r"gradient: fc\.weight, fc\.bias; they .*others=True"):
        groups = aim.adapter_param_groups(net, 0.1)
    assert ids(groups) == sorted(map(id, aim.trainable_parameters(net)))
    for held in (net, torch.compile(net, backend="eager")):
        decayed, plain = aim.adapter_param_groups(held, 0.1, others=True)
        assert ids([decayed, plain]) == sorted(id(p) for p in net.parameters() if p.requires_grad)
        assert any(p is net.fc.weight for p in decayed["params"])
        assert any(p is net.fc.bias for p in plain["params"])
    net.fc.requires_grad_(False)
    assert ids(aim.adapter_param_groups(net, 0.1)) == ids(aim.adapter_param_groups(net, 0.1, others=True))


def test_no_layer_hides_behind_the_name_that_a_wrapper_gives() -> None:
    net = nn.ModuleDict({"module": nn.Linear(2, 2), "video": tiny.wrapped()})
    net.register_parameter("weight", nn.Parameter(torch.zeros(2, 2)))  # "module.weight" without what DDP adds
    found = ids(aim.adapter_param_groups(net, 0.1, others=True))
    assert found == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_counts_are_those_of_torch_where_others_train(capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    trains, inner = sum(p.numel() for p in net.parameters() if p.requires_grad), aim.count_parameters(net.vit)
    assert aim.count_parameters(net) == (trains, inner.total + 32 * 3 + 3)
    net.vit.requires_grad_(True)  # also the norm and head that copies replace
    everything = sum(p.numel() for p in net.parameters())
    assert aim.count_parameters(net) == (everything, everything)
    aim.print_trainable_parameters(net)
    assert capsys.readouterr().out.endswith("trainable%: 100.0000\n")


@pytest.mark.parametrize("others", [False, True])
def test_groups_are_never_empty(others: bool) -> None:
    model = tiny.wrapped().requires_grad_(False)
    with pytest.raises(StateError, match=r"no parameter of the adapters.*under the name 'aim'"):
        aim.adapter_param_groups(model, 0.1, others=others)
    bare = tiny.wrapped(components=(), train_norm=False, num_classes=0)
    with pytest.raises(StateError, match="no parameter of the adapters"):
        aim.adapter_param_groups(bare, 0.1, others=others)


def test_a_frozen_video_model_under_a_layer_that_trains() -> None:
    net = Net()
    net.vit.requires_grad_(False)
    with pytest.raises(StateError, match="no parameter of the adapters"):
        aim.adapter_param_groups(net, 0.1)
    assert ids(aim.adapter_param_groups(net, 0.1, others=True)) == sorted(map(id, net.fc.parameters()))


def test_a_frozen_teacher_beside_a_student_needs_no_words() -> None:
    pair = nn.ModuleDict({"student": tiny.wrapped(), "teacher": tiny.wrapped().requires_grad_(False)}).train()
    assert ids(aim.adapter_param_groups(pair, 0.1)) == sorted(map(id, aim.trainable_parameters(pair["student"])))


def test_thawed_weights_of_the_image_model_are_grouped_on_request_and_named_otherwise() -> None:
    model = tiny.wrapped()
    model.blocks[1].mlp.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"gradient: blocks\.1\.mlp\.fc1\.weight, .* and 1 more; they"):
        aim.adapter_param_groups(model, 0.1)
    found = ids(aim.adapter_param_groups(model, 0.1, others=True))
    assert found == sorted(id(p) for p in model.parameters() if p.requires_grad)
