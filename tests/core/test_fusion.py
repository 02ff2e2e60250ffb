"""Which branches of an adapted block run fused, which as modules and why; and that both do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import swin_transformer as torchvision_swin
from transformers import ViTConfig, ViTModel

import aim_adapters as aim
from aim_adapters.core import block as block_module
from aim_adapters.core import fusion as fused
from aim_adapters.errors import InputError
from aim_adapters.core.fusion import Branch, compute_dtype, fused_branches, token_dtype
from aim_adapters.ops.branches import AttentionPlan, ChainPlan, windows
from aim_adapters.core.patching import patch
from aim_adapters.core.root import PatchProduct
from tests.backbones.contract import scramble, wake

T = 4
SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
ALL = ["frames", "tokens", "mlp"]
UNFROZEN = "a weight of the image model requires a gradient"
POSITIONS = "its spatial attention knows positions or masks"


def model_of(cls: type[nn.Module] = VisionTransformer, **arguments: Any) -> Any:
    """Return a wrapped model with random weights everywhere, float64."""
    sizes = {key: arguments.pop(key) for key in ("init_values", "use_rot_pos_emb") if key in arguments}
    torch.manual_seed(0)
    model = scramble(cls(**SIZE, **sizes)).double()
    return wake(aim.wrap_image_model(model, T, **arguments)).eval()


def block_of(**arguments: Any) -> Any:
    """Return the first block of such a model."""
    return model_of(**arguments).blocks[0]


def tokens(clips: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(clips * T, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def video(clips: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, T, 3, 16, 16, dtype=torch.float64, generator=generator).to(dtype)


def answers(block: Any, x: Tensor | None = None, *, positions: bool = False) -> list[str | None]:
    """Return for each branch ``"fused"``, why not, or None."""
    found = fused_branches(block, tokens() if x is None else x, positions=positions)
    return ["fused" if isinstance(each, Branch) else each for each in found]


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the chains of branches that run fused from here on."""
    seen: list[list[str]] = []

    def noted(x: Tensor, tensors: list[Tensor | None], plan: ChainPlan) -> Tensor:
        seen.append([each.over if isinstance(each, AttentionPlan) else "mlp" for each in plan.branches])
        return run(x, tensors, plan)

    run = block_module.run_branches
    monkeypatch.setattr(block_module, "run_branches", noted)
    return seen


def gradients(block: Any, x: Tensor) -> list[Tensor]:
    """Return the output of a block, and the gradients of its input and of what trains."""
    leaf = x.detach().clone().requires_grad_()
    out = block(leaf)
    trained = [p for p in block.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, [leaf, *trained], weights)]


def assert_as_modules(block: Any, x: Tensor | None = None) -> None:
    """Hold a block's output and gradients to those that its modules give."""
    shared, x = block.aim.root_state, tokens() if x is None else x
    before, ours = shared.branches, gradients(block, x)
    shared.branches = "modules"
    for one, other in zip(ours, gradients(block, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    shared.branches = before


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
    block.aim.root_state.branches = "modules"
    assert answers(block) == [None, "asked for by name", "asked for by name"]


def test_what_is_asked_of_temporal_attention_does_not_matter_where_there_is_none() -> None:
    for components in (("joint",), ("temporal", "joint")):
        block = block_of(components=components, attention="triton")
        if "temporal" in components:
            with pytest.raises(aim.UnsupportedKernelError, match=r"got torch\.float64"):
                answers(block)
        else:
            assert answers(block) == [None, "fused", "fused"]


def test_an_adapter_in_front_of_the_attention_makes_the_temporal_branch_run_as_modules(chains: list[list[str]]) -> None:
    block = block_of(temporal_input_adapter=True)
    assert answers(block) == ["it has an adapter in front of its attention", "fused", "fused"]
    assert_as_modules(block)
    assert chains == [ALL[1:]]


@pytest.mark.parametrize(("attention", "implementation"), [("auto", "eager"), ("eager", "eager"), ("triton", "triton")])
def test_the_temporal_branch_runs_the_attention_that_was_chosen(attention: Any, implementation: str) -> None:
    block = block_of(attention=attention).float()
    temporal, _, _ = fused_branches(block, tokens(dtype=torch.float32), positions=False)
    assert isinstance(temporal, Branch)
    assert temporal.plan.implementation == implementation  # type: ignore[union-attr]
    with torch.no_grad():
        out = block(tokens(dtype=torch.float32))
        block.aim.root_state.branches = "modules"
        torch.testing.assert_close(out, block(tokens(dtype=torch.float32)), rtol=1e-5, atol=1e-5)


def test_sdpa_over_frames_runs_as_modules(chains: list[list[str]]) -> None:
    block = block_of(attention="sdpa")
    assert answers(block) == ["its attention runs as 'sdpa': asked for by name", "fused", "fused"]
    assert_as_modules(block)
    assert chains == [ALL[1:]]


def test_attention_that_knows_positions_runs_as_modules(chains: list[list[str]]) -> None:
    model = model_of(Eva, use_rot_pos_emb=True, init_values=0.1)
    assert answers(model.blocks[0]) == ["fused", POSITIONS, "fused"]
    seen: list[Tensor] = []
    model.blocks[0].attn.register_forward_hook(lambda *_: None)  # as modules, with what the model passes down
    model(video())
    assert chains == [["mlp"], ["frames"], ["mlp"]]
    assert not seen


def test_further_arguments_are_for_the_modules_of_spatial_attention(chains: list[list[str]]) -> None:
    block = block_of()
    assert answers(block, positions=True) == ["fused", POSITIONS, "fused"]
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
    block = block_of()
    block.aim.root_state.branches = "fused"
    assert answers(block) == ["fused"] * 3
    message = r"the spatial branch of 'blocks\.0' cannot be: its spatial attention knows .*; use .*'auto', which runs"
    with pytest.raises(aim.UnsupportedKernelError, match=message):
        answers(block, positions=True)
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
        ("aim.spatial.down_proj", ("tokens",)),
        ("aim.joint", ("mlp",)),
    ],
)
def test_hooks_are_called(path: str, as_modules: tuple[str, ...], chains: list[list[str]]) -> None:
    block = block_of(init_values=0.1)
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


# Patches


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_patches_are_embedded_as_by_the_convolution(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    proj = nn.Conv2d(3, 8, (2, 4), (2, 4), bias=bias, dtype=torch.float64).requires_grad_(False)
    convolve, x = copy.deepcopy(proj), torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    proj.aim_shared = (block_of().aim.root_state,)  # type: ignore[assignment]
    patch(proj, PatchProduct)

    def compare(x: Tensor) -> None:
        ours, theirs = proj(x), convolve(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(ours)
        (one,), (other,) = (torch.autograd.grad(out, x, weights) for out in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    compare(x.to(memory_format=memory_format))
    compare(x[:, :, :5, :7])  # what is left over is cut off
    if bias:
        for each in (proj, convolve):
            nn.utils.parametrize.register_parametrization(each, "bias", Doubled())
        compare(x)


# The last block


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of tokens from which the [class] token alone attends from here on."""
    seen: list[tuple[int, ...]] = []

    def noted(x: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return run(x, *args, **options)

    run = block_module.attend_from_first
    monkeypatch.setattr(block_module, "attend_from_first", noted)
    return seen


def test_the_last_block_computes_the_class_token_alone(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of(init_values=0.1)
    out = model(video())
    assert narrowed == [(2 * T, 5, 32)]
    aim.set_execution(model, fused=False)
    torch.testing.assert_close(model(video()), out, rtol=1e-10, atol=1e-10)
    assert len(narrowed) == 1


@pytest.mark.parametrize("path", ["blocks.1", "blocks.1.mlp", "blocks", "norm"])
def test_who_listens_hears_all_tokens(path: str, narrowed: list[tuple[int, ...]]) -> None:
    model, seen = model_of(), []
    expected = model(video())
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    torch.testing.assert_close(model(video()), expected, rtol=1e-10, atol=1e-10)
    assert seen == [(2 * T, 5, 32)]
    assert len(narrowed) == 1
    handle.remove()
    model(video())
    assert len(narrowed) == 2


def test_who_reads_other_tokens_gets_them(narrowed: list[tuple[int, ...]]) -> None:
    class Dense(VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.forward_features(x)[:, 1:].mean(1))

    later = model_of()
    later.global_pool = "avg"
    for model in (model_of(Dense), later):
        out = model(video())
        aim.set_execution(model, fused=False)
        torch.testing.assert_close(out, model(video()), rtol=1e-10, atol=1e-10)
    assert not narrowed


def test_who_asks_for_tokens_gets_all_of_them(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of()
    assert model.forward_features(video().flatten(0, 1)).shape == (2 * T, 5, 32)
    assert model.blocks[1](tokens()).shape == (2 * T, 5, 32)
    assert not narrowed


def test_a_spatial_adapter_that_was_replaced_is_called(narrowed: list[tuple[int, ...]]) -> None:
    model = model_of()
    model.blocks[1].aim.spatial = nn.Linear(32, 32, dtype=torch.float64)
    model(video()).sum().backward()
    assert model.blocks[1].aim.spatial.weight.grad is not None
    assert not narrowed


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
    monkeypatch.setattr(fused, "triton_missing", lambda device: missing)
    x: Any = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype)
    found = fused._unfit(x)
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
        assert token_dtype(block, x) == between
        assert answers(block, x) == ["fused"] * 3
        assert block(x).dtype == between


# Stochastic depth


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("temporal_input_adapter", [False, True])
def test_all_ways_to_run_draw_the_same(attention: Any, temporal_input_adapter: bool) -> None:
    model = model_of(attention=attention, temporal_input_adapter=temporal_input_adapter, drop_path=0.5).train()
    runs = []
    for branches in ("auto", "modules"):
        aim.set_execution(model, fused=fused)  # type: ignore[arg-type]
        torch.manual_seed(3)
        runs.append((model(video(clips=5)), torch.get_rng_state()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-9, atol=1e-10)
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_are_exact(dtype: torch.dtype) -> None:
    """``1 / (1 - rate)`` has no short form, so it is not rounded to the dtype of the products."""
    block = model_of(drop_path=0.3).blocks[1].train().to(dtype)
    temporal, spatial, mlp = fused_branches(block, tokens(clips=6, dtype=dtype), positions=False)
    assert isinstance(temporal, Branch) and isinstance(spatial, Branch) and isinstance(mlp, Branch)
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    drawn = torch.cat([each.drawn(block, tokens(clips=6, dtype=dtype))[7] for each in (temporal, mlp)])  # type: ignore
    assert drawn.dtype == wide
    assert set(drawn.tolist()) == {0.0, (torch.ones((), dtype=wide) / 0.7).item()}
    assert spatial.drawn(block, tokens(clips=6, dtype=dtype))[7] is None
    block.eval()
    for each in fused_branches(block, tokens(dtype=dtype), positions=False):
        assert each.drawn(block, tokens(dtype=dtype))[7] is None  # type: ignore[union-attr]


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
@pytest.mark.parametrize("branches", ["auto", "modules"])
def test_compiled_blocks_do_the_same(branches: Any, memory: Any) -> None:
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
