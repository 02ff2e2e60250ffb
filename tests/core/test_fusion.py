"""Which branches of an adapted block run fused, which as modules and why; and that both do the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import swin_transformer as torchvision_swin
from transformers import ViTConfig, ViTModel

import aim_adapters as aim
from aim_adapters.core import by_modules, fused_branches
from aim_adapters.core.fusion import FusedBranch
from aim_adapters.errors import InputError
from aim_adapters.ops.branches import windows
from tests.backbones.cases import scramble, wake
from tests.core.cases import (
    ALL,
    POSITIONS,
    UNFROZEN,
    T,
    answers,
    assert_as_modules,
    block_of,
    model_of,
    tokens,
    video,
)

# Which branches


@pytest.mark.parametrize("arguments", [{}, {"init_values": 0.1}, {"components": ("temporal",)}], ids=str)
def test_a_plain_block_is_one_chain(arguments: dict[str, Any], chains: list[list[str]]) -> None:
    block = block_of(**arguments)
    assert answers(block) == ["fused"] * 3
    assert_as_modules(block)
    assert chains == [ALL]


def test_without_temporal_adapters_there_is_no_temporal_branch(chains: list[list[str]]) -> None:
    block = block_of(components=("spatial", "joint"))
    assert answers(block) == [None, "fused", "fused"]
    assert_as_modules(block)
    assert chains == [ALL[1:]]
    with by_modules(block.aim.root_state):
        assert answers(block) == [None, "asked for by name", "asked for by name"]


def test_what_is_asked_of_temporal_attention_does_not_matter_where_there_is_none() -> None:
    for components in (("joint",), ("temporal", "joint")):
        block = block_of(components=components, attention="triton")
        if "temporal" in components:
            with pytest.raises(aim.UnsupportedKernelError, match=r"got torch\.float64"):
                answers(block)
        else:
            assert answers(block) == [None, "fused", "fused"]


def test_an_adapter_in_front_of_temporal_attention_is_part_of_the_branch(chains: list[list[str]]) -> None:
    block = block_of(temporal_input_adapter=True)
    assert answers(block) == ["fused"] * 3
    assert_as_modules(block)
    assert chains == [ALL]
    block.aim.temporal_input.up_proj.register_parameter("bias", None)
    assert answers(block)[1:] == ["fused", "fused"]
    assert "a weight is missing" in str(answers(block)[0])


@pytest.mark.parametrize(("attention", "implementation"), [("auto", "eager"), ("eager", "eager"), ("triton", "triton")])
def test_the_temporal_branch_runs_the_attention_that_was_chosen(attention: Any, implementation: str) -> None:
    block = block_of(attention=attention).float()
    temporal, _, _ = fused_branches(block, tokens(dtype=torch.float32))
    assert isinstance(temporal, FusedBranch)
    assert temporal.plan.implementation == implementation  # type: ignore[union-attr]
    with torch.no_grad():
        out = block(tokens(dtype=torch.float32))
        with by_modules(block.aim.root_state):
            torch.testing.assert_close(out, block(tokens(dtype=torch.float32)), rtol=1e-5, atol=1e-5)


def test_sdpa_over_frames_runs_as_modules(chains: list[list[str]]) -> None:
    block = block_of(attention="sdpa")
    assert answers(block) == ["its attention runs as 'sdpa': asked for by name", "fused", "fused"]
    assert_as_modules(block)
    assert chains == [ALL[1:]]


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"qk_norm": True, "scale_attn_norm": True}], ids=len)
def test_norms_inside_of_attention_run_fused(options: dict[str, bool], chains: list[list[str]]) -> None:
    block = model_of(VisionTransformer, **options).blocks[0]
    assert_as_modules(block)
    assert chains == [ALL]


def test_further_arguments_are_for_the_modules_of_spatial_attention(chains: list[list[str]]) -> None:
    block = block_of()
    assert answers(block, positions=POSITIONS) == ["fused", POSITIONS, "fused"]
    with torch.no_grad():
        assert torch.equal(block(tokens(), attn_mask=None, is_causal=None), block(tokens()))
        assert chains == [ALL, ALL]  # None is no argument
        with pytest.raises(aim.UnsupportedModelError, match="mask"):
            block(tokens(), torch.zeros(5, 5))
    assert chains == [ALL, ALL, ["frames"]]


def test_swin_attends_within_windows(chains: list[list[str]]) -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=2, num_classes=5
    )
    model = wake(aim.wrap_image_model(scramble(swin).double(), T)).eval()
    plain, shifted = model.layers[0].blocks
    x = torch.randn(T, 4, 4, 16, dtype=torch.float64)
    assert answers(plain, x) == ["fused"] * 3
    assert answers(shifted, x) == [None, "fused", "fused"]
    for block in (plain, shifted):
        assert_as_modules(block, x)
    assert chains == [["frames", "windows", "mlp"], ["windows", "mlp"]]
    plain.attn.relative_position_bias_table.requires_grad_()
    assert answers(plain, x) == ["fused", UNFROZEN, "fused"]


def test_windows_that_do_not_tile_a_frame_run_as_modules(chains: list[list[str]]) -> None:
    swin = torchvision_swin.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=5)
    model = wake(aim.wrap_image_model(scramble(swin).double(), T)).eval()
    block, x = model.features[1][0], torch.randn(T, 4, 6, 16, dtype=torch.float64)
    assert answers(block, x) == ["fused", "its windows of (4, 4) do not tile 4 x 6 tokens", "fused"]
    assert_as_modules(block, x)
    assert chains == [["frames"], ["mlp"]]


def test_timm_may_shift_windows_as_large_as_the_frame(chains: list[list[str]]) -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=5,
        always_partition=True,
    )  # fmt: skip
    model = wake(aim.wrap_image_model(scramble(swin).double(), T)).eval()
    block, x = model.layers[0].blocks[1], torch.randn(T, 4, 4, 16, dtype=torch.float64)
    assert answers(block, x) == [None, "it shifts windows of (4, 4) within 4 x 4 tokens", "fused"]
    assert_as_modules(block, x)
    assert chains == [["mlp"]]


def test_evaluation_first_and_training_after() -> None:
    """What is made once for all frames, as the places of windows, serves both."""
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=2, num_classes=5
    )
    model = wake(aim.wrap_image_model(scramble(swin), T))
    windows._tile_once.cache_clear()
    with torch.inference_mode():
        model.eval()(video(dtype=torch.float32))
    model.train()(video(dtype=torch.float32)).sum().backward()
    assert all(p.grad is not None for p in aim.trainable_parameters(model))


def test_an_undescribed_family_runs_as_modules() -> None:
    class Undescribed:
        aim_spec = SimpleNamespace(parts=None)

    block = Undescribed()
    block.aim = block_of().aim  # type: ignore[attr-defined]
    assert answers(block) == ["this family's parts are not described"] * 3


def test_disabled_adapters_run_nothing_of_ours(chains: list[list[str]]) -> None:
    model = model_of()
    with aim.disable_adapters(model):
        model(video())
    assert not chains


def test_fused_by_name_is_an_error_where_it_cannot_be() -> None:
    model = model_of()
    aim.set_execution(model, fused=True)
    block = model.blocks[0]
    assert answers(block) == ["fused"] * 3
    message = r"the spatial branch of 'blocks\.0' cannot be: its spatial attention knows .*; use .*'auto', which runs"
    with pytest.raises(aim.UnsupportedKernelError, match=message):
        answers(block, positions=POSITIONS)
    block.mlp.fc1.register_forward_hook(lambda *_: None)
    with pytest.raises(aim.UnsupportedKernelError, match=r"the MLP branch of 'blocks\.0' cannot be: .*hooks"):
        block(tokens())


# What listens, or was replaced


@pytest.mark.parametrize(
    ("path", "as_modules"),
    [
        ("norm1", ("frames", "tokens")),
        ("attn.qkv", ("frames", "tokens")),
        ("attn.proj", ("frames", "tokens")),
        ("ls1", ("frames", "tokens")),
        ("norm2", ("mlp",)),
        ("mlp", ("mlp",)),
        ("mlp.act", ("mlp",)),
        ("aim.temporal", ("frames",)),
        ("aim.temporal.up_proj", ("frames",)),
        ("aim.temporal_input.down_proj", ("frames",)),
        ("aim.spatial.down_proj", ("tokens",)),
        ("aim.joint", ("mlp",)),
    ],
)
def test_hooks_are_called(path: str, as_modules: tuple[str, ...], chains: list[list[str]]) -> None:
    block = block_of(init_values=0.1, temporal_input_adapter=True)
    expected = block(tokens())
    assert chains == [ALL]
    called: list[nn.Module] = []
    handle = block.get_submodule(path).register_forward_hook(lambda module, args, out: called.append(module))
    torch.testing.assert_close(block(tokens()), expected, rtol=1e-10, atol=1e-10)
    shared = path in ("norm1", "attn.qkv", "attn.proj", "ls1")
    assert called == [block.get_submodule(path)] * (2 if shared else 1)
    assert [each for chain in chains[1:] for each in chain] == [each for each in ALL if each not in as_modules]
    handle.remove()
    chains.clear()
    block(tokens())
    assert chains == [ALL]


class LowRank(nn.Linear):
    """A frozen layer with something beside it that trains, as other packages put it there."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, dtype=base.weight.dtype)
        self.weight, self.bias = base.weight, base.bias
        self.beside = nn.Parameter(torch.ones((), dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.beside


@pytest.mark.parametrize(
    ("path", "rest"), [("attn.qkv", [["mlp"]]), ("mlp.fc2", [["frames", "tokens"]]), ("aim.joint.up_proj", [ALL[:2]])]
)
def test_replaced_layers_are_called(path: str, rest: list[list[str]], chains: list[list[str]]) -> None:
    block = block_of()
    before = block(tokens())
    block.set_submodule(path, LowRank(block.get_submodule(path)))
    chains.clear()
    out = block(tokens())
    assert chains == rest
    assert not torch.allclose(out, before)
    out.sum().backward()
    assert block.get_parameter(f"{path}.beside").grad is not None


def test_a_replaced_attention_is_called() -> None:
    class Doubled(Attention):
        def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
            return 2 * super().forward(x, *args, **options)

    block = block_of()
    block.attn.__class__ = Doubled
    reason = "its attention is a Doubled, which this package does not know"
    assert answers(block) == [reason, reason, "fused"]
    assert_as_modules(block)


@pytest.mark.parametrize("layer", ["down_proj", "up_proj"])
def test_adapters_without_a_bias_run_as_modules(layer: str) -> None:
    block = block_of()
    getattr(block.aim.joint, layer).register_parameter("bias", None)
    assert answers(block)[:2] == ["fused", "fused"]
    assert "a weight is missing" in str(answers(block)[2])
    assert_as_modules(block)


def test_layers_without_parameters_run_as_modules() -> None:
    """As those of quantized layers, which hold packed weights."""

    class Packed(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.packed = (layer.weight.detach(), layer.bias.detach())

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, *self.packed)

    block = block_of()
    expected = block(tokens())
    block.attn.qkv, block.attn.proj = Packed(block.attn.qkv), Packed(block.attn.proj)
    assert answers(block) == ["it holds a Packed in place of a linear layer"] * 2 + ["fused"]
    torch.testing.assert_close(block(tokens()), expected, rtol=1e-10, atol=1e-10)


def test_frames_that_make_no_whole_clips_are_refused() -> None:
    x = torch.randn(T + 2, 5, 32, dtype=torch.float64)
    dropping = block_of(components=("joint",)).train()
    dropping.aim.drop_path = 0.5
    for block in (block_of(), dropping):
        with pytest.raises(InputError, match=r"a multiple of num_frames=4, got \(6, 5, 32\)"):
            block(x)
    assert block_of(components=("joint",))(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("attn.qkv.weight", [UNFROZEN, UNFROZEN, "fused"]),
        ("norm1.bias", [UNFROZEN, UNFROZEN, "fused"]),
        ("mlp.fc1.bias", ["fused", "fused", UNFROZEN]),
        ("ls2.gamma", ["fused", "fused", UNFROZEN]),
    ],
)
def test_unfrozen_weights_get_their_gradients(name: str, reasons: list[str], chains: list[list[str]]) -> None:
    block = block_of(init_values=0.1)
    weight = block.get_parameter(name).requires_grad_()
    assert answers(block) == reasons
    block(tokens()).square().sum().backward()
    assert weight.grad is not None and weight.grad.any()
    with torch.no_grad():
        assert answers(block) == ["fused"] * 3
    with torch.inference_mode():
        block(tokens())
    assert chains[-1] == ALL


def test_weights_that_are_handed_in_get_their_gradients() -> None:
    block = block_of()
    weights = {name: p.detach().clone() for name, p in block.named_parameters()}
    weights["mlp.fc1.weight"].requires_grad_()
    out = torch.func.functional_call(block, weights, (tokens(),))
    (gradient,) = torch.autograd.grad(out.square().sum(), weights["mlp.fc1.weight"])
    assert gradient.any()


def test_weights_of_another_kind_run_as_modules() -> None:
    """As those of quantized layers, which are plain linear layers around them."""

    class Quantized(Tensor):
        pass

    block = block_of()
    weight = block.mlp.fc1.weight.detach()
    block.mlp.fc1.weight = nn.Parameter(weight.as_subclass(Quantized), requires_grad=False)
    temporal, spatial, mlp = answers(block)
    assert (temporal, spatial) == ("fused", "fused")
    assert mlp is not None and "a tensor of another kind" in mlp


def test_weights_of_another_kind_are_not_put_together() -> None:
    class Quantized(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert function is not torch.cat
            return super().__torch_function__(function, types, args, kwargs)

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    model = aim.wrap_image_model(ViTModel(config, add_pooling_layer=False), T).eval()
    block = model.layers[0]
    for layer in (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantized), requires_grad=False)
    temporal, spatial, mlp = answers(block, tokens(dtype=torch.float32))
    assert temporal == spatial and "a tensor of another kind" in str(temporal)
    assert mlp == "fused"
