"""`evaluate`, `predict`, `check`, `recipes` and `backbones`."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

import aim_adapters as aim
from aim_adapters.backbones import list_models
from tests.cli.cases import CLASSES, run


def test_evaluate_prints_scores_and_writes_predictions(videos: Path, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.csv"
    result = run("evaluate", trained, videos, "--views", "1x3", "--predictions", file, "--workers", 0, "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert scores["count"] == 4
    assert scores["views"] == "1x3"
    assert [row["label"] for row in csv.DictReader(file.read_text().splitlines())] == [
        *CLASSES[:1] * 2,
        *CLASSES[1:] * 2,
    ]


def test_predict_gives_labels_as_the_library_does(videos: Path, trained: Path) -> None:
    file = videos / "zoom in" / "0.mp4"
    result = run("predict", trained, file, "--top", 1, "--json")
    assert result.exit_code == 0, result.stderr
    [prediction] = json.loads(result.stdout)["predictions"]
    assert prediction["file"] == str(file)
    assert prediction["classes"][0]["label"] in CLASSES
    for folder in (trained / "best", trained / "checkpoints" / "step-0000001"):
        again = run("predict", folder, file)
        assert f"{prediction['classes'][0]['probability']:6.1%}" in again.stdout


@pytest.mark.parametrize("text", ['{"image_size": "x"}', '{"model": 1}', '{"baseline": {"x": 1}}', "[]", "{"])
def test_a_damaged_note_of_the_model_is_said(trained: Path, tmp_path: Path, text: str) -> None:
    run_folder = shutil.copytree(trained, tmp_path / "run")
    (run_folder / "base_model.json").write_text(text)
    result = run("predict", run_folder, trained)
    assert result.exit_code == 1
    assert f"error: {run_folder / 'base_model.json'}" in result.stderr


def test_predict_classifies_the_others_if_one_is_broken(videos: Path, trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    (tmp_path / "empty").mkdir()
    options = (videos / "zoom in", tmp_path / "empty", "--views", "1x1")
    result = run("predict", trained, broken, *options)
    assert result.exit_code == 1
    assert f"error: {broken}" in result.stderr
    assert "nor are there videos in it" in result.stderr
    assert result.stdout.count("zoom in/") == 2
    # The same in a folder.
    result = run("predict", trained, tmp_path, *options, "--json")
    assert result.exit_code == 1
    answers = json.loads(result.stdout)
    assert [row["file"] for row in answers["failed"]] == [str(broken), str(tmp_path / "empty")]
    assert len(answers["predictions"]) == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("predict", "{trained}", "nowhere.mp4"), "there is no file 'nowhere.mp4'"),
        (("predict", "{videos}", "{videos}"), "holds no adapter_model.safetensors"),
        (("evaluate", "{trained}", "{videos}/zoom in"), "has videos directly in it (2)"),
        (("evaluate", "{trained}", "{videos}/zoom in/0.mp4"), "is one video"),
        (("predict", "{trained}", "{videos}/zoom in/0.mp4", "--device", "gpu"), "--device gpu cannot be used"),
        (("check", "{videos}/nowhere"), "nowhere"),
        (("recipes", "k400"), "no recipe 'k400'"),
        (("backbones", "resnet"), "no image model is like 'resnet'"),
        (("backbones", "--library", "keras"), "expected one of open_clip"),
    ],
)
def test_failures_are_said_in_a_line(videos: Path, trained: Path, command: tuple[str, ...], said: str) -> None:
    arguments = [part.format(videos=videos, trained=trained) for part in command]
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run(*arguments, "--debug").stderr
    assert said in json.loads(run(*arguments, "--json").stdout)["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("train", "data"),
        ("train", "data", "--out", "x", "--memory", "little"),
        ("train", "data", "--out", "x", "--layers", "1,two"),
        ("train", "data", "--out", "x", "--image-size", "0"),
        ("evaluate", "run", "data", "--views", "3"),
        ("evaluate", "run", "data", "--predictions", "answers.txt"),
        ("predict", "run"),
        ("predict", "run", "a.mp4", "--top", "0"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_a_run_that_has_not_ended_says_what_there_is(tmp_path: Path) -> None:
    for name in ("checkpoints", "best"):
        (tmp_path / name).mkdir()
    result = run("predict", tmp_path, tmp_path)
    assert result.exit_code == 1
    assert f"has not ended: train it to its end, or take {tmp_path / 'best'}" in result.stderr


def test_an_interrupted_command_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aim_adapters.video.check_videos", interrupt)
    result = run("check", tmp_path, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"] == "interrupted"


def test_check_fails_if_a_video_is_broken(videos: Path, tmp_path: Path) -> None:
    assert run("check", videos, "--workers", 0).exit_code == 0
    shutil.copytree(videos, tmp_path / "some")
    (tmp_path / "some" / "zoom in" / "0.mp4").write_bytes(b"no video")
    result = run("check", tmp_path / "some", "--workers", 0, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["broken"] == 1
    assert "broken: zoom in/0.mp4" in run("check", tmp_path / "some", "--workers", 0, "--full").stdout


def test_recipes_fit_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = aim.list_recipes()
    assert [row["name"] for row in json.loads(run("recipes", "--json").stdout)] == [row.name for row in rows]
    monkeypatch.setenv("COLUMNS", "120")
    assert len(run("recipes").stdout.splitlines()) == len(rows) + 1
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, run("recipes").stdout.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "60")
    lines = run("recipes", "k400-clip-vit-b16-8f").stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert re.fullmatch(r"name +k400-clip-vit-b16-8f", lines[0])
    assert json.loads(run("recipes", "small-data", "--json").stdout)["name"] == "small-data"


def test_backbones_are_names_that_train_takes() -> None:
    names = run("backbones").stdout.splitlines()
    assert "timm:vit_base_patch16_clip_quickgelu_224.openai" in names
    assert "open_clip:ViT-B-16:openai" in names
    assert run("backbones", "vit_b_16*").stdout.splitlines() == [
        f"torchvision:{name}" for name in list_models("torchvision") if name.startswith("vit_b_16")
    ]
    assert "transformers:user/name" in run("backbones", "--library", "transformers").stderr
