"""Every way and experiment in small, on the CPU: what runs on a GPU for minutes is not to fail there."""

from __future__ import annotations

import math
import queue
import re
import threading
import types
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import aim_adapters as aim
from benchmarks.motion import costs, run, ways, worker
from benchmarks.motion.experiments import EXPERIMENTS, SHARES, Job
from benchmarks.motion.results import load, read_rows
from benchmarks.motion.worker import Sources, Worker
from tests.benchmarks.made_up import made_up
from tests.benchmarks.scenes import scenes

SMALL = "vit_tiny_patch16_224"
LEFT_OUT = {"fp8", "graphs", "ratio-0.125", "ratio-0.5", "top"}  # need a GPU, or are others with another number
JOBS = {job.way: job for jobs in EXPERIMENTS.values() for job in jobs if job.backbone == "dinov2-small"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_file(timm.create_model(SMALL, num_classes=0).state_dict(), ways.weights_of("dinov2-small", folder))
    return folder


@pytest.fixture
def small(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setitem(ways.BACKBONES, "dinov2-small", ways.Backbone(SMALL, size=32))
    monkeypatch.setattr(worker, "load_photographs", lambda path, device: scenes())
    monkeypatch.setattr(worker, "CLIPS", 12)
    original = worker.load_task
    monkeypatch.setattr(worker, "load_task", lambda *args, **settings: original(*args, **settings, test_clips=12))
    return Sources(Path(), weights, "cpu", math.inf, {"gpu": "CPU", "commit": "here"})


@pytest.fixture
def each(small: Sources) -> Worker:
    return Worker(small)


def shortened(job: Job) -> Job:
    return job._replace(seeds=(0,), frames=2, clips=12, batch=12, steps=3, variant="order")


@pytest.mark.filterwarnings("ignore:temporal embedding interpolated:UserWarning")  # what "resized" is about
def test_every_way_trains_and_is_tested(each: Worker) -> None:
    for way in sorted(set(JOBS) - LEFT_OUT):
        (row,), classes = each.run(shortened(JOBS[way]))
        assert row["way"] == JOBS[way].name and 0 <= row["accuracy"] <= row["what"] <= 100
        assert bool(classes) == (way in worker.PER_CLASS and JOBS[way].experiment in ("ladder", "ways"))


def test_seeds_differ_and_repeat(each: Worker) -> None:
    job = shortened(JOBS["joint"])
    drawn = []
    for seed in (0, 1, 0):
        parameters = aim.trainable_parameters(each._training(job, seed, order=seed).model)
        drawn.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert drawn[0].equal(drawn[2]) and not drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("found", "what", "order"),
    [((0, 1, 2, 2), 100, 100), ((1, 0, 2, 2), 100, 0), ((2, 1, 2, 0), 50, 100), ((2, 2, 2, 2), 50, 0)],
)
def test_scores_tell_what_from_order(found: tuple[int, ...], what: float, order: float) -> None:
    clips = worker.Clips(torch.empty(4, 0), torch.tensor([0, 1, 2, 2]))
    task = worker.Task(clips, clips, ("in", "out", "still"), (0, 0, 1), 2 / 3)
    scores = worker._scores(torch.tensor(found), task)
    assert (scores["what"], scores["order"]) == (what, order)
    assert scores["accuracy"] == 25 * sum(a == b for a, b in zip(found, (0, 1, 2, 2), strict=True))


@pytest.fixture
def command(small: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a command whose processes are threads here, which see what is small."""
    threads = types.SimpleNamespace(Queue=queue.Queue, Process=threading.Thread)
    monkeypatch.setattr(run.multiprocessing, "get_context", lambda method: threads)
    return ["ladder", "--photographs", "none", "--out", str(tmp_path), "--device", "cpu", "--weights",
            str(small.weights), "--workers", "1"]  # fmt: skip


def ladder(monkeypatch: pytest.MonkeyPatch, *jobs: Job) -> None:
    short = {"frames": 2, "clips": 12, "batch": 12, "steps": 3}
    monkeypatch.setitem(run.EXPERIMENTS, "ladder", tuple(job._replace(**short) for job in jobs))


def test_what_has_run_is_not_run_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job("ladder", "order", "spatial", seeds=(0, 1, 4))
    ladder(monkeypatch, job, job._replace(backbone="clip-base"))
    found, said = [], []
    for options in (["--seeds", "1"], ["--side-by-side", "1"], []):
        assert run.main([*command, *options]) == 0
        found.append([row["seed"] for row in read_rows(tmp_path / "runs.csv")])
        said.append(capsys.readouterr().out)
        assert "LEFT OUT: jobs of clip-base: no" in said[-1]
    assert re.findall(r"seeds [^:]*", said[1]) == ["seeds 1", "seeds 4"]
    assert found == [["0"], ["0", "1", "4"], ["0", "1", "4"]]
    assert len(read_rows(tmp_path / "classes.csv")) == 36
    assert len(load(tmp_path).runs) == 3


def test_jobs_that_fail_or_have_no_time_are_told(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder(monkeypatch, Job("ladder", "order", "frozen", rate=math.nan), Job("ladder", "order", "spatial", seeds=(0,)))
    assert run.main(command) == 1
    said = capsys.readouterr().out
    assert (
        "FAILED ladder order frozen, learning rate nan, seeds 0, 1, 2, 4, 5: ArithmeticError: a loss is not finite"
        in said
        and "NOT RUN" not in said
    )
    assert [row["way"] for row in read_rows(tmp_path / "runs.csv")] == ["spatial"]
    assert run.main([*command, "--seconds", "0"]) == 1
    assert "NOT RUN: 1 of 1 jobs" in capsys.readouterr().out


def test_costs_are_measured_of_what_has_run_too(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder(monkeypatch, Job("ladder", "order", "joint", seeds=(0,)), Job("ladder", "order", "lora", seeds=(0,)))
    monkeypatch.setattr(run, "SIZE_OF_COSTS", 32)
    monkeypatch.setattr(run, "measure", lambda *_: costs.Cost(1, 2, 3.0, 4.0, 5.0, 6.0))
    assert run.main(command) == 0
    for options in (["--ways", "joint"], [], ["--done", str(tmp_path), "--out", str(tmp_path / "more")]):
        assert run.main([*command, "--costs", "--workers", "0", *options]) == 0
    assert [row["way"] for row in read_rows(tmp_path / "costs.csv")] == ["joint", "lora"]
    assert not read_rows(tmp_path / "more" / "costs.csv")


@pytest.mark.parametrize("option", ["--seeds", "--side-by-side", "--steps"])
@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_are_positive(option: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["ladder", "--photographs", "none", "--weights", "none", f"{option}={number}"])
    assert f"expected a number of 1 or more, got '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "two"])
def test_a_rate_is_above_nothing(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["ladder", "--photographs", "none", "--weights", "none", f"--rate={rate}"])
    assert f"expected a learning rate above 0, got '{rate}'" in capsys.readouterr().err


def test_slow_jobs_come_first() -> None:
    jobs = {name: Job("ladder", "order", name) for name in ("joint", "average", "full-space-time")}
    assert sorted(jobs.values(), key=run._work_of, reverse=True) == [*jobs.values()][::-1]
    assert run._work_of(jobs["joint"]._replace(steps=7000)) > run._work_of(jobs["full-space-time"])


@pytest.mark.parametrize("option", ["--steps=3", "--rate=0.1"])
def test_what_is_tried_is_kept_apart(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["ladder", "--photographs", "none", "--weights", "none", option])
    assert "pass an --out of their own" in capsys.readouterr().err


def test_each_run_has_a_key_of_its_own_and_whole_scenes() -> None:
    jobs = [job for jobs in EXPERIMENTS.values() for job in jobs]
    keys = [job.key(seed) for job in jobs for seed in job.seeds]
    assert len(set(keys)) == len(keys) and {run.key for run in made_up().runs} == set(keys)
    assert all(job.clips % 12 == job.batch % 12 == 0 for job in jobs if job.variant == "order")
    assert all(len(job.seeds) >= 3 for job in jobs if job.experiment != "rates")
    assert {job.clips for job in EXPERIMENTS["data"]} == {12 * round(share * 684) for share in SHARES}
