"""Run the benchmark of training steps on a CPU, on tiny models: every peer takes steps and is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import train_step as benchmark

pytest.importorskip("triton")
pytest.importorskip("transformers")
# Raised and hidden by the compiler itself, which "error" turns into a failure before it can.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
TINY = benchmark.Size("test_vit", clips=2, frames=2, resolution=32, classes=3)
EFFORT = benchmark.Effort(warmup=1, first=2, rounds=1, turn=2)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BACKEND", "aot_eager")
    # Triton's interpreter multiplies bf16 wrongly.
    monkeypatch.setattr(benchmark, "DTYPE", torch.float16)
    torch.compiler.reset()


@pytest.mark.parametrize("peer", benchmark.PEERS["base"])
def test_every_peer_trains(peer: str) -> None:
    step = benchmark.make_step(peer, TINY, "cpu")
    losses = [float(step()) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_blocks_are_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    for model, blocks in {"sdpa": "Block", "full": "Block", "timesformer": "TimesformerLayer"}.items():
        compiled.clear()
        built = benchmark.MODELS[model](TINY)
        benchmark.compile_model(built, "blocks")
        assert len(compiled) == 6
        assert set(compiled) == {blocks}


def test_timesformer_is_as_large_as_the_vit() -> None:
    config = benchmark.timesformer(benchmark.BASE).model.config
    default = type(config)()
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "patch_size",
        "num_frames",
    ):
        assert getattr(config, name) == getattr(default, name)


def test_the_paths_agree() -> None:
    errors = benchmark.agreement(TINY, "cpu")
    assert 0 < errors["triton"] < 1e-2
    assert benchmark.agree(errors)


def test_a_wrong_path_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from aim_adapters.ops.temporal_attention import api

    right = api._PLAIN["sdpa"]
    monkeypatch.setitem(api._PLAIN, "sdpa", lambda *given, **options: 1.1 * right(*given, **options))
    assert not benchmark.agree(benchmark.agreement(TINY, "cpu"))


def test_frozen_weights_are_held_in_the_other_dtype() -> None:
    for name, dtype in (("sdpa", torch.float32), ("sdpa-bf16", torch.float16)):
        model = benchmark.MODELS[name](TINY)
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_run_writes_its_result_and_a_peer_that_fails_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(size: benchmark.Size) -> Any:
        raise RuntimeError(f"no room for {size.clips}")

    monkeypatch.setitem(benchmark.MODELS, "full", fail)
    sizes = [(TINY, ["triton/eager", "full/eager", "sdpa/eager"])]
    assert benchmark.measure(sizes, tmp_path, machine=benchmark.Cpu(), effort=EFFORT) == 0
    result = json.loads((tmp_path / "train_step.json").read_text())
    peers = result["tables"][0]["peers"]
    assert list(peers) == ["triton/eager", "full/eager", "sdpa/eager"]
    assert peers["full/eager"] == {"error": "RuntimeError: no room for 2"}
    for name in ("triton/eager", "sdpa/eager"):
        assert peers[name]["repeats"] == 2
        assert peers[name]["clips_per_second"] == pytest.approx(2 / peers[name]["median"])
    assert result["complete"] and result["met"]
    assert result["tables"][0]["size"]["name"] == "test_vit"


def table(**seconds: float) -> dict[str, Any]:
    peers = {name.replace("_", "/"): {"median": value} for name, value in seconds.items()}
    return {"size": {"name": benchmark.BASE.name, "clips": 32}, "peers": peers}


def test_targets_hold_the_fastest_compiled_steps_against_one_another() -> None:
    measured = table(
        triton_eager=0.1,
        triton_blocks=1.0,
        triton_whole=1.1,
        timesformer_blocks=2.5,
        timesformer_whole=2.3,
        sdpa_blocks=1.6,
    )
    measured["peers"]["full/blocks"] = {"error": "no"}
    found = benchmark.targets([measured])
    assert [(target.value, target.at_least, target.met) for target in found] == [(2.3, 2.2, True), (1.6, 1.7, False)]
