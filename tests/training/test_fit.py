from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.recipes import get_recipe
from aim_adapters.training import gradient_bytes
from aim_adapters.video import ClipTransform, VideoFolder, transform_for
from tests.training.cases import CLASSES, FRAMES, equal, fit, folder, model, videos, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[aim.FitResult, nn.Module]:
    """Return an uninterrupted run, and its model."""
    net = model()
    return fit(net, tmp_path_factory.mktemp("whole") / "run", save_every=3, keep=9, ema=0.5, max_norm=1.0), net


def test_a_run_trains_saves_and_says_what_it_did(whole: tuple[aim.FitResult, nn.Module]) -> None:
    result, net = whole
    assert result.steps == 8 and len(result.losses) == 8
    rates = [record["lr"] for record in result.history]
    recipe = get_recipe("small-data")
    highest = recipe.learning_rate * 6 / recipe.batch_size
    assert max(rates) <= highest * 1.0001 and rates[0] < highest and rates[-1] < rates[2]
    assert {path.name for path in (result.out / "checkpoints").iterdir()} == {f"step-000000{k}" for k in (3, 6, 8)}
    settings = json.loads((result.out / "run.json").read_text())["settings"]
    assert settings["total_batch"] == 6 and settings["labels"] == list(CLASSES)
    config = json.loads((result.out / "adapter_config.json").read_text())
    assert config["clip"]["labels"] == list(CLASSES) and config["drop_path"] == recipe.drop_path
    assert not net.training
    assert "8 steps" in str(result) and json.dumps(result.to_dict())
    # The averaged weights are what was saved and what the model holds, and not those of the last step.
    saved, last = model(), model()
    aim.load_adapters(saved, result.out)
    aim.load_adapters(last, result.out / "checkpoints" / "step-0000008")
    assert equal(weights(saved), weights(net)) and not equal(weights(last), weights(net))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_from_the_middle_of_an_epoch_to_the_bit(
    whole: tuple[aim.FitResult, nn.Module], tmp_path: Path, workers: int
) -> None:
    result, net = whole
    shutil.copytree(result.out / "checkpoints" / "step-0000003", tmp_path / "run" / "checkpoints" / "step-0000003")
    (tmp_path / "run" / "checkpoints" / ".part-5").mkdir()  # what a kill in the middle of a save leaves
    resumed = model()
    again = fit(resumed, tmp_path / "run", save_every=3, ema=0.5, max_norm=1.0, workers=workers)
    assert again.losses == result.losses
    assert equal(weights(resumed), weights(net))
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == (
        result.out / "adapter_model.safetensors"
    ).read_bytes()
    finished = fit(model(), tmp_path / "run", save_every=3, ema=0.5, max_norm=1.0)
    assert finished.seconds == 0 and finished.losses == result.losses


def test_accumulated_passes_are_one_batch(tmp_path: Path) -> None:
    still = {"recipe": dataclasses.replace(get_recipe("small-data"), drop_path=0.0, head_dropout=0.0)}
    whole, parts = model(), model()
    one = fit(whole, tmp_path / "one", **still)
    two = fit(parts, tmp_path / "two", batch_size=2, accumulate=3, **still)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    for a, b in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # AdamW turns rounding of small gradients into steps


def test_a_run_that_was_ended_after_its_last_step_is_finished_later(tmp_path: Path) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(model(), tmp_path, epochs=1, callbacks=[interrupt])
    assert not (tmp_path / "adapter_model.safetensors").exists()
    net = model()
    assert fit(net, tmp_path, epochs=1).steps == 4
    aim.load_adapters(saved := model(), tmp_path)
    assert equal(weights(saved), weights(net)) and (tmp_path / "run.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_before_it_ends_the_run(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    ending = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(ending) as ended:
        fit(model(), tmp_path / "run", callbacks=[interrupt])
    if number == signal.SIGTERM:
        assert ended.value.code == 0
    assert signal.getsignal(number) is handler
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]
    assert fit(model(), tmp_path / "run").steps == 8


def test_a_loss_that_is_no_number_names_the_clips_and_changes_nothing(tmp_path: Path) -> None:
    net = model()
    before: list[torch.Tensor] = []

    def poison(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            before.extend(weights(net))
            net.patch_embed.proj.register_forward_hook(lambda module, inputs, output: output * float("nan"))

    with pytest.raises(aim.TrainingError, match=r"loss of step 4 is nan, with clips '(left|right|up)/\d\.mp4'"):
        fit(net, tmp_path / "run", callbacks=[poison])
    assert equal(before, weights(net))


def test_out_of_memory_says_what_to_try(tmp_path: Path) -> None:
    net = model()

    def exhaust(module: nn.Module, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    net.blocks[0].register_forward_pre_hook(exhaust)
    with pytest.raises(aim.TrainingError, match=r"batch_size=6.*memory='balanced'.*batch_size=3 with accumulate=2"):
        fit(net, tmp_path / "run")


def test_broken_videos_are_replaced_counted_and_limited(tmp_path: Path) -> None:
    train = folder("train")
    with pytest.warns(UserWarning, match=r"up/7\.mp4: .*; it is left out"):
        aim.fit(model(), train, out=tmp_path / "a", epochs=1, batch_size=6, workers=0, progress=False)
    assert [record.name for record in train.skipped] == ["up/7.mp4"]
    with (
        pytest.raises(aim.VideoError, match=r"1 of 24 videos .* more than max_skipped=0\.01"),
        pytest.warns(UserWarning),
    ):
        aim.fit(
            model(), folder("train"), out=tmp_path / "b", epochs=1, batch_size=6, workers=0, progress=False,
            max_skipped=0.01,
        )  # fmt: skip


def test_a_test_set_is_evaluated_and_the_best_adapters_are_kept(tmp_path: Path) -> None:
    net = model()
    result = fit(net, tmp_path / "run", test=folder("test"), views="2x1")
    assert [record["epoch"] for record in result.history if "top1" in record] == [1, 2]
    assert result.evaluation is not None and result.evaluation.views == "2x1" and result.evaluation.count == 9
    assert result.best is not None and (tmp_path / "run" / "best" / "adapter_model.safetensors").is_file()
    assert aim.clip_spec(net).labels == CLASSES


def test_what_the_data_was_made_with_is_used(tmp_path: Path) -> None:
    net = model()
    train = folder("train", stride=2, transform=transform_for(net, train=True))
    fit(net, tmp_path / "a", train=train, epochs=1)
    assert aim.clip_spec(net).stride == 2
    fit(model(), tmp_path / "b", dummy_data=True, precision="bf16", epochs=1)


def test_only_what_trains_counts_as_gradients() -> None:
    assert gradient_bytes(model()) == 4 * aim.count_parameters(model()).trainable


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "recipe": ({"recipe": "small-dat"}, "near it: small-data"),
    "recipe of another model": (
        {"recipe": "k400-clip-vit-b16-8f"},
        "12 blocks of width 768",
    ),
    "epochs": ({"epochs": 0}, "epochs"),
    "batch_size": ({"batch_size": 0}, "batch_size"),
    "precision": ({"precision": "int8"}, "precision"),
    "fp8 on a CPU": ({"precision": "fp8"}, "needs a GPU"),
    "execution": ({"execution": "graphs"}, "needs a CUDA device"),
    "sharding": ({"sharding": "zero"}, "sharding"),
    "resume": ({"resume": True}, "holds no checkpoint"),
    "views": ({"views": "0x1", "test": "test"}, "views"),
    "learning_rate": ({"learning_rate": -1.0}, "learning_rate"),
    "ema": ({"ema": 1.0}, "ema"),
    "workers": ({"workers": -1}, "workers"),
    "seed": ({"seed": 0.5}, "seed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_said_before_anything_is_written(tmp_path: Path, name: str) -> None:
    settings, message = WRONG[name]
    if "test" in settings:
        settings = {**settings, "test": folder("test")}
    net = model()
    config = aim.list_adapters(net)
    with pytest.raises((aim.ConfigError, aim.CheckpointError), match=message):
        fit(net, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists() and aim.list_adapters(net) == config


def test_data_that_does_not_fit_the_model_is_named(tmp_path: Path) -> None:
    others = VideoFolder(videos() / "train", num_frames=FRAMES, labels=(*CLASSES, "down"), allow_empty=True)
    with pytest.raises(aim.ConfigError, match=r"only in train: .*down"):
        aim.fit(model(), others, out=tmp_path)
    with pytest.raises(aim.ConfigError, match=r"only in test: .*down"):
        more = VideoFolder(videos() / "test", FRAMES, labels=(*CLASSES, "down"), allow_empty=True)
        aim.fit(model(), folder("train"), more, out=tmp_path)
    with pytest.raises(aim.ConfigError, match="clips of 8 frames, the model reads 4"):
        aim.fit(model(), VideoFolder(videos() / "train", num_frames=8, labels=CLASSES), out=tmp_path)
    with pytest.raises(TypeError, match="train must be a VideoFolder"):
        aim.fit(model(), videos() / "train", out=tmp_path)  # type: ignore[arg-type]


def test_another_run_in_the_folder_is_refused(whole: tuple[aim.FitResult, nn.Module]) -> None:
    out = whole[0].out
    with pytest.raises(aim.ConfigError, match="other settings: epochs was 2, is 3"):
        fit(model(), out, epochs=3, ema=0.5, max_norm=1.0)
    with pytest.raises(aim.ConfigError, match="holds a run, up to step-0000008"):
        fit(model(), out, resume=False)
    with pytest.raises(aim.CheckpointError, match=r"cannot resume: .* is no checkpoint of a run"):
        fit(model(), out, resume=out / "checkpoints")
    same: dict[str, Any] = {"ema": 0.5, "max_norm": 1.0}
    with pytest.raises(aim.ConfigError, match="holds another checkpoint, step-0000008"):
        fit(model(), out, resume=out / "checkpoints" / "step-0000003", **same)
    with pytest.raises(aim.ConfigError, match="dummy_data was False, is True"):
        fit(model(), out, dummy_data=True, **same)
    with pytest.raises(aim.ConfigError, match=r"label_smoothing of the recipe was 0\.0, is 0\.1"):
        fit(model(), out, recipe=dataclasses.replace(get_recipe("small-data"), label_smoothing=0.1), **same)
    with pytest.raises(aim.ConfigError, match=r"data was '.*', is"):
        fit(model(), out, train=folder("train").subset(range(23, -1, -1)), **same)
    with pytest.raises(aim.ConfigError, match="holds adapters, and no checkpoint"):
        fit(model(), aim.save_adapters(model(), out.parent / "saved"))


def test_rates_of_the_recipe_are_applied_where_none_were_chosen(tmp_path: Path) -> None:
    net = model(drop_path=0.4)
    fit(net, tmp_path / "run", epochs=1)
    config = aim.list_adapters(net)["default"]
    assert (config.drop_path, config.head_dropout) == (0.4, 0.5)
    other = model()
    fit(other, tmp_path / "other", epochs=1, recipe=dataclasses.replace(get_recipe("small-data"), drop_path=0.2))
    assert other.blocks[-1].aim.drop_path == 0.2 and other.blocks[0].aim.drop_path == 0


def test_a_transform_of_ones_own_is_kept(tmp_path: Path) -> None:
    seen = []

    class Own(ClipTransform):
        def with_label(self, frames: torch.Tensor, label: int) -> tuple[torch.Tensor, int]:
            seen.append(frames.shape)
            return super().with_label(frames, label)

    train = folder("train", transform=Own((16, 16), train=True))
    fit(model(), tmp_path, train=train, epochs=1)
    assert len(seen) == 24


def test_an_evaluation_that_was_interrupted_is_made_up_for(tmp_path: Path) -> None:
    test = folder("test")
    whole = fit(model(), tmp_path / "whole", test=test)
    started = []

    def stop(module: nn.Module, inputs: Any) -> None:
        if not module.training and not started:
            started.append(True)
            raise KeyboardInterrupt

    net = model()
    handle = net.blocks[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        fit(net, tmp_path / "run", test=test)
    handle.remove()
    resumed = fit(model(), tmp_path / "run", test=test)
    assert resumed.history == whole.history and resumed.best == whole.best
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


def test_a_step_may_have_fewer_clips_than_it_could(tmp_path: Path) -> None:
    still = {"recipe": dataclasses.replace(get_recipe("small-data"), drop_path=0.0, head_dropout=0.0)}
    few = [0, 8, 16]
    one = fit(model(), tmp_path / "one", train=folder("train").subset(few), batch_size=3, learning_rate=1e-3, **still)
    # Of three passes of a step the second has one clip and the third none.
    many = fit(
        model(), tmp_path / "many", train=folder("train").subset(few), batch_size=2, accumulate=3, learning_rate=1e-3,
        max_norm=1.0, **still,
    )  # fmt: skip
    assert many.losses[0] == pytest.approx(one.losses[0], rel=1e-5) and many.steps == 2


def test_workers_leave_signals_to_the_process_that_trains(tmp_path: Path) -> None:
    import multiprocessing

    def interrupt(record: dict[str, Any]) -> None:
        for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
            os.kill(process.pid or 0, signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(model(), tmp_path / "run", workers=2, callbacks=[interrupt])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000001"]


def test_a_model_that_could_not_be_saved_is_refused_at_once(tmp_path: Path) -> None:
    net = model()
    net.blocks[0].mlp.fc1.weight.requires_grad_(True)
    with pytest.raises(aim.StateError, match="the adapters alone"):
        fit(net, tmp_path / "run")
    with pytest.raises(aim.ConfigError, match="cannot be"):
        (tmp_path / "file").touch()
        fit(model(), tmp_path / "file" / "run")


def test_a_transform_that_normalizes_is_refused(tmp_path: Path) -> None:
    train = folder("train", transform=lambda frames: frames[..., :16, :16].float())
    with pytest.raises(
        aim.ConfigError, match=r"clips of train are torch\.float32 \[4, 3, 16, 16\], expected torch\.uint8"
    ):
        fit(model(), tmp_path / "run", train=train)


def test_a_stream_trains_on_all_of_its_clips(tmp_path: Path) -> None:
    from aim_adapters.video import VideoShards, write_shards

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "up/7.mp4")
        shards = write_shards(folder("train"), tmp_path / "shards", max_videos=12)
        # Two workers with twelve videos each, which are no whole batches of five; one video is broken.
        train = VideoShards(shards, FRAMES, labels=CLASSES, length=24)
        result = fit(model(), tmp_path / "run", train=train, batch_size=5, workers=2)
    assert result.steps == 8 and [record.name for record in train.skipped] != []


def test_a_tracker_logs_or_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(model(), tmp_path / "run", log_with="tensorboard", epochs=1)
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install trackio"):
        fit(model(), tmp_path / "other", log_with="trackio")
    assert not (tmp_path / "other").exists()
