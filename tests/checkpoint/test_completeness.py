"""What would not load again is refused when it is saved, with the cure, and replaces nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from tests.backbones.cases import process_group, scramble, wake
from tests.checkpoint.cases import names
from tests.tiny import FRAMES, base, trained, video

__all__ = ["process_group"]

Change = Callable[[Any], Any]


class Lora(nn.Module):
    """A linear layer with a low-rank one beside it, as peft keeps them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.Linear(32, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def put(path: str, layer: Callable[[Any], nn.Module]) -> Change:
    """Return a change that replaces a module by what a function makes of it."""

    def change(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, layer(model.get_submodule(path)))

    return change


def at(path: str, change: Change) -> Change:
    return lambda model: change(model.get_submodule(path))


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def quantized(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def merge_lora(layer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 32), (96, 2)))
    layer.weight.data += 0.05 * b @ a


def thaw_and_train(model: Any) -> None:
    model.blocks[2].norm2.requires_grad_(True)
    optimizer = torch.optim.SGD(model.blocks[2].norm2.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(video()).square().sum().backward()
        optimizer.step()
    model.blocks[2].norm2.requires_grad_(False)


DOWN = "blocks.0.aim.spatial.down_proj"
ADAPTERS: dict[str, tuple[Change, str]] = {
    "head of another size": (put("aim.head", lambda _: nn.Linear(32, 9)), r"head\.weight \(\[9, 32\].*num_classes=K"),
    "head without bias": (put("aim.head", lambda _: nn.Linear(32, 5, False)), r"missing: head\.bias.*num_classes=K"),
    "head of two layers": (
        put("aim.head", lambda layer: nn.Sequential(nn.Linear(32, 32), layer)), r"missing: head\.weight.*num_classes=K",
    ),
    "weight norm": (at(DOWN, parametrizations.weight_norm), f"The layer '{DOWN.replace('aim.', '')}' is parametrized"),
    "old weight norm": (at(DOWN, old_weight_norm), "is weight-normalized: call .*remove_weight_norm"),
    "pruning": (at(DOWN, lambda layer: prune.random_unstructured(layer, "weight", 0.5)), r"is pruned: .*prune\.remove"),
    "LoRA in an adapter": (put(DOWN, Lora), "has LoRA: merge it"),
    "no adapter": (lambda model: setattr(model.blocks[0].aim, "spatial", None), r"4 missing: blocks\.0\.spatial"),
    "another width": (
        put("blocks.0.aim.joint", lambda layer: type(layer)(32, 4, skip=False)), r"of another shape: blocks\.0\.joint",
    ),
    "another number of frames": (
        lambda model: setattr(model.aim, "temporal_embedding", nn.Parameter(torch.ones(1, 8, 32))), "set_num_frames",
    ),
    "quantized": (quantized, r"expected a dense floating-point tensor, .* is quantized: save before"),
    "sparse": (
        at(DOWN, lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach().to_sparse()))),
        r"is a tensor of layout torch\.sparse_coo",
    ),
    "integers": (
        at(DOWN, lambda layer: setattr(layer, "bias", nn.Parameter(torch.ones(8).int(), False))), r"torch\.int32",
    ),
}  # fmt: skip
BASES: dict[str, tuple[Change, str]] = {
    "LoRA": (put("blocks.0.attn.qkv", Lora), r"changed or gone: blocks\.0\.attn\.qkv\.weight.*Take LoRA .* out of it"),
    "LoRA beside": (
        at("blocks.0.attn", lambda attn: attn.add_module("lora_A", nn.Linear(32, 2))), "sizes of its attention or MLP",
    ),
    "LoRA merged": (at("blocks.0.attn.qkv", merge_lora), r"1 changed or gone: blocks\.0\.attn\.qkv\.weight"),
    "trained": (thaw_and_train, r"changed or gone: blocks\.2\.norm2\.weight"),
    "initialized again": (at("blocks.1.mlp.fc1", lambda layer: layer.reset_parameters()), r"blocks\.1\.mlp\.fc1"),
    "block": (put("blocks.2.mlp", lambda _: nn.Sequential(nn.Linear(32, 32))), r"gone: blocks\.2\.mlp"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda conv: parametrizations.weight_norm(conv, "conv_weight"),
            r"remove_parametrizations\(layer, 'conv_weight'",
        ),
        (lambda conv: prune.random_unstructured(conv, "conv_weight", 0.5), r"prune\.remove\(layer, 'conv_weight'\)"),
        (lambda conv: setattr(conv, "up_proj", nn.Identity()), r"2 missing: blocks\.0\.temporal_conv\.up_proj\.weight"),
    ],
    ids=["weight norm", "pruning", "replaced"],
)
def test_a_changed_convolution_is_refused_with_the_cure(change: Change, match: str, tmp_path: Path) -> None:
    model = trained(temporal="conv")
    change(model.blocks[0].aim.temporal_conv)
    with pytest.raises(CheckpointError, match=match):
        aim.save_adapters(model, tmp_path)


@pytest.mark.parametrize("case", [*ADAPTERS, *(f"base: {name}" for name in BASES)])
def test_what_would_not_load_is_refused_with_the_cure(case: str, saved: Path) -> None:
    model = trained()
    change, match = BASES[case.removeprefix("base: ")] if case.startswith("base: ") else ADAPTERS[case]
    change(model)
    model.blocks.requires_grad_(False)  # what a new layer may want to train is refused for that already
    before = {name: (saved / name).read_bytes() for name in names(saved)}
    with pytest.raises(CheckpointError, match=match) as caught:
        aim.save_adapters(model, saved)
    assert {name: (saved / name).read_bytes() for name in names(saved)} == before
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_run_that_diverged_replaces_nothing_without_consent(value: float, saved: Path) -> None:
    model = trained()
    before = {name: (saved / name).read_bytes() for name in names(saved)}
    with torch.no_grad():
        model.blocks[1].aim.joint.up_proj.bias[3] = value
    with pytest.raises(CheckpointError, match=r"'blocks\.1\.joint\.up_proj\.bias' holds NaN or infinities"):
        aim.save_adapters(model, saved)
    assert {name: (saved / name).read_bytes() for name in names(saved)} == before
    aim.save_adapters(model, saved, allow_nonfinite=True)
    aim.load_adapters(base(), saved, allow_nonfinite=True)


def test_large_finite_values_are_saved(tmp_path: Path) -> None:
    model = trained()
    with torch.no_grad():
        model.aim.head.weight.fill_(3e38)  # whose sum is infinite
    aim.save_adapters(model, tmp_path)
    assert not any(aim.load_adapters(base(), tmp_path))


def tied(model: Any) -> None:
    model.blocks[1].aim.temporal = model.blocks[0].aim.temporal


def transposed(model: Any) -> None:
    model.aim.head.weight = nn.Parameter(model.aim.head.weight.detach().T.contiguous().T)


def loaded_after_wrapping(model: Any) -> None:
    model.load_state_dict(base().state_dict())


@pytest.mark.parametrize(
    "change",
    [
        tied,
        transposed,
        loaded_after_wrapping,
        lambda model: aim.set_base_dtype(model, torch.float16),
        lambda model: model.requires_grad_(False),
        lambda model: put(DOWN, copy.deepcopy)(model),
        lambda model: aim.set_num_frames(model, FRAMES),
    ],
)
def test_what_loads_is_saved(change: Change, tmp_path: Path) -> None:
    model = trained()
    change(model)
    aim.save_adapters(model, tmp_path)
    fresh = base()
    assert not any(aim.load_adapters(fresh, tmp_path))
    for key, tensor in aim.adapter_state_dict(model).items():
        assert torch.equal(aim.adapter_state_dict(fresh)[key], tensor)


def test_base_that_is_another_on_purpose_is_taken_for_the_base_once_it_is_loaded(tmp_path: Path) -> None:
    model, other = trained(), scramble(base())
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            model.state_dict()[name].copy_(tensor)
    with pytest.raises(CheckpointError, match=r"model\.load_state_dict\(model\.state_dict\(\)\) makes that its base"):
        aim.save_adapters(model, tmp_path)
    model.load_state_dict(model.state_dict())
    aim.save_adapters(model, tmp_path)
    assert not any(aim.load_adapters(other, tmp_path))


def test_adapter_that_rests_is_looked_at_as_well(tmp_path: Path) -> None:
    model = trained()
    aim.add_adapter(model, "second", aim.AIMConfig(num_frames=2, num_classes=7, bottleneck=0.5))
    aim.save_adapters(wake(model), tmp_path / "good", name="second")
    parametrizations.weight_norm(model.aim.idle.second.containers[1].temporal.up_proj)
    with pytest.raises(CheckpointError, match=r"'second' .*'blocks\.0\.temporal\.up_proj' is parametrized"):
        aim.save_adapters(model, tmp_path, name="second")
    aim.save_adapters(model, tmp_path)


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    model = trained(num_classes=3)
    before = torch.get_rng_state()
    aim.save_adapters(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch cannot run FSDP2 on a CPU")
@pytest.mark.usefixtures("process_group")
def test_sharded_model_is_looked_at_as_well(tmp_path: Path) -> None:
    model = trained()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for module in (*model.blocks, model.norm, model.head, model):
        fully_shard(module, mesh=mesh)
    aim.save_adapters(model, tmp_path)
    assert not any(aim.load_adapters(base(), tmp_path))
    with torch.no_grad():
        model.blocks[1].norm2.bias.add_(1)
    with pytest.raises(CheckpointError, match=r"1 changed or gone: blocks\.1\.norm2\.bias"):
        aim.save_adapters(model, tmp_path)
    model.blocks[2].aim.joint = None
    with pytest.raises(CheckpointError, match=r"4 missing: blocks\.2\.joint"):
        aim.save_adapters(model, tmp_path)


@pytest.mark.parametrize("quantize", ["weights replaced", "layers replaced"])
def test_base_may_be_quantized_after_wrapping(quantize: str, tmp_path: Path) -> None:
    """As torchao does it, with a tensor of its own kind in the place of a weight, or bitsandbytes, with packed ones."""
    model = trained()
    for block in model.blocks:
        if quantize == "weights replaced":
            block.attn.qkv.weight = nn.Parameter(Quantized(block.attn.qkv.weight.detach()), requires_grad=False)
        else:
            block.attn.qkv = Packed(block.attn.qkv)
    aim.save_adapters(model, tmp_path)
    assert not any(aim.load_adapters(base(), tmp_path))


class Quantized(Tensor):
    """A tensor of another kind."""


class Packed(nn.Linear):
    """A layer with two weights in a byte."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight = nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.bias = layer.bias
