"""`aim-adapters train`."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm

import aim_adapters as aim
from aim_adapters.cli.baselines import BASELINES
from aim_adapters.training import list_baselines
from aim_adapters.training.progress import Progress
from tests.cli.cases import MODEL, run


def test_the_same_command_again_finds_the_run_finished(videos: Path, trained: Path) -> None:
    result = run("train", videos, *MODEL, "--epochs", 1, "--test", videos, "--out", trained, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["steps"] == 1
    assert "is finished" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--epochs", 2), "epochs was 1, is 2"),
        (("--epochs", 1, "--no-resume"), "holds a run"),
        (("--epochs", 1, "--recipe", "small-dat"), "near it: small-data"),
        (("--epochs", 1, "--recipe", "k400-clip-vit-b16-8f"), "does not fit this model"),
    ],
)
def test_what_contradicts_a_run_or_a_model_changes_nothing(
    videos: Path, trained: Path, arguments: tuple[object, ...], said: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    result = run("train", videos, *MODEL, *arguments, "--out", trained)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before


def test_frames_win_over_the_recipe_and_it_is_said(videos: Path, tmp_path: Path) -> None:
    result = run("train", videos, *MODEL, "--recipe", "k400-clip-vit-b16-8f", "--out", tmp_path / "run")
    assert "is for 8 frames; training with --frames 2" in result.stderr


def test_a_recipe_says_how_to_wrap(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def wrap(model: object, **settings: Any) -> None:
        given.update(settings)
        raise aim.ConfigError("seen")

    monkeypatch.setattr("aim_adapters.wrapping.wrap_image_model", wrap)
    options = ("--recipe", "ssv2-clip-vit-b16-8f", "--adapter-activation", "none")
    run("train", videos, *MODEL[:5], *options, "--out", tmp_path / "run")
    assert given["num_frames"] == 8
    assert given["temporal_input_adapter"]
    assert given["adapter_activation"] == "none"
    assert given["labels"] == ("zoom in", "zoom out")


def test_a_convolution_takes_the_place_of_attention_in_any_recipe(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def wrap(model: object, **settings: Any) -> None:
        given.update(settings)
        raise aim.ConfigError("seen")

    monkeypatch.setattr("aim_adapters.wrapping.wrap_image_model", wrap)
    options = ("--recipe", "ssv2-clip-vit-b16-8f", "--temporal", "conv", "--conv-kernel", 5, "--conv-layers", "0,2")
    result = run("train", videos, *MODEL[:5], *options, "--out", tmp_path / "run")
    assert (given["temporal"], given["conv_kernel"], given["conv_layers"]) == ("conv", 5, (0, 2))
    assert not given["temporal_input_adapter"]
    assert "an adapter before temporal attention, of which --temporal conv has none: it is left out" in result.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("nowhere", "there is no folder and no table"),
        ("empty", "has no sub-folders"),
        ("wrong.csv", "no column of paths among 'foo', 'bar'"),
    ],
)
def test_data_that_is_none_is_said(tmp_path: Path, data: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.csv").write_text("foo,bar\na.mp4,1\n")
    result = run("train", tmp_path / data, *MODEL, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


def test_without_network_the_error_says_what_to_do(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("train", videos, "--model", "timm:vit_tiny_patch16_224", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "--model timm:path/to/model" in result.stderr
    assert "--no-pretrained" in result.stderr


def test_a_directory_is_a_model_and_later_commands_find_it(videos: Path, tmp_path: Path) -> None:
    base = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    args = {"img_size": 32, "depth": 2}
    timm.models.save_for_hf(base, tmp_path / "base", model_config={}, model_args=args, safe_serialization=True)
    out = tmp_path / "run"
    options = ("--frames", 2, "--workers", 0, "--epochs", 1, "--out", out)
    result = run("train", videos, "--model", f"timm:{tmp_path / 'base'}", *options)
    assert result.exit_code == 0, result.stderr
    result = run("predict", out, videos / "zoom in" / "0.mp4", "--views", "1x1")
    assert result.exit_code == 0, result.stderr


def test_a_baseline_is_trained_and_used_by_the_same_commands(videos: Path, tmp_path: Path) -> None:
    options = [option for option in MODEL if option not in ("--layers", "11")]
    out = tmp_path / "run"
    result = run("train", videos, *options, "--baseline", "full", "--epochs", 1, "--test", videos, "--out", out)
    assert result.exit_code == 0, result.stderr
    result = run("evaluate", out, videos, "--views", "1x1", "--workers", 0, "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads((out / "run.json").read_text())["result"]["evaluation"]
    assert json.loads(result.stdout)["confusion"] == scores["confusion"]
    result = run("predict", out / "best", videos / "zoom in" / "0.mp4")
    assert result.exit_code == 0, result.stderr


def test_the_baselines_are_those_of_the_library() -> None:
    assert [row.name for row in list_baselines()] == list(BASELINES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("full", "--layers", "11", "--bottleneck", "0.5"), "or none; leave out --bottleneck, --layers\n"),
        (("full", "--temporal", "conv", "--conv-kernel", "5"), "or none; leave out --temporal, --conv-kernel\n"),
        (("joint", "--adapter-activation", "none"), "or none; leave out --adapter-activation\n"),
        (("full", "--memory", "low"), "the baseline full has no memory modes"),
        (("video-swin", "--image-size", "32"), "leave out --model and --image-size"),
        (("timesformer", "--model", "timm:vit_tiny_patch16_224"), "leave out --model and --image-size"),
    ],
)
def test_what_a_baseline_has_not_is_refused(
    videos: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    model = MODEL[2:3] if arguments[0] in ("video-swin", "timesformer") else MODEL[:5]
    result = run("train", videos, *model, "--baseline", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_training_after_a_checkpoint(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    advance = Progress.advance

    def interrupted(self: Progress, step: int, **facts: Any) -> None:
        advance(self, step, **facts)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "advance", interrupted)
    result = run("train", videos, *MODEL, "--epochs", 9, "--out", tmp_path, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == {"out": str(tmp_path), "stopped": True}
    assert (tmp_path / "checkpoints").is_dir()
