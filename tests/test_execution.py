"""How blocks run is chosen for a whole model, every block says how it runs and why, and weights are held as asked."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import aim_adapters as aim
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.execution import BRANCHES, MEMORY
from tests.backbones.contract import scramble, wake

T = 4
FUSED = ("fused", "fused", "fused")
BF16 = torch.bfloat16


def vit(**arguments: Any) -> Any:
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**size, **arguments})


def wrapped(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return wake(aim.wrap_image_model(scramble(vit()), T, **arguments)).eval()


def video(clips: int = 2) -> Tensor:
    return torch.randn(clips, T, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def settings(model: Any) -> tuple[str, str]:
    return model.aim.branches, model.aim.memory


def ways(model: nn.Module) -> set[tuple[str, str, str]]:
    return {row[1:] for row in aim.explain_execution(model)}


# Choosing


def test_settings_are_changed_one_by_one() -> None:
    model = wrapped()
    assert settings(model) == ("auto", "fast")
    assert aim.set_execution(model, fused=False) is None  # type: ignore[func-returns-value]
    assert settings(model) == ("modules", "fast")
    aim.set_execution(model, memory="low")
    assert settings(model) == ("modules", "low")
    aim.set_execution(model)
    assert settings(model) == ("modules", "low")
    aim.set_execution(model, fused=True, memory="balanced")
    assert settings(model) == ("fused", "balanced")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"branches": "flash", "memory": "low"}, r"branches must be 'auto', 'fused', 'modules' or None, got 'flash'"),
        ({"branches": "modules", "memory": "tiny"}, r"memory must be 'fast', 'balanced', 'low' or None, got 'tiny'"),
        ({"memory": ""}, "memory must be .*got ''"),
        ({"branches": True}, "branches must be .*got True"),
    ],
)
def test_a_wrong_name_changes_nothing(wrong: dict[str, Any], message: str) -> None:
    model = wrapped()
    with pytest.raises(ConfigError, match=message):
        aim.set_execution(model, **wrong)
    assert settings(model) == ("auto", "fast")


@pytest.mark.parametrize(
    "call",
    [
        lambda model: aim.set_execution(model, memory="low"),
        aim.explain_execution,
        lambda model: aim.set_base_dtype(model, BF16),
    ],
    ids=["set", "explain", "base_dtype"],
)
def test_models_that_are_not_wrapped_or_several_are_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(StateError, match="is not wrapped"):
        call(vit())
    with pytest.raises(StateError, match="several wrapped models"):
        call(nn.ModuleList([wrapped(), wrapped()]))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        call("model")


def test_every_adapter_of_a_model_runs_alike() -> None:
    model = wrapped()
    aim.add_adapter(model, "before", aim.AIMConfig(num_frames=T))
    aim.set_execution(model, fused=False, memory="balanced")
    aim.add_adapter(model, "after", aim.AIMConfig(num_frames=T))
    for name in ("before", "after", "default"):
        aim.set_adapter(model, name)
        assert settings(model) == ("modules", "balanced")


def test_unwrapping_forgets() -> None:
    model = wrapped()
    aim.set_execution(model, fused=False, memory="low")
    aim.wrap_image_model(aim.unwrap_image_model(model), T)
    assert settings(model) == ("auto", "fast")


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_their_own_settings(copied: Callable[[Any], Any]) -> None:
    model = wrapped()
    aim.set_execution(model, fused=False, memory="low")
    other = copied(model)
    assert settings(other) == ("modules", "low")
    aim.set_execution(other, fused="auto", memory="fast")
    assert settings(model) == ("modules", "low")


def test_files_do_not_know_how_a_model_ran(tmp_path: Path) -> None:
    model, files = wrapped(), []
    for branches, memory in (("auto", "fast"), ("modules", "low")):
        aim.set_execution(model, fused=fused, memory=memory)  # type: ignore[arg-type]
        aim.save_adapters(model, tmp_path / branches)
        files.append(json.loads((tmp_path / branches / "adapter_config.json").read_text(encoding="utf-8")))
    assert files[0] == files[1]
    fresh = vit()
    aim.load_adapters(fresh, tmp_path / "modules")
    assert settings(fresh) == ("auto", "fast")
    aim.load_adapters(model, tmp_path / "auto")  # into a model that has chosen
    assert settings(model) == ("modules", "low")


def test_a_compiled_model_takes_the_new_choice() -> None:
    model = wrapped(layers=[0, 1])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        expected = compiled(video())
        aim.set_execution(compiled, fused=False)
        torch.testing.assert_close(compiled(video()), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2
    fused = [sum("aim_adapters" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert fused == [2, 0]


# Memory


def kept_bytes(model: nn.Module) -> int:
    """Return how many bytes autograd holds for the backward pass, beside parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    tensors = []  # alive until all are counted, so that no memory is counted twice
    with torch.autograd.graph.saved_tensors_hooks(lambda x: tensors.append(x) or note(x), lambda x: x):
        out = model(video())
    assert out.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_less_is_kept_step_by_step(autocast: bool) -> None:
    model, kept = wrapped().train(), {}
    with torch.autocast("cpu", BF16, enabled=autocast):
        for branches in ("modules", "auto"):
            for memory in MEMORY:
                aim.set_execution(model, fused=fused, memory=memory)  # type: ignore[arg-type]
                kept[branches, memory] = kept_bytes(model)
    assert kept["auto", "fast"] > kept["auto", "balanced"] > kept["auto", "low"]
    assert kept["modules", "fast"] > kept["auto", "fast"]
    assert kept["modules", "fast"] > kept["modules", "balanced"] == kept["modules", "low"]


def test_in_low_memory_a_block_keeps_its_input_alone() -> None:
    model = wrapped().train()
    aim.set_execution(model, memory="low")
    block, x = model.blocks[0], torch.randn(T, 5, 32)
    own = {p.data_ptr() for p in block.parameters()}
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        block(x)
    (kept,) = (t for t in held if t.data_ptr() not in own)
    assert torch.equal(kept, x)


# Explaining


def test_prints_neighbors_that_run_alike_together(capsys: pytest.CaptureFixture[str]) -> None:
    model = wrapped(layers=[1, 2])
    rows = aim.explain_execution(model)
    assert rows == [
        aim.BlockExecution(0, "-", *["not adapted: the image model's own block"] * 2),
        aim.BlockExecution(1, *FUSED),
        aim.BlockExecution(2, *FUSED),
    ]
    assert capsys.readouterr().out == (
        "blocks 0\n"
        "  temporal  -\n"
        "  spatial   not adapted: the image model's own block\n"
        "  mlp       not adapted: the image model's own block\n"
        "blocks 1-2\n"
        "  temporal  fused\n"
        "  spatial   fused\n"
        "  mlp       fused\n"
    )
    model.blocks[2].mlp.act.register_forward_hook(lambda *_: None)
    aim.explain_execution(model)
    printed = capsys.readouterr().out
    assert "blocks 1\n" in printed
    assert printed.endswith(
        "blocks 2\n"
        "  temporal  fused\n"
        "  spatial   fused\n"
        "  mlp       its mlp has hooks, which a fused branch would not call\n"
    )


def test_says_what_was_asked_for() -> None:
    model = wrapped()
    aim.set_execution(model, fused=False)
    assert ways(model) == {("asked for by name",) * 3}
    aim.set_execution(model, fused=True)
    assert ways(model) == {FUSED}
    aim.set_attention(model, "sdpa")
    with pytest.raises(aim.UnsupportedKernelError, match=r"temporal branch of 'blocks\.0' cannot be: .*'sdpa'"):
        aim.explain_execution(model)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"components": ("spatial",)}, ("-", "fused", "fused")),
        ({"temporal_input_adapter": True}, ("it has an adapter in front of its attention", "fused", "fused")),
        ({"attention": "sdpa"}, ("its attention runs as 'sdpa': asked for by name", "fused", "fused")),
    ],
)
def test_says_why_a_branch_runs_as_modules(arguments: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert ways(wrapped(**arguments)) == {expected}


def test_swin_says_what_it_runs_where_windows_tile_a_frame() -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=2, num_classes=5
    )
    rows = aim.explain_execution(aim.wrap_image_model(swin, T))
    assert [row[1:] for row in rows] == [FUSED, ("-", "fused", "fused")] * 2


def test_explaining_draws_no_random_numbers_and_changes_nothing() -> None:
    model = wrapped(drop_path=0.5).train()
    before, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    assert ways(model) == {FUSED}
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_unfrozen_weights_count_only_while_gradients_are_recorded() -> None:
    model = wrapped()
    model.blocks[0].mlp.requires_grad_()
    assert aim.explain_execution(model)[0].mlp == "a weight of the image model requires a gradient"
    with torch.no_grad():
        assert aim.explain_execution(model)[0].mlp == "fused"


@pytest.mark.parametrize("holder", ["compiled", "checkpointed", "inside", "disabled", "meta"])
def test_finds_the_blocks_whatever_holds_the_model(holder: str) -> None:
    model = wrapped()
    held: Any = model
    if holder == "compiled":
        held = torch.compile(model, backend="eager")
    elif holder == "checkpointed":
        apply_activation_checkpointing(model, check_fn=lambda m: hasattr(m, "aim") and hasattr(m.aim, "temporal"))
    elif holder == "inside":
        held = nn.Sequential(model, nn.Identity())
    elif holder == "meta":
        held = model.to("meta")
    with aim.disable_adapters(model) if holder == "disabled" else torch.autocast("cpu", BF16):
        found = ways(held)
    on_meta = "fused branches need a CUDA device or a CPU, got meta"
    assert found == {(on_meta,) * 3 if holder == "meta" else FUSED}


# The dtype of what is frozen


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_only_what_is_frozen_is_held_in_another_dtype(dtype: torch.dtype) -> None:
    model = wrapped()
    aim.add_adapter(model, "idle", aim.AIMConfig(num_frames=T))
    ours = {name: p for name, p in model.named_parameters() if ".aim." in f".{name}"}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    aim.set_base_dtype(model, dtype)
    for name, parameter in model.named_parameters():
        if name in ours:
            assert parameter is ours[name]
            assert torch.equal(parameter, values[name])
        else:
            assert parameter.dtype == dtype
            assert torch.equal(parameter, values[name].to(dtype))
            assert not parameter.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bfloat16", None], ids=str)
def test_other_dtypes_are_refused(dtype: Any) -> None:
    model = wrapped()
    with pytest.raises(ConfigError, match=r"dtype must be torch\.float32, torch\.bfloat16, torch\.float16, got"):
        aim.set_base_dtype(model, dtype)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_of_the_image_model_that_train_stay_as_they_are() -> None:
    model = wrapped()
    model.blocks[0].mlp.fc1.weight.requires_grad_()
    aim.set_base_dtype(model, BF16)
    assert model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    assert model.blocks[0].mlp.fc2.weight.dtype == BF16


def test_buffers_stay_as_they_are() -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=2, num_classes=5
    )
    model = aim.wrap_image_model(swin, T)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert before
    aim.set_base_dtype(model, BF16)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


def test_of_a_whole_clip_the_image_tower_changes() -> None:
    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    model = CLIP(12, vision, CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1))
    aim.wrap_image_model(model, T)
    text = {name: p.dtype for name, p in model.named_parameters() if not name.startswith("visual.")}
    aim.set_base_dtype(model, BF16)
    assert text == {name: p.dtype for name, p in model.named_parameters() if not name.startswith("visual.")}
    assert model.visual.conv1.weight.dtype == BF16


@pytest.mark.parametrize("autocast", [True, False])
def test_tokens_between_blocks_have_the_dtype_of_the_weights(autocast: bool) -> None:
    model, seen = wrapped(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", BF16, enabled=autocast):
        model(video())
    assert set(seen) == {torch.float32}
    seen.clear()
    aim.set_base_dtype(model, BF16)
    with torch.autocast("cpu", BF16):
        out = model(video())
        assert ways(model) == {FUSED}
    assert set(seen) == {BF16}
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in aim.trainable_parameters(model)} == {torch.float32}


@pytest.mark.parametrize("branches", BRANCHES)
def test_rounded_weights_give_nearly_the_same(branches: Any) -> None:
    model = wrapped()
    with torch.no_grad():
        expected = model(video())
        aim.set_execution(model, fused=fused)
        aim.set_base_dtype(model, BF16)
        with torch.autocast("cpu", BF16):
            out = model(video()).float()
    assert 0 < (out - expected).norm() < 0.03 * expected.norm()


def test_adapters_made_later_are_held_as_the_one_that_runs(tmp_path: Path) -> None:
    other = wake(wrapped(num_classes=7))
    aim.save_adapters(other, tmp_path)
    expected = aim.adapter_state_dict(other)
    model = wrapped()
    aim.set_base_dtype(model, BF16)
    aim.add_adapter(model, "new", aim.AIMConfig(num_frames=T))
    aim.set_adapter(model, "new")
    state = aim.adapter_state_dict(model)
    assert {"norm.weight", "head.bias", "blocks.0.temporal.up_proj.weight", "temporal_embedding"} <= state.keys()
    assert {t.dtype for t in state.values()} == {torch.float32}
    aim.load_adapters(model, tmp_path, name="loaded")
    aim.set_adapter(model, "loaded")
    for key, tensor in aim.adapter_state_dict(model).items():
        assert torch.equal(tensor, expected[key]), key  # so also of the same dtype


def test_norms_held_wider_than_the_adapters_stay_so() -> None:
    """As CLIP's loaders in low precision hold them."""
    model = vit().to(BF16)
    model.norm.float()
    aim.wrap_image_model(model, T)
    aim.add_adapter(model, "new", aim.AIMConfig(num_frames=T))
    states = []
    for name in ("default", "new"):
        aim.set_adapter(model, name)
        states.append({key: t.dtype for key, t in aim.adapter_state_dict(model).items()})
    assert states[0] == states[1]
    assert states[0]["norm.weight"] == torch.float32
    assert states[0]["head.weight"] == BF16


def test_adapters_load_bit_exactly_into_rounded_weights_and_back(tmp_path: Path) -> None:
    model, rounded = wrapped(), vit()
    aim.save_adapters(model, tmp_path / "a")
    aim.wrap_image_model(rounded, T)
    aim.set_base_dtype(rounded, BF16)
    assert not any(aim.load_adapters(rounded, tmp_path / "a"))
    aim.save_adapters(rounded, tmp_path / "b")
    ours, theirs = aim.adapter_state_dict(model), aim.adapter_state_dict(rounded)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    fresh = vit()
    aim.load_adapters(fresh, tmp_path / "b")
    assert all(torch.equal(ours[key], t) for key, t in aim.adapter_state_dict(fresh).items())


def test_it_cannot_be_undone() -> None:
    model = wrapped()
    exact = model.blocks[0].attn.qkv.weight.clone()
    aim.set_base_dtype(model, BF16)
    aim.set_base_dtype(model, torch.float32)
    aim.unwrap_image_model(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.blocks[0].attn.qkv.weight, exact.to(BF16).float())


def test_a_base_checkpoint_loads_afterwards() -> None:
    base = {name: t + 1 for name, t in vit().state_dict().items()}
    model = wrapped()
    aim.set_base_dtype(model, BF16)
    model.load_state_dict(base, strict=True)
    assert all(torch.equal(model.state_dict()[name], t.to(BF16)) for name, t in base.items())


def test_training_goes_on_with_the_same_optimizer() -> None:
    model = wrapped().train()
    optimizer = torch.optim.AdamW(aim.trainable_parameters(model), lr=1e-3)
    losses = []
    for step in range(4):
        if step == 2:
            aim.set_base_dtype(model, BF16)
        with torch.autocast("cpu", BF16):
            loss = model(video()).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
