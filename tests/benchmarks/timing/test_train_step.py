"""Run the benchmark of training steps on a CPU, on tiny models: every peer takes steps, is timed and accounted for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.config import Execution
from benchmarks.harness import Cpu, Kernel
from benchmarks.timing import peers, step_command, step_results, steps
from benchmarks.timing import train_step as benchmark
from benchmarks.timing.peers import Size
from benchmarks.timing.steps import Job, Run, StepEffort
from tests.benchmarks.tiny import TINY

pytest.importorskip("triton")
pytest.importorskip("transformers")
# Raised and hidden by the compiler itself, which "error" turns into a failure before it can.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:aim.graph. this call runs eagerly"),
]
EFFORT = StepEffort(warmup=1, rounds=1, seconds=0, bounds=(2, 2))
EVERY = sorted({peer for chosen in (*benchmark.PEERS.values(), benchmark.FEW) for peer in chosen})


class Metered(Cpu):
    """A CPU with made-up meters."""

    def peak(self) -> int:
        return 7

    def held(self) -> int:
        return 3

    def joules(self, step: steps.Step, repeats: int) -> float:
        step()
        return 5.0

    def kernels(self, step: steps.Step, repeats: int) -> list[Kernel]:
        return [Kernel("nvjet", 0.5, ()), Kernel("forward_kernel", 0.25, ())] * repeats


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def small_swin3d(num_classes: int) -> nn.Module:
        from torchvision.models.video.swin_transformer import SwinTransformer3d

        shape = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [2, 4, 4]}
        return SwinTransformer3d(**shape, num_classes=num_classes)

    monkeypatch.setattr("torchvision.models.video.swin3d_b", small_swin3d)
    monkeypatch.setattr(peers, "BACKEND", "eager")
    torch.compiler.reset()


def make(peer: str) -> steps.Step:
    return steps.make_step(benchmark.TASK, peer, TINY, "cpu")


def run_in(folder: Path, **settings: Any) -> Run:
    settings = {"machine": Cpu(), "effort": EFFORT, "command": "given", **settings}
    return Run(benchmark.TASK, folder=folder, **settings)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "train_step.json").read_text())


def job(*names: str, key: str = "tiny", **settings: Any) -> Job:
    return Job(key, {name: (name, TINY) for name in names}, **settings)


# Peers


@pytest.mark.parametrize("peer", EVERY)
def test_every_peer_trains(peer: str) -> None:
    step = make(peer)
    losses = [float(step()) for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("model", "block", "number"),
    [
        ("aim", "Block", 2),
        ("full", "Block", 2),
        ("timesformer", "TimesformerLayer", 2),
        ("swin3d", "SwinTransformerBlock", 2),
    ],
)
def test_blocks_are_what_is_compiled(model: str, block: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    peers.compile_model(peers.MODELS[model](TINY), "blocks")
    assert compiled == [block] * number


def test_ways_to_compile_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str | None]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **_: calls.append((type(self).__name__, mode)))
    for mode in ("eager", "recorded", "whole", "graph"):
        peers.compile_model(nn.Linear(1, 1), mode)
    assert calls == [("Linear", None), ("Linear", "reduce-overhead")]


def test_models_are_what_their_names_say() -> None:
    expected = {
        "aim": ("auto", "auto", "fast", "auto", torch.float16),
        "aim-balanced": ("auto", "auto", "balanced", "auto", torch.float16),
        "aim-low": ("auto", "auto", "low", "auto", torch.float16),
        "aim-fp32": ("auto", "auto", "fast", "auto", torch.float32),
        "aim-fp8": ("auto", "auto", "fast", "fp8", torch.float16),
        "plain": ("sdpa", False, "fast", "auto", torch.float16),
        "reference": ("eager", False, "fast", "auto", torch.float32),
    }
    assert set(expected) == set(peers.MODELS) - set(peers.WHOLE_MODELS)
    for name, (*execution, held) in expected.items():
        model = peers.MODELS[name](TINY)
        assert model.aim.execution == Execution(*execution)
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {held}
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    for name in peers.WHOLE_MODELS:
        assert all(p.requires_grad for p in peers.MODELS[name](TINY).parameters())


def test_timesformer_is_as_large_as_the_vit() -> None:
    with torch.device("meta"):
        config = peers.timesformer(benchmark.BASE).model.config
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


def test_swin_sees_pairs_of_frames() -> None:
    size = replace(benchmark.SIZES["swin-32"], name="swin_tiny_patch4_window7_224", frames=4)
    model = peers.wrapped(size)
    assert model.aim.config.tubelet_size == 2 and model.aim.num_frames == 2


def test_every_size_has_peers_that_there_are() -> None:
    assert set(benchmark.PEERS) == set(benchmark.SIZES)
    for peer in (*EVERY, *benchmark.FEW, *benchmark.SWEPT, *benchmark.FRAMES):
        model, mode = peer.split("/")
        assert model in peers.MODELS and mode in peers.MODES
    assert len({size.frames * size.clips for name, size in benchmark.SIZES.items() if name.startswith("base")}) == 1


# Arithmetic


def test_the_arithmetic_is_that_of_the_model() -> None:
    size = Size("test_vit", clips=2, frames=2, resolution=32, classes=3, dtype="float32")  # blocks are most of it
    model = peers.MODELS["plain"](size)
    forward = peers.arithmetic(model, size, train=False)
    assert forward == pytest.approx(1e9 * aim.count_flops(model).gflops)
    # The gradients of tokens cost what the forward pass does; the adapters are small.
    assert 2.0 * forward < peers.arithmetic(model, size, train=True) < 2.6 * forward
    full = peers.MODELS["full"](size)
    forward = peers.arithmetic(full, size, train=False)
    assert 2.8 * forward < peers.arithmetic(full, size, train=True) < 3.0 * forward


def test_arithmetic_is_counted_once_for_all_of_ours() -> None:
    found: dict[str, Any] = {}
    run = Run(benchmark.TASK, Cpu())
    ours = steps.count(run, "aim-low/whole", TINY, found)
    assert found == {"plain, 2 frames": ours}
    assert steps.count(run, "reference/eager", TINY, {"plain, 2 frames": 7}) == 7
    assert steps.count(run, "full/eager", TINY, found) != ours
    assert steps.count(Run(benchmark.TASK, Cpu(), replace(EFFORT, arithmetic=False)), "full/eager", TINY, {}) is None


# Agreement


def test_the_paths_agree() -> None:
    errors = steps.agreement(benchmark.TASK, TINY, "cpu")
    kinds = {"temporal", "spatial", "joint", "temporal_embedding", "norm", "head"}
    assert {name: set(found) for name, found in errors.items()} == dict.fromkeys(
        ("plain", "aim", "aim-balanced", "aim-low"), kinds
    )
    assert all(0 < error < 1e-2 for found in errors.values() for error in found.values())
    assert steps.agree(errors)


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
def test_a_wrong_path_is_noticed(memory: str) -> None:
    def wrong(model: Any, batch: peers.Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        found = benchmark.gradients(model, batch, dtype)
        if model.aim.execution == Execution(memory=memory):
            found["joint"] = found["joint"] * 1.01
        return found

    assert not steps.agree(steps.agreement(replace(benchmark.TASK, observe=wrong), TINY, "cpu"))


def test_float32_has_its_own_tolerance() -> None:
    exact = {"plain": {"joint": 0.0}, "aim": {"joint": 0.9e-5}}
    assert steps.agree(exact)
    assert not steps.agree({**exact, "aim": {"joint": 1.1e-5}})
    assert not steps.agree({"error": "no"})


def test_the_paths_of_each_model_agree_once_for_all_numbers_of_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Size] = []

    def agreement(task: steps.Task, size: Size, device: str) -> dict[str, Any]:
        asked.append(size)
        return {"plain": {"joint": 0.1}}

    monkeypatch.setattr(steps, "agreement", agreement)
    run, other = Run(benchmark.TASK, Cpu()), replace(TINY, input_adapter=True)
    assert steps.agreements(run, [TINY]) == steps.agreements(run, [replace(TINY, clips=9)]) == {"plain": {"joint": 0.1}}
    found = steps.agreements(run, [TINY, other, replace(TINY, frames=4)])["plain"]
    assert set(found) == {"test_vit: joint", "test_vit with input adapter: joint"}
    assert asked == [replace(TINY, clips=1), replace(other, clips=1)]


# Runs


def test_a_run_writes_its_result_and_a_peer_that_fails_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(size: Size) -> Any:
        raise RuntimeError(f"no room for {size.name}")

    monkeypatch.setitem(peers.MODELS, "full", fail)
    run = run_in(tmp_path, machine=Metered(), ceiling=1e9)
    assert steps.measure(run, job("aim/eager", "full/eager", "plain/eager"))
    table = result(tmp_path)["tables"]["tiny"]
    assert list(table["peers"]) == ["aim/eager", "full/eager", "plain/eager"]
    assert table["peers"]["full/eager"] == {"clips": 2, "frames": 2, "error": "RuntimeError: no room for test_vit"}
    for name in ("aim/eager", "plain/eager"):
        entry = table["peers"][name]
        assert entry["repeats"] == 2
        assert entry["clips_per_second"] == pytest.approx(2 / entry["median"])
        flops = table["flops_per_clip"]["plain, 2 frames"]
        assert entry["flop_per_second"] == pytest.approx(2 * flops / entry["median"])
        assert entry["share_of_ceiling"] == pytest.approx(entry["flop_per_second"] / 1e9)
        assert (entry["peak_bytes"], entry["joules_per_clip"]) == (4, 2.5)
    assert table["complete"] and table["size"]["name"] == "test_vit"
    assert table["command"] == "given" and table["ran_on"]["commit"]


def test_peers_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(steps, "agreement", lambda *_: {"plain": {}})

    def prepare(model: Any, batch: peers.Batch, size: Size) -> steps.Step:
        def step() -> Tensor:
            order.append(model.aim.execution.memory)
            return torch.zeros(())

        return step

    run = Run(replace(benchmark.TASK, prepare=prepare), Cpu(), replace(EFFORT, rounds=2), tmp_path)
    steps.measure(run, job("aim/eager", "aim-low/eager"))
    turns = ["fast"] * 3 + ["low"] * 3  # one that does not count
    assert order[-12:] == turns * 2


def test_no_peer_begins_when_the_time_is_used_up(tmp_path: Path) -> None:
    steps.measure(run_in(tmp_path, seconds=0.0), job("aim/eager", "plain/eager"))
    table = result(tmp_path)["tables"]["tiny"]
    assert table["left_out"] == ["aim/eager", "plain/eager"] and not table["complete"] and table["peers"] == {}


def test_a_run_adds_to_the_file(tmp_path: Path) -> None:
    steps.measure(run_in(tmp_path), job("aim/eager", key="a"))
    steps.measure(run_in(tmp_path, command="other"), job("plain/eager", key="b"))
    steps.measure(run_in(tmp_path, command="third"), job("plain/eager", key="a"))
    tables = result(tmp_path)["tables"]
    assert {key: (table["command"], list(table["peers"])) for key, table in tables.items()} == {
        "a": ("third", ["plain/eager"]),
        "b": ("other", ["plain/eager"]),
    }
    elsewhere = tmp_path / "elsewhere"
    step_results.main([str(tmp_path / "train_step.json"), "--out", str(elsewhere)])
    assert result(elsewhere) == result(tmp_path)
    (tmp_path / "other.json").write_text('{"benchmark": "wrap_time"}')
    with pytest.raises(SystemExit):
        step_results.main([str(tmp_path / "other.json"), "--out", str(elsewhere)])


def test_a_sweep_ends_where_a_batch_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(model: Any, batch: peers.Batch, size: Size) -> steps.Step:
        if len(batch[0]) > (4 if model.aim.execution.memory == "low" else 2):
            raise torch.OutOfMemoryError(f"{len(batch[0])} clips")
        return lambda: torch.zeros(())

    run = Run(replace(benchmark.TASK, prepare=prepare), Metered(), EFFORT, tmp_path)
    steps.sweep(run, "tiny", TINY, ("aim/eager", "aim-low/eager"))
    table = result(tmp_path)["sweeps"]["tiny"]
    assert [row["clips"] for row in table["peers"]["aim/eager"]] == [1, 2, 4]
    assert "4 clips" in table["peers"]["aim/eager"][-1]["error"]
    assert [row["clips"] for row in table["peers"]["aim-low/eager"]] == [1, 2, 4, 8]
    assert table["complete"]


def test_parts_of_a_step(tmp_path: Path) -> None:
    steps.measure(run_in(tmp_path, machine=Metered(), profile=True), job("aim/eager", "plain/eager"))
    entries = result(tmp_path)["tables"]["tiny"]["peers"]
    assert "profile" not in entries["plain/eager"]
    seconds = entries["aim/eager"]["profile"]["seconds"]
    assert (seconds["matrix products"], seconds["temporal attention"], sum(seconds.values())) == (0.5, 0.25, 0.75)
    assert entries["aim/eager"]["profile"]["launches"] == 2


# The command


def test_frames_are_as_many_in_all() -> None:
    job = benchmark.frames_job(("aim/blocks",))
    assert list(job.runs) == [f"aim/blocks, T = {frames}" for frames in (8, 16, 32, 64)]
    assert {size.frames * size.clips for _, size in job.runs.values()} == {256}


@pytest.mark.parametrize(
    "words", [["--peers", "aim/fast"], ["--peers", "ours/eager"], ["--sizes", "huge"], ["--device", "cuda"]]
)
def test_what_there_is_not_is_refused(words: list[str]) -> None:
    if torch.cuda.is_available() and words[0] == "--device":
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        benchmark.main(words)


def test_the_command_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.SIZES, step_command.SMALL, replace(TINY, dtype="float32", clips=1))
    monkeypatch.setattr(step_command, "StepEffort", lambda **_: EFFORT)
    benchmark.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    ((key, table),) = result(tmp_path)["tables"].items()
    assert key == "test_vit, 2 frames, 1 clip, cpu"
    assert list(table["peers"]) == ["aim/eager", "reference/eager"]
    (target,) = table["targets"]
    assert target["what"] == f"{key}: aim/eager against reference/eager, times as fast"
    assert table["command"].endswith("train_step --device cpu --quick")
    assert steps.agree(table["agreement"])
