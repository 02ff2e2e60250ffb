"""The implementation of temporal attention is chosen for a whole model, and every block says which one it runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import aim_adapters as aim
from aim_adapters import execution
from aim_adapters.errors import ConfigError, StateError
from aim_adapters.ops.temporal_attention import Case, api
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video

ON_CPU = "as fast as SDPA on a CPU for the frames of a clip"
FITS = "reads and writes what the projections do, without a copy"


def by_modules(**arguments: Any) -> nn.Module:
    """Return a model whose blocks call the operator of temporal attention, instead of a fused branch."""
    model = trained(**arguments)
    aim.set_execution(model, fused=False)
    return model


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the implementations that run from here on."""
    names: list[str] = []
    for name, implementation in list(api._PLAIN.items()):

        def noted(*args: Any, _name: str = name, _run: Any = implementation, **kwargs: Any) -> Tensor:
            names.append(_name)
            out: Tensor = _run(*args, **kwargs)
            return out

        monkeypatch.setitem(api._PLAIN, name, noted)
    return names


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Be on a GPU as far as the choice goes, and return what it was made for."""
    seen: list[Case] = []

    def case_of(device: str, dtype: torch.dtype, head_dim: int, num_frames: int, *, biased: bool) -> Case:
        seen.append(Case("cuda", dtype, head_dim, num_frames, missing=None))
        return seen[-1]

    monkeypatch.setattr(execution, "case_of", case_of)
    return seen


# Choosing


@pytest.mark.parametrize(("before", "name"), [("auto", "sdpa"), ("sdpa", "eager")])
def test_the_implementation_that_was_set_is_the_one_that_runs(before: str, name: str, ran: list[str]) -> None:
    model = by_modules(attention=before)
    with torch.no_grad():
        expected = model(video())
        assert set(ran) == {"eager" if before == "auto" else before}
        ran.clear()
        assert aim.set_attention(model, name) is None  # type: ignore[arg-type, func-returns-value]
        torch.testing.assert_close(model(video()), expected, rtol=1e-5, atol=1e-6)
    assert ran == [name] * 3
    assert model.aim.execution.attention == name


def test_a_name_that_cannot_run_changes_nothing(no_triton: None) -> None:
    model = trained(attention="eager")
    with pytest.raises(aim.UnsupportedKernelError, match=r"attention='triton' was asked for, but .*; use 'auto'"):
        aim.set_attention(model, "triton")
    with pytest.raises(ConfigError, match="attention must be one of 'auto', 'triton', 'sdpa', 'eager', got 'flash'"):
        aim.set_attention(model, "flash")  # type: ignore[arg-type]
    assert aim.explain_attention(model)[0].implementation == "eager"


@pytest.mark.parametrize("call", [lambda model: aim.set_attention(model, "sdpa"), aim.explain_attention])
def test_models_that_are_not_wrapped_or_several_are_refused(call: Any) -> None:
    with pytest.raises(StateError, match="is not wrapped"):
        call(base())
    with pytest.raises(StateError, match="several wrapped models"):
        call(nn.ModuleList([trained(), trained()]))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        call("model")


def test_a_compiled_model_takes_the_new_choice() -> None:
    model = by_modules(attention="sdpa")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        expected = compiled(video())
        aim.set_attention(compiled, "eager")
        torch.testing.assert_close(compiled(video()), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 2
    plain, eager = (sum("einsum" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs)
    assert (plain, eager) == (0, 6)


def test_the_choice_holds_for_every_adapter(ran: list[str]) -> None:
    model = by_modules()
    aim.add_adapter(model, "other", aim.AIMConfig(num_frames=T))
    aim.set_attention(model, "sdpa")
    aim.set_adapter(model, "other")
    with torch.no_grad():
        model(video())
    assert ran == ["sdpa"] * 3


def test_copies_keep_their_own_choice() -> None:
    model = trained()
    other = copy.deepcopy(model)
    aim.set_attention(other, "sdpa")
    assert [aim.explain_attention(each)[0].implementation for each in (model, other)] == ["eager", "sdpa"]


# Explaining


def test_shows_neighbors_that_do_the_same_in_one_line(no_triton: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(layers=[1, 2])
    rows = aim.explain_attention(model)
    assert rows == [
        aim.BlockAttention(0, "-", "does not attend over time"),
        aim.BlockAttention(1, "eager", ON_CPU),
        aim.BlockAttention(2, "eager", ON_CPU),
    ]
    assert repr(rows) == (
        "blocks  implementation  reason\n"
        "0       -               does not attend over time\n"
        f"1-2     eager           {ON_CPU}"
    )
    aim.set_attention(model, "sdpa")
    assert repr(aim.explain_attention(model)).endswith("\n1-2     sdpa            asked for by name")
    assert capsys.readouterr() == ("", "")


def test_says_what_each_block_of_a_gpu_would_run(cases: list[Case]) -> None:
    assert {row[1:] for row in aim.explain_attention(trained())} == {("triton", FITS)}
    assert set(cases) == {Case("cuda", torch.float32, 16, T, missing=None)}
    for model, reason in (
        (trained().double(), "got torch.float64"),
        (aim.wrap_image_model(base(), 130), "up to 128 frames, got 130"),
        (aim.wrap_image_model(base(embed_dim=144, num_heads=1), T), "heads up to 128 wide, got 144"),
    ):
        (row, *_) = aim.explain_attention(model)
        assert row.implementation == "sdpa"
        assert reason in row.reason


def test_a_name_that_does_not_fit_the_model_is_an_error(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained().double()
    monkeypatch.setattr(execution, "choose", lambda *args: api.choose(*args) if len(args) > 1 else None)
    aim.set_attention(model, "triton")
    with pytest.raises(aim.UnsupportedKernelError, match=r"got torch\.float64; use 'auto'"):
        aim.explain_attention(model)


@pytest.mark.parametrize(
    ("weights", "expected"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)], ids=str
)
def test_autocast_counts(cases: list[Case], weights: torch.dtype, expected: torch.dtype) -> None:
    model = trained().to(weights)
    seen: list[torch.dtype] = []
    model.blocks[0].attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))  # type: ignore
    with torch.autocast("cpu", torch.bfloat16):
        aim.explain_attention(model)
        model(video().to(weights))
    assert {case.dtype for case in cases} == {expected} == set(seen)


def test_swin_attends_over_time_where_windows_are_not_shifted(cases: list[Case]) -> None:
    swin = SwinTransformer(
        img_size=16, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=2, num_classes=5
    )
    rows = aim.explain_attention(aim.wrap_image_model(swin, T))
    assert [row.implementation for row in rows] == ["triton", "-", "triton", "-"]
    assert [case.head_dim for case in cases] == [8, 16]


def test_without_temporal_adapters_nothing_attends_over_time() -> None:
    rows = aim.explain_attention(trained(components=("spatial",)))
    assert [row.implementation for row in rows] == ["-"] * 3


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
    with aim.disable_adapters(model) if holder == "disabled" else torch.autocast("cpu", torch.bfloat16):
        rows = aim.explain_attention(held)
    assert [row.implementation for row in rows] == ["sdpa" if holder == "meta" else "eager"] * 3
