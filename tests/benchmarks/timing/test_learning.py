"""Hold the benchmark of learning to what it says, on a tiny model and made-up clips."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aim_adapters.config import Execution
from aim_adapters.video import VideoFolder
from benchmarks.timing import learning, learning_run, learning_summary, learning_task
from benchmarks.timing.learning_task import Task
from tests.video.videos import write

MODEL, SIZE, CLIPS, TEST_CLIPS, STEPS = "test_vit", 32, 20, 8, 3
ABOUT = {"model": MODEL, "img_size": str(SIZE), "classes": "2"}


def clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise that is brighter in the second class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 128, (count, 2, 3, SIZE, SIZE), generator=generator)
    return (noise + 127 * labels.view(-1, 1, 1, 1, 1)).byte(), labels


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("task") / "task.safetensors"
    model = timm.create_model(MODEL, img_size=SIZE, num_classes=0)
    learning_task.save(path, Task(clips(CLIPS, 0), clips(TEST_CLIPS, 1), model.state_dict(), ABOUT))
    return path


@pytest.fixture(scope="module")
def task(file: Path) -> Task:
    return learning_task.load(file)


def run(task: Task, name: str, seed: int, steps: int = STEPS, device: str = "cpu") -> dict[str, Any]:
    return learning_run.train(task, name, seed, steps=steps, device=device, window=1)


def measure(
    path: Path, each: Callable[[str, int], dict[str, Any]], *ways: str, seeds: int = 4, test_clips: int = 100
) -> tuple[int, dict[str, Any]]:
    about = {"task": {"test_clips": test_clips}}
    status = learning.measure(each, ways or ("modules", "held"), seeds=seeds, jobs=1, folder=path, about=about)
    return status, json.loads((path / "learning.json").read_text())


def made(**changes: float) -> Callable[[str, int], dict[str, Any]]:
    """Return runs whose final losses differ by seeds with a standard deviation of 0.01, accuracies of 0.02."""
    of_seed = [-1.0, 1.0, -1.0, 1.0]
    unit = math.sqrt(3 / 4)

    def each(name: str, seed: int) -> dict[str, Any]:
        noise = unit * of_seed[seed]
        ours = name != "modules"
        entry = {
            "loss": 0.2 + 0.01 * noise + ours * changes.get("loss", 0.0),
            "accuracy": changes.get("level", 0.9) + 0.02 * noise + ours * changes.get("accuracy", 0.0),
            "mean_losses": [1.0, 0.2],
            "seconds": 1.0,
        }
        if ours and "cosine" in changes:
            entry["cosine"] = {"mean": changes["cosine"], "least": 0.9 - 0.1 * seed}
        return entry

    return each


# The file


def test_a_task_is_what_was_saved(task: Task) -> None:
    for part, made_up in ((task.train, clips(CLIPS, 0)), (task.test, clips(TEST_CLIPS, 1))):
        assert torch.equal(part[0], made_up[0]) and torch.equal(part[1], made_up[1])
    torch.manual_seed(0)
    state = timm.create_model(MODEL, img_size=SIZE, num_classes=0).state_dict()
    assert task.backbone.keys() == state.keys()
    assert all(torch.equal(value, state[key].half().float()) for key, value in task.backbone.items())
    assert ABOUT.items() <= task.about.items()


def test_prepares_clips_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart = pytest.importorskip("quickstart")
    import pretrained

    any_size = "vit_tiny_patch16_224"
    folders = []
    for part, count in (("train", 2), ("test", 1)):
        for place, name in enumerate(quickstart.CLASSES):
            for index in range(count):
                write(tmp_path / part / name / f"{index}.mp4", count=8, seed=10 * place + index)
        folders.append(VideoFolder(tmp_path / part, num_frames=8, labels=quickstart.CLASSES))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(quickstart, "find_photographs", lambda *_, **__: [])
    monkeypatch.setattr(quickstart, "prepare", lambda *_: folders)
    monkeypatch.setattr(
        quickstart,
        "load_dinov2_small",
        lambda size, **_: timm.create_model(any_size, img_size=size, num_classes=0),
    )
    monkeypatch.setattr(pretrained, "MODEL", any_size)
    path = tmp_path / "task.safetensors"
    assert learning.main(["--prepare", str(path), "--clips", "12", "--test-clips", "6"]) == 0
    task = learning_task.load(path)
    assert task.train[0].shape == (12, 8, 3, 42, 42) and task.train[0].dtype == torch.uint8
    assert task.train[1].bincount().tolist() == [2] * 6 and task.test[1].bincount().tolist() == [1] * 6
    assert (task.about["img_size"], task.about["classes"]) == ("42", "6")
    assert learning_run.build(task, learning_run.WAYS["held"], seed=0, device="cpu")(
        torch.zeros(1, 8, 3, 42, 42)
    ).shape == (
        1,
        6,
    )
    with pytest.raises(SystemExit):
        learning.main(["--prepare", str(path), "--clips", "2401"])


# A run


@pytest.fixture(scope="module")
def runs(task: Task) -> dict[tuple[str, int], dict[str, Any]]:
    return {(name, seed): run(task, name, seed) for name in ("modules", "fused") for seed in range(2)}


def test_a_seed_is_the_same_run_in_every_way(runs: dict[tuple[str, int], dict[str, Any]], task: Task) -> None:
    for seed in range(2):
        assert runs["fused", seed]["mean_losses"] == pytest.approx(runs["modules", seed]["mean_losses"], abs=2e-4)
    assert runs["fused", 0]["mean_losses"] != pytest.approx(runs["fused", 1]["mean_losses"], abs=2e-3)
    again = run(task, "fused", 0)
    assert {**again, "seconds": 0} == {**runs["fused", 0], "seconds": 0}


def test_the_curve_is_kept_as_means(task: Task, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert learning_run.means([1.0, 2.0, 3.0, 4.0, 7.0], 2) == [1.5, 3.5, 7.0]
    each, entry = runs["modules", 0], learning_run.train(task, "modules", 0, steps=STEPS, device="cpu", window=2)
    assert entry["mean_losses"] == pytest.approx([sum(each["mean_losses"][:2]) / 2, each["mean_losses"][2]], abs=2e-4)
    assert entry["loss"] == pytest.approx(each["loss"], abs=2e-4)  # is of the steps, not of the means


@pytest.mark.parametrize("name", learning_run.WAYS)
def test_a_way_is_how_the_model_runs(name: str, task: Task) -> None:
    way = learning_run.WAYS[name]
    model = learning_run.build(task, way, seed=0, device="cpu")
    assert model.aim.execution == Execution(way.attention, way.fused, way.memory, way.frozen_precision)
    first = learning_run.build(task, learning_run.WAYS["modules"], seed=0, device="cpu")
    assert all(torch.equal(ours, other) for ours, other in zip(model.parameters(), first.parameters(), strict=True))


def test_a_run_learns_and_is_tested(task: Task) -> None:
    entry = run(task, "held", 0, steps=40)
    assert entry["mean_losses"][0] > 0.5 > 0.1 > entry["mean_losses"][-1]
    assert entry["loss"] == pytest.approx(sum(entry["mean_losses"]) / 40, abs=1e-4)
    assert entry["accuracy"] == 1.0 and entry["seconds"] > 0
    frames, labels = task.test
    swapped = task._replace(test=(frames, torch.where(torch.arange(TEST_CLIPS) < 2, 1 - labels, labels)))
    assert run(swapped, "held", 0, steps=40)["accuracy"] == 1 - 2 / TEST_CLIPS


def test_mirrors_half_of_the_batches(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = learning_run.build(task, learning_run.WAYS["modules"], seed=0, device="cpu"), []
    logits_of = learning_run.logits_of

    def watched(model: nn.Module, frames: Tensor) -> Tensor:
        seen.append(frames)
        return logits_of(model, frames)

    monkeypatch.setattr(learning_run, "logits_of", watched)
    learning_run.fit(model, task.train, seed=0, steps=10)
    kinds = {(among(video, task.train[0]), among(video, task.train[0].flip(-1))) for video in seen}
    assert kinds == {(True, False), (False, True)}


def among(clips: Tensor, frames: Tensor) -> bool:
    return all(any(torch.equal(clip, each) for each in frames) for clip in clips)


def test_a_loss_that_is_not_finite_is_an_error(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_run, "LEARNING_RATE", 1e30)
    with pytest.raises(ArithmeticError, match=r"not finite, first at step [12]"):
        run(task, "modules", 0)


def test_asks_trained_models_in_fp8_too(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    answers, asked = learning_run.answers, []

    def rounded(model: Any, frames: Tensor) -> Tensor:
        asked.append(model.aim.execution.frozen_precision)
        monkeypatch.setattr(model.aim, "execution", Execution())  # a CPU has no such products
        logits = answers(model, frames)
        return logits if asked == ["auto"] else logits + torch.tensor([0.0, 0.1])

    monkeypatch.setattr(learning_run, "why_not", lambda *_: None)
    monkeypatch.setattr(learning_run, "answers", rounded)
    cosine = run(task, "held", 0, steps=2)["cosine"]
    assert asked == ["auto", "fp8"]
    assert cosine["least"] < cosine["mean"] < 1
    asked.clear()
    assert "cosine" not in run(task, "fused", 0, steps=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", learning_run.WAYS)
def test_every_way_learns_on_a_gpu(name: str, task: Task) -> None:
    if (why := learning_run.why_not(name, "cuda")) is not None:
        pytest.skip(why)
    entry = run(task, name, 0, steps=25, device="cuda")
    assert entry["mean_losses"][-1] < 0.2 and entry["accuracy"] == 1.0
    assert ("cosine" in entry) == (name == "held" and learning_run.why_not("fp8", "cuda") is None)


def test_a_process_of_its_own_trains_the_same(file: Path, runs: dict[tuple[str, int], dict[str, Any]]) -> None:
    entry = learning.apart(file, "modules", 1, steps=STEPS, device="cpu", threads=1, window=1)
    assert entry["mean_losses"] == pytest.approx(runs["modules", 1]["mean_losses"], abs=2e-4)
    assert entry.keys() == runs["modules", 1].keys()


@pytest.mark.parametrize(("stderr", "words"), [("a trace\nValueError: boom\n", "ValueError: boom"), ("", "status -9")])
def test_a_process_that_fails_says_why(stderr: str, words: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), -9, "", stderr))
    with pytest.raises(RuntimeError, match=words):
        learning.apart(file, "held", 0, steps=1, device="cpu", threads=None)


# All runs


def test_the_result_holds_what_was_trained(
    runs: dict[tuple[str, int], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, result = measure(tmp_path, lambda name, seed: runs[name, seed], "modules", "fused", seeds=2)
    assert result["complete"] and result["met"] == (status == 0)
    assert {
        (name, int(seed)): entry for name, way in result["ways"].items() for seed, entry in way["runs"].items()
    } == runs
    losses = [runs["modules", seed]["loss"] for seed in range(2)]
    assert result["ways"]["modules"]["loss"] == pytest.approx(
        {"mean": sum(losses) / 2, "sd": abs(losses[0] - losses[1]) / math.sqrt(2)}
    )
    assert abs(result["ways"]["fused"]["loss_change"]["mean"]) < 1e-4
    assert "loss_change" not in result["ways"]["modules"]
    assert {"benchmark", "question", "ran_on", "targets"} <= result.keys()
    assert "fused     seed 1" in capsys.readouterr().out


def met(result: dict[str, Any]) -> dict[str, bool]:
    return {entry["what"].partition(",")[0]: entry["met"] for entry in result["targets"]}


def test_what_learns_the_same_meets_the_targets(tmp_path: Path) -> None:
    status, result = measure(tmp_path, made(loss=0.0138, accuracy=-0.0276, cosine=0.9991))
    assert status == 0 and result["met"] and all(met(result).values())
    assert len(result["targets"]) == 5
    shares = [entry["value"] for entry in result["targets"] if "seeds differ" in entry["what"]]
    assert shares == pytest.approx([0.0138 / (0.01 * 2**0.5)] * 2)
    assert result["ways"]["held"]["cosine"] == pytest.approx({"mean": 0.9991, "least": 0.6})


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"loss": 0.0145}, "held: mean change of the final loss"),
        ({"loss": -0.0145}, "held: mean change of the final loss"),
        ({"accuracy": -0.029}, "held: mean change of the test accuracy"),
        ({"cosine": 0.9989}, "held: mean cosine of test logits with products in fp8 to those without"),
        ({"level": 0.45}, "modules: test accuracy"),
    ],
)
def test_what_learns_otherwise_misses_its_target(changes: dict[str, float], missed: str, tmp_path: Path) -> None:
    status, result = measure(tmp_path, made(**changes))
    assert status == 1 and not result["met"] and result["complete"]
    assert [what for what, good in met(result).items() if not good] == [missed]


def test_a_way_that_loses_gradients_misses(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = learning_run.build

    def broken(task: Task, way: learning_run.Way, **options: Any) -> nn.Module:
        model = build(task, way, **options)
        for parameter in model.parameters() if way is learning_run.WAYS["held"] else ():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: 0.01 * torch.randn_like(gradient))
        return model

    monkeypatch.setattr(learning_run, "build", broken)
    _, result = measure(tmp_path, partial(run, task, steps=8), "modules", "held", "fused", seeds=2)
    assert not met(result)["held: mean change of the final loss"]
    assert met(result)["fused: mean change of the final loss"]


def test_differences_are_between_runs_with_the_same_seed() -> None:
    found = learning_summary.change([(1.1, 1.0), (5.2, 5.0), (9.3, 9.0)])
    assert found == pytest.approx({"mean": 0.2, "se": 0.1 / math.sqrt(3), "t": 2 * math.sqrt(3)})
    assert learning_summary.change([(1.0, 1.0), (2.0, 2.0)]) == {"mean": 0.0, "se": 0.0, "t": None}
    assert learning_summary.change([(1.0, 2.0)]) is None


def test_seeds_that_agree_leave_what_can_be_told_apart(tmp_path: Path) -> None:
    def each(name: str, seed: int) -> dict[str, Any]:
        return {"loss": 0.2, "accuracy": 0.9 + 0.02 * (name == "held"), "mean_losses": [0.2], "seconds": 1.0}

    assert measure(tmp_path, each, test_clips=50)[0] == 0  # one clip
    assert measure(tmp_path, each, test_clips=100)[0] == 1  # two


def test_a_run_that_fails_is_recorded_and_missed(tmp_path: Path) -> None:
    def each(name: str, seed: int) -> dict[str, Any]:
        if (name, seed) == ("held", 1):
            raise RuntimeError("boom")
        return made()(name, seed)

    status, result = measure(tmp_path, each)
    assert status == 1 and result["complete"]
    assert result["ways"]["held"]["runs"]["1"] == {"error": "RuntimeError: boom"}
    assert [what for what, good in met(result).items() if not good] == ["share of runs that ended"]


def test_what_was_cut_short_is_a_result(tmp_path: Path) -> None:
    def each(name: str, seed: int) -> dict[str, Any]:
        if seed == 3:
            raise KeyboardInterrupt
        return made()(name, seed)

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, each)
    result = json.loads((tmp_path / "learning.json").read_text())
    assert not result["complete"] and "met" not in result
    assert {name: len(way["runs"]) for name, way in result["ways"].items()} == {"modules": 3, "held": 3}
    assert result["ways"]["held"]["loss_change"]["mean"] == pytest.approx(0)


# The command


def test_leaves_out_what_the_device_has_not(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def apart(path: Path, name: str, seed: int, **options: Any) -> dict[str, Any]:
        asked.append((name, seed, options))
        return made()(name, seed)

    monkeypatch.setattr(learning, "apart", apart)
    argv = f"--task {file} --seeds 3 --steps 7 --jobs 2 --device cpu --out {tmp_path}"
    assert learning.main(argv.split()) == 0
    options = {"steps": 7, "window": 25, "device": "cpu", "threads": 1}
    expected = [(name, seed, options) for seed in range(3) for name in ("modules", "fused", "held")]
    assert sorted(asked, key=str) == sorted(expected, key=str)
    result = json.loads((tmp_path / "learning.json").read_text())
    assert result["left_out"] == {"fp8": "float8 needs a CUDA device"} and not result["complete"]
    assert (result["settings"]["steps"], result["settings"]["window"]) == (7, 25)
    assert result["task"]["train_clips"] == CLIPS and result["task"]["model"] == MODEL
    assert str(tmp_path) not in json.dumps(result) and str(file) not in json.dumps(result)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--task {missing}", "there is no file"),
        (
            "--task {other}",
            "holds other tensors than a task; write one by python -m benchmarks.timing.learning --prepare",
        ),
        ("--task {text}", "cannot be read as a task"),
        ("--task {file} --ways modules quick", "invalid choice: 'quick'"),
        ("--task {file} --ways held fp8", "held against modules, which is missing"),
        ("--task {file} --seeds 1", "at least 2 are needed, got 1"),
        ("--task {file} --jobs 0", "must be at least 1, got 600, 0 and 25"),
        ("--task {file} --window 0", "must be at least 1, got 600, 8 and 0"),
        ("--task {file} --prepare x", "not allowed with"),
        ("", "required"),
    ],
)
def test_errors_say_what_is_wrong(
    argv: str, words: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "text").write_text("some text, long enough")
    names = {"file": file, **{name: tmp_path / name for name in ("missing", "other", "text")}}
    with pytest.raises(SystemExit, match="2"):
        learning.main(argv.format(**names).split())
    assert words in " ".join(capsys.readouterr().err.split())
