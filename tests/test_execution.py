"""How blocks run is chosen for a whole model, and every block says how it runs and why."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import aim_adapters as aim
from aim_adapters.config import MEMORY_CHOICES, Execution
from aim_adapters.errors import ConfigError, StateError
from tests.checkpoint.cases import config_of, header
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video

FUSED = ("fused", "fused", "fused")
BF16 = torch.bfloat16


def settings(model: Any) -> Execution:
    return model.aim.execution


def ways(model: nn.Module) -> set[tuple[str, str, str]]:
    return {row[1:] for row in aim.explain_execution(model)}


# Choosing


def test_settings_are_changed_one_by_one() -> None:
    model = trained()
    assert settings(model) == Execution()
    assert aim.set_execution(model, fused=False) is None  # type: ignore[func-returns-value]
    assert settings(model) == Execution(fused=False)
    aim.set_execution(model, memory="low")
    assert settings(model) == Execution(fused=False, memory="low")
    aim.set_execution(model)
    assert settings(model) == Execution(fused=False, memory="low")
    aim.set_attention(model, "sdpa")
    assert settings(model) == Execution("sdpa", fused=False, memory="low")
    aim.set_execution(model, fused=True, memory="balanced")
    assert settings(model) == Execution("sdpa", fused=True, memory="balanced")
    aim.set_execution(model, fused="auto")
    assert settings(model) == Execution("sdpa", memory="balanced")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fused": "modules", "memory": "low"}, r"fused must be 'auto', True or False, got 'modules'"),
        ({"fused": 1}, "fused must be 'auto', True or False, got 1"),
        ({"fused": False, "memory": "tiny"}, "memory must be one of 'fast', 'balanced', 'low', got 'tiny'"),
        ({"memory": ""}, "memory must be one of .*got ''"),
        ({"memory": "low", "frozen_precision": "int8"}, "frozen_precision must be one of 'auto', 'fp8', got 'int8'"),
    ],
)
def test_a_wrong_name_changes_nothing(wrong: dict[str, Any], message: str) -> None:
    model = trained()
    with pytest.raises(ConfigError, match=message):
        aim.set_execution(model, **wrong)
    assert settings(model) == Execution()


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
        call(base())
    with pytest.raises(StateError, match="several wrapped models"):
        call(nn.ModuleList([trained(), trained()]))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        call("model")


def test_every_adapter_of_a_model_runs_alike() -> None:
    model = trained()
    aim.add_adapter(model, "before", aim.AIMConfig(num_frames=T))
    aim.set_execution(model, fused=False, memory="balanced")
    aim.set_attention(model, "sdpa")
    aim.add_adapter(model, "after", aim.AIMConfig(num_frames=T))
    for name in ("before", "after", "default"):
        aim.set_adapter(model, name)
        assert settings(model) == Execution("sdpa", fused=False, memory="balanced")
    aim.set_execution(model, memory="fast")
    aim.set_adapter(model, "after")
    assert settings(model) == Execution("sdpa", fused=False)


def test_unwrapping_forgets() -> None:
    model = trained()
    aim.set_execution(model, fused=False, memory="low")
    aim.wrap_image_model(aim.unwrap_image_model(model), T)
    assert settings(model) == Execution()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_their_own_settings(copied: Callable[[Any], Any]) -> None:
    model = trained()
    aim.set_execution(model, fused=False, memory="low")
    other = copied(model)
    assert settings(other) == Execution(fused=False, memory="low")
    aim.set_execution(other, fused="auto", memory="fast")
    assert settings(model) == Execution(fused=False, memory="low")


def test_files_do_not_know_how_a_model_ran(tmp_path: Path) -> None:
    model, chosen = trained(), Execution("sdpa", fused=False, memory="low", frozen_precision="fp8")
    aim.save_adapters(model, tmp_path / "plain")
    aim.set_attention(model, chosen.attention)
    aim.set_execution(model, fused=False, memory="low", frozen_precision="fp8")
    assert settings(model) == chosen
    aim.save_adapters(model, tmp_path / "chosen")
    for read in (config_of, header):
        assert read(tmp_path / "chosen") == read(tmp_path / "plain")
    fresh = base()
    aim.load_adapters(fresh, tmp_path / "chosen")
    assert settings(fresh) == Execution()
    aim.load_adapters(model, tmp_path / "plain")  # into a model that has chosen
    assert settings(model) == chosen


def test_a_compiled_model_takes_the_new_choice() -> None:
    model = trained(layers=[0, 1])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        expected = compiled(video())
        aim.set_execution(compiled, fused=False)
        torch.testing.assert_close(compiled(video()), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2
    fused = [sum("aim_adapters" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert fused == [len(model.blocks), 0]


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
    model, kept = trained().train(), {}
    with torch.autocast("cpu", BF16, enabled=autocast):
        for fused in (False, True):
            for memory in MEMORY_CHOICES:
                aim.set_execution(model, fused=fused, memory=memory)  # type: ignore[arg-type]
                kept[fused, memory] = kept_bytes(model)
    assert kept[True, "fast"] > kept[True, "balanced"] > kept[True, "low"]
    assert kept[False, "fast"] > kept[True, "fast"]
    assert kept[False, "fast"] > kept[False, "balanced"] == kept[False, "low"]


def test_in_low_memory_a_block_keeps_its_input_alone() -> None:
    model = trained().train()
    aim.set_execution(model, memory="low")
    block, x = model.blocks[0], torch.randn(T, 5, 32)
    own = {p.data_ptr() for p in block.parameters()}
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        block(x)
    (kept,) = (t for t in held if t.data_ptr() not in own)
    assert torch.equal(kept, x)


# Explaining


def test_shows_neighbors_that_run_alike_together(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(layers=[1, 2])
    rows = aim.explain_execution(model)
    assert rows == [
        aim.BlockExecution(0, "-", *["fused, no adapter"] * 2),
        aim.BlockExecution(1, *FUSED),
        aim.BlockExecution(2, *FUSED),
    ]
    assert repr(rows) == (
        "blocks  temporal  spatial            mlp\n"
        "0       -         fused, no adapter  fused, no adapter\n"
        "1-2     fused     fused              fused"
    )
    model.blocks[2].mlp.act.register_forward_hook(lambda *_: None)
    why = "its mlp has hooks, which a fused branch would not call"
    assert aim.explain_execution(model)[2] == aim.BlockExecution(2, "fused", "fused", why)
    shown = repr(aim.explain_execution(model))
    assert [line.split()[0] for line in shown.splitlines()] == ["blocks", "0", "1", "2"]
    assert shown.endswith(f"fused{' ' * 14}{why}")
    assert capsys.readouterr() == ("", "")


def test_says_what_was_asked_for() -> None:
    model = trained()
    aim.set_execution(model, fused=False)
    assert ways(model) == {("asked for by name",) * 3}
    aim.set_execution(model, fused=True)
    assert ways(model) == {FUSED}
    aim.set_attention(model, "sdpa")
    with pytest.raises(aim.UnsupportedKernelError, match=r"temporal branch of 'blocks\.0' cannot be: .*'sdpa'"):
        aim.explain_execution(model)


def test_what_is_asked_for_by_name_is_asked_of_blocks_with_adapters() -> None:
    model, why = trained(layers=[1, 2]), "its mlp has hooks, which a fused branch would not call"
    aim.set_execution(model, fused=True)
    handle = model.blocks[0].mlp.act.register_forward_hook(lambda *_: None)
    assert aim.explain_execution(model)[0] == aim.BlockExecution(0, "-", "fused, no adapter", why)
    model(video())
    handle.remove()
    model.blocks[1].mlp.act.register_forward_hook(lambda *_: None)
    with pytest.raises(aim.UnsupportedKernelError, match=rf"MLP branch of 'blocks\.1' cannot be: {why}"):
        model(video())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"components": ("spatial",)}, ("-", "fused", "fused")),
        ({"temporal_input_adapter": True}, FUSED),
        ({"attention": "sdpa"}, ("its attention runs as 'sdpa': asked for by name", "fused", "fused")),
    ],
)
def test_says_why_a_branch_runs_as_modules(arguments: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert ways(trained(**arguments)) == {expected}


def test_swin_says_what_it_runs_where_windows_tile_a_frame() -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=2, num_classes=5
    )
    rows = aim.explain_execution(aim.wrap_image_model(swin, T))
    assert [row[1:] for row in rows] == [FUSED, ("-", "fused", "fused")] * 2


def test_says_how_a_convolution_runs(no_triton: None) -> None:
    model = trained(temporal="both", conv_layers=[1])
    why = "convolution, eager (Triton does not run on a CPU)"
    assert [row.temporal for row in aim.explain_execution(model)] == ["fused", f"{why}, then fused", "fused"]
    aim.set_attention(model, "eager")
    assert aim.explain_execution(model)[1].temporal == "convolution, eager (asked for by name), then fused"
    assert aim.explain_execution(trained(temporal="conv"))[0].temporal == why


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_says_that_a_convolution_runs_by_its_kernel_in_the_dtype_of_autocast() -> None:
    model = trained(temporal="conv").cuda()
    assert aim.explain_execution(model)[0].temporal == "convolution, triton"
    model.double()
    assert "got torch.float64" in aim.explain_execution(model)[0].temporal


def test_explaining_draws_no_random_numbers_and_changes_nothing() -> None:
    model = trained(drop_path=0.5).train()
    before, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    assert ways(model) == {FUSED}
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_unfrozen_weights_count_only_while_gradients_are_recorded() -> None:
    model = trained()
    model.blocks[0].mlp.requires_grad_()
    assert aim.explain_execution(model)[0].mlp == "a weight of the image model requires a gradient"
    with torch.no_grad():
        assert aim.explain_execution(model)[0].mlp == "fused"


@pytest.mark.parametrize("holder", ["compiled", "checkpointed", "inside", "disabled", "meta"])
def test_finds_the_blocks_whatever_holds_the_model(holder: str) -> None:
    model = trained()
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
