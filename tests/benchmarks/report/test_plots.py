"""Hold the page of benchmarks and its picture to the results, and the generator to what it says."""

from __future__ import annotations

import copy
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Cpu, Kernel
from benchmarks.report import motion_pictures, pictures, plots, step_tables
from benchmarks.report.pages import measured, ms
from benchmarks.timing import data_parallel, inference, learning, learning_run, step_command, steps, train_step
from benchmarks.timing.steps import Job, Run, StepEffort
from benchmarks.timing.team import PeerError, Team
from tests.benchmarks.made_up import made_up

TEXT = plots.PAGE.read_text(encoding="utf-8")
ALL = {page.name: page.read_text(encoding="utf-8") for page in plots.PAGES}
RESULTS = plots.load()
NUMBER = re.compile(r"\d+\.\d+")


class Made(Cpu):
    """A GPU with made-up clocks and meters."""

    device = "cuda"

    def times(self, step: steps.Step, repeats: int) -> list[float]:
        return [float(step())] * repeats

    def alone(self, step: steps.Step, repeats: int = 5) -> dict[str, float]:
        return {"latency_seconds": 2 * float(step()), "host_seconds": 0.005}

    def joules(self, step: steps.Step, repeats: int) -> float:
        return 64.0

    def peak(self) -> int:
        return 3 * 2**30

    def kernels(self, step: steps.Step, repeats: int) -> list[Kernel]:
        return [Kernel("nvjet", 0.03, ()), Kernel("forward_kernel", 0.01, ())] * repeats


def make_step(task: steps.Task, peer: str, size: Any, device: str) -> steps.Step:
    if size.clips > 64:
        raise torch.OutOfMemoryError("full")
    seconds = {"aim": 0.05, "plain": 0.11, "reference": 0.4}[peer.split("/")[0]]
    return lambda: torch.tensor(seconds * size.clips * size.frames / 256)


def learn(name: str, seed: int) -> dict[str, Any]:
    if (name, seed) == ("fp8", 0):
        raise RuntimeError("boom")
    loss = 0.2 + 0.01 * seed + 0.002 * (name == "held")
    losses = [1.0 + loss] * 25 + [loss] * 15
    entry = {"loss": loss, "accuracy": 0.9, "seconds": 9.0, "mean_losses": learning_run.means(losses, 25)}
    return entry | ({"cosine": {"mean": 0.9993, "least": 0.95}} if name == "held" else {})


def scale(team: Team, peer: str, size: Any, effort: StepEffort) -> dict[str, Any]:
    if peer.startswith("timesformer"):
        raise PeerError("process 1: boom")
    seconds = {"aim/graph": 0.0625, "aim/graph+flat": 0.061, "aim/blocks": 0.08}[peer]
    times = data_parallel.compared([0.06] * 2, [0.0605] * 2, [seconds] * 2, processes=2, clips=size.clips)
    return {**times, "gradient_bytes": 44_000_000, "peak_bytes": 3 * 2**30}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> plots.Results:
    """Results as the benchmarks write them, of models that are not there."""
    folder = tmp_path_factory.mktemp("results")
    on = {**RESULTS["wrap_time"]["ran_on"], "gpus": ["Some GPU"]}
    peers, effort = ("aim/eager", "plain/blocks", "reference/eager"), StepEffort(warmup=1, rounds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "make_step", make_step)
        patch.setattr(steps, "agreement", lambda *_: {"plain": {}})
        patch.setattr(steps, "arithmetic", lambda *_, **__: 10**12)
        patch.setitem(steps.MODELS, "plain", lambda size: None)
        for module in (train_step, inference):
            run = Run(module.TASK, Made(), effort, folder, ceiling=8e14, ran_on=on)
            for clips in (32, 1, 4):
                run.profile = clips == 32
                size = replace(train_step.BASE, clips=clips)
                job = Job(step_command.key_of(size, "cuda"), {peer: (peer, size) for peer in peers})
                steps.measure(run, replace(job, goals=module.goals_of("base-8", size)))
        run = Run(train_step.TASK, Made(), effort, folder, ran_on=on)
        steps.measure(run, train_step.frames_job(("aim/blocks", "plain/blocks")))
        steps.sweep(run, step_command.key_of(train_step.BASE, "cuda"), train_step.BASE, ("aim/eager", "plain/eager"))
        patch.setattr(data_parallel, "time_peer", scale)
        plan = data_parallel.Plan(
            2, data_parallel.PEERS["cuda"], train_step.BASE, "cuda", effort, folder, {"ran_on": on}
        )
        data_parallel.measure(Team(0, Made()), plan)
        patch.setattr(learning, "record", lambda: on)
        about = {"task": {"test_clips": 100}, "settings": {"steps": 40, "window": 25}}
        learning.measure(learn, ("modules", "held", "fp8"), seeds=3, jobs=1, folder=folder, about=about)
    return plots.load(folder)


@pytest.mark.parametrize("page", ALL)
def test_a_page_is_what_the_results_say(page: str) -> None:
    assert plots.fill(ALL[page], RESULTS) == ALL[page], "run python -m benchmarks.report.plots --write"


def test_every_table_is_shown() -> None:
    shown = {page: [name for name, _ in plots.MARKED.findall(text)] for page, text in ALL.items()}
    assert all(len(set(names)) == len(names) > 0 for names in shown.values())
    assert {name for names in shown.values() for name in names} == plots.TABLES.keys()


def test_a_number_of_the_text_stands_in_a_table() -> None:
    tables = "\n".join(make(RESULTS) for make in plots.TABLES.values())
    known = set(NUMBER.findall(tables))
    assert len(known) > 100
    assert set(NUMBER.findall(plots.MARKED.sub("", TEXT))) <= known


@pytest.mark.parametrize("name", plots.PICTURES)
def test_a_picture_is_what_the_results_say(name: str) -> None:
    points, path = plots.PICTURES[name][0](RESULTS), pictures.ASSETS / name
    assert path.exists() == bool(points) == any(name in text for text in ALL.values())
    if points:
        assert json.dumps(points) in html.unescape(path.read_text(encoding="utf-8")), (
            "run python -m benchmarks.report.plots"
        )


@pytest.mark.parametrize("name", plots.PICTURES)
def test_drawing_is_repeatable_and_white(name: str, made: plots.Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = {**made, "temporal_attention": RESULTS["temporal_attention"], "motion": made_up()}
    points_of, draw = plots.PICTURES[name]
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        draw(results, points_of(results), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "fill: #ffffff" in paths[0].read_text(encoding="utf-8")


def test_the_floor_is_the_time_of_a_copy() -> None:
    points = pictures.attention_points(RESULTS)
    shares = [row["peers"]["triton"]["share_of_copy"] for row in measured(RESULTS["temporal_attention"], "main")]
    assert [floor / ours for (_, ours), (_, floor) in zip(points["triton"], points["copy"], strict=True)] == (
        pytest.approx(shares)
    )


def test_points_of_steps(made: plots.Results) -> None:
    assert pictures.frames_points(made) == {
        "aim/blocks": [(frames, pytest.approx(0.05e6 / 256)) for frames in (8, 16, 32, 64)],
        "plain/blocks": [(frames, pytest.approx(0.11e6 / 256)) for frames in (8, 16, 32, 64)],
    }
    batch = pictures.batch_points(made)
    assert [row[0] for row in batch["aim/eager"]] == [1, 2, 4, 8, 16, 32, 64]
    assert batch["plain/eager"][-1] == (64, pytest.approx(32 / 0.11), 3.0)
    parts = pictures.parts_points(made)
    assert list(parts) == ["aim/eager", "plain/blocks"]
    assert parts["aim/eager"]["matrix products"] == pytest.approx(30.0)


def test_tables_of_steps(made: plots.Results) -> None:
    row = "| AIM | no | 50.0 | 640 | 3.0 | 640 | 80 % | 2.00 | 5.00 | 0 |"
    assert row in step_tables.steps(made) and row in step_tables.inference(made)
    assert "1 clip" not in step_tables.steps(made)
    assert "| AIM | no | 1.56 | 6.25 |" in step_tables.steps_of_few(made)
    assert "| AIM | no | 3.13 | 12.5 |" in step_tables.latency(made)
    assert "| AIM | each block | 64 | 4 | 50.0 | 1.000 |" in step_tables.frames(made)
    assert "| 64 | 640, 3.0 | 291, 3.0 |" in step_tables.sweep(made)
    assert "| temporal attention | 10.0 (25 %) | 10.0 (25 %) |" in step_tables.breakdown(made)
    assert "| launches | 2 | 2 |" in step_tables.breakdown(made)
    assert step_tables.cpu(made) == "Not measured."


def test_targets_have_either_limit(made: plots.Results) -> None:
    text = plots.targets(made)
    where = "training step, vit_base_patch16_clip_224, 8 frames, 32 clips: aim/eager against plain/blocks"
    assert f"| {where}, times as fast | 2.20 | ≥ 1.7 | met |" in text
    assert f"| {where}, share of its memory | 1.00 | ≤ 0.75 | MISSED |" in text
    assert "| inference, vit_base_patch16_clip_224, 8 frames, 4 clips: aim/eager against reference/eager" in text


def test_what_scales_and_what_failed(made: plots.Results) -> None:
    text = step_tables.data_parallel(made)
    graph = "| AIM | whole model, CUDA graphs"
    assert f"{graph} | DDP, one bucket | 2 | 60.0 | 60.5 | 62.5 | 96.0 % | 1,024 | 44 | 3.0 |" in text
    assert f"{graph} | one message | 2 | 60.0 | 60.5 | 61.0 | 98.4 % | 1,049 | 44 | 3.0 |" in text
    assert "| AIM | each block | DDP | 2 | 60.0 | 60.5 | 80.0 | 75.0 % | 800 | 44 | 3.0 |" in text
    assert "TimeSformer" not in text
    targets = plots.targets(made)
    assert "| several GPUs, aim/graph+flat: share of linear | 0.9836 | ≥ 0.95 | met |" in targets
    assert "| `data_parallel` | Some GPU |" in plots.ran_on(made)


def test_learning_is_held_against_layer_by_layer(made: plots.Results) -> None:
    text = plots.learning(made)
    assert "| layer by layer, SDPA | 3 | 0.2100 ± 0.0100 | 90.0 ± 0.0 |  |  |  |" in text
    assert "| fused | 3 | 0.2120 ± 0.0100 | 90.0 ± 0.0 | 0.0020 ± 0.0000 | 0.0 ± 0.0 | 0.99930 (0.95000) |" in text
    assert "| fused, frozen products in fp8 | 2 |" in text
    targets = plots.targets(made)
    words = "mean change of the final loss, as a share of what two seeds differ by"
    assert f"| learning, held: {words} | 0.1414 | ≤ 1 | met |" in targets
    assert "| learning, share of runs that ended | 0.8889 | ≥ 1 | MISSED |" in targets
    assert "| `learning` | Some GPU |" in plots.ran_on(made)


def test_points_of_learning(made: plots.Results) -> None:
    points = pictures.learning_points(made)
    assert points["modules"] == [(25, 1.21, 0.01), (40, 0.21, 0.01)]
    assert points["fp8"] == [(25, 1.215, 0.0071), (40, 0.215, 0.0071)]
    assert pictures.LEARNING_COLORS.keys() == learning_run.WAYS.keys()
    runs = {"0": {"mean_losses": [1.0]}, "1": {"error": "no"}}
    one = {"settings": {"steps": 1, "window": 25}, "ways": {"held": {"runs": runs}}}
    assert pictures.learning_points({"learning": one}) == {}


def test_each_table_says_where_it_ran(made: plots.Results) -> None:
    text = plots.ran_on(made)
    assert "| `train_step`, vit_base_patch16_clip_224, 8 frames, 4 clips | Some GPU |" in text
    assert "| `train_step`, sweep, vit_base_patch16_clip_224, 8 frames, 32 clips | Some GPU |" in text


def test_times_of_a_processor_stand_apart(made: plots.Results) -> None:
    results = copy.deepcopy(made)
    tables = results["train_step"]["tables"]
    (key,) = (key for key in tables if key.endswith("32 clips"))
    tables[f"{key}, cpu"] = {**tables[key], "device": "cpu"}
    assert f"| `train_step` | {key} | AIM | 50.0 | 50.0 to 50.0 |" in step_tables.cpu(results)
    assert "cpu" not in step_tables.steps(results)


def test_results_may_be_missing(tmp_path: Path) -> None:
    assert plots.load(tmp_path) == {}
    page = plots.fill(TEXT, {})
    assert page.count("Not measured.") == len(plots.MARKED.findall(TEXT))
    some = {name: RESULTS[name] for name in ("temporal_attention", "wrap_time")}
    page = plots.fill(page, some)
    assert "`wrap_time`" in page
    assert "`checkpoint_io`" not in page
    assert plots.fill(page, RESULTS) == TEXT


def test_a_peer_that_failed_is_left_empty() -> None:
    result = copy.deepcopy(RESULTS["temporal_attention"])
    row = next(measured(result, "main"))
    row["peers"]["flex"] = {"error": "no"}
    del row["speedup"]["flex"]
    assert "|  |" in plots.attention({"temporal_attention": result})
    points = pictures.attention_points({"temporal_attention": result})
    assert len(points["flex"]) == len(points["triton"]) - 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00022, "0.220"), (0.0829951, "83.0"), (0.115, "115"), (5.184, "5,184"), (-0.02726, "-27.3")],
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert ms(seconds) == text


def test_writing_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    pages = [tmp_path / name for name in ("evidence.md", "choosing.md")]
    for page in pages:
        page.write_text(ALL[page.name], encoding="utf-8")
    monkeypatch.setattr(plots, "PAGES", pages)
    monkeypatch.setattr(plots, "PICTURES", motion_pictures.PICTURES)
    monkeypatch.setattr(plots, "VERDICTS", tmp_path / "verdicts.json")
    monkeypatch.setattr(pictures, "ASSETS", tmp_path)
    written = []
    for results in ({"motion": made_up()}, {"motion": made_up()}, RESULTS):
        monkeypatch.setattr(plots, "load", lambda results=results: results)
        assert plots.main(["--write"]) == 0
        written.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert written[0] == written[1] and b'"holds"' in written[0]["verdicts.json"]
    assert {"motion-ladder.svg", "motion-data.svg", "motion-ways.svg"} < written[0].keys()
    for page in pages:
        assert f"](assets/motion-{'ways' if page.stem == 'choosing' else 'data'}.svg)".encode() in written[0][page.name]
        assert written[2][page.name].decode() == ALL[page.name]
