from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Subset

import aim_adapters as aim
from aim_adapters.video import (
    ClipTransform,
    Normalize,
    VideoFolder,
    VideoShards,
    open_video,
    transform_for,
    uniform_indices,
    write_shards,
)
from tests.training.cases import CLASSES, folder, model, videos

QUIET: dict[str, Any] = {"workers": 0, "progress": False}
SPEC = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3, CLASSES)


class Answers(nn.Module):
    """A model of clips that answers what it is told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, video: torch.Tensor) -> Any:
        return self.answer(video)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = model()
    with torch.no_grad():
        for index, parameter in enumerate(aim.trainable_parameters(net)):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)
    return net


def test_probabilities_are_averaged_over_views(net: nn.Module) -> None:
    found = aim.evaluate(net, folder("test"), "3x2", **QUIET)
    spec = aim.clip_spec(net)
    for row, sample in enumerate(folder("test").samples):
        with open_video(sample.source) as video:
            clips = [video.get_frames(rows, short_side=16) for rows in uniform_indices(len(video), 4, clips=3)]
        views = torch.cat([ClipTransform(spec.image_size, crops=2)(clip) for clip in clips])
        with torch.no_grad():
            expected = net.eval()(Normalize(spec.mean, spec.std)(views)).double().softmax(1).mean(0)
        torch.testing.assert_close(found.probabilities[row], expected, rtol=1e-5, atol=1e-7)
        assert found.names[row] == sample.name
    assert len({tuple(row) for row in found.probabilities.tolist()}) == 9


def test_scores_count_what_they_say() -> None:
    targets = torch.tensor([0, 0, 1, 1, 2, 2, 2, 5])
    answers = torch.tensor([0, 1, 1, 1, 0, 2, 3, 0])
    labels = tuple("abcdefg")
    rank = one_hot(answers, 7).double() * 0.5
    found = aim.Evaluation(labels, tuple(map(str, range(8))), targets, rank, (), "1x1")
    assert found.top1 == 4 / 8
    assert found.top5 == 7 / 8  # of equal probabilities the first classes win: f is the sixth
    assert [row.accuracy for row in found.per_class if row.videos] == [1 / 2, 1.0, 1 / 3, 0.0]
    assert found.mean_class == pytest.approx((1 / 2 + 1 + 1 / 3) / 4)
    assert found.confusion.sum() == 8 and found.confusion[2].tolist() == [1, 0, 1, 1, 0, 0, 0]
    assert found.to_dict()["per_class"]["d"] is None
    summary = "top-1 50.0%, top-5 87.5%, mean of classes 45.8% (8 videos, 1x1 views)"
    assert str(found) == repr(found)
    assert [line.split() for line in str(found).splitlines()] == [
        summary.split(), ["label", "videos", "accuracy"],
        ["f", "1", "0.0%"], ["c", "3", "33.3%"], ["a", "2", "50.0%"], ["b", "2", "100.0%"],
    ]  # fmt: skip
    assert found._repr_html_().startswith(f"<p>{summary}</p><table>")
    assert dataclasses.replace(found, labels=(*labels[:5], "<b>", "g"))._repr_html_().count("&lt;b&gt;") == 1


def test_predictions_are_kept(net: nn.Module, tmp_path: Path) -> None:
    found = aim.evaluate(net, folder("test"), "1x1", **QUIET)
    found = dataclasses.replace(found, names=("\udcff.mp4", *found.names[1:]))  # a name that is no UTF-8
    found.save(tmp_path / "new" / "a.CSV")
    (tmp_path / "new" / "a.CSV").replace(tmp_path / "a.csv")
    assert not any((tmp_path / "new").iterdir())
    found.save(tmp_path / "a.parquet")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for row, line, kept in zip(found.predictions, rows, table, strict=True):
        assert (line["name"], line["label"], line["predicted"]) == (kept["name"], row["label"], row["predicted"])
        assert kept["name"] == row["name"].replace("\udcff", "\ufffd")
        for label, probability in row["probabilities"].items():
            assert float(line[f"probability of {label}"]) == kept[f"probability of {label}"] == probability
    with pytest.raises(aim.ConfigError, match=r"\.csv or \.parquet"):
        found.save(tmp_path / "a.txt")


def test_broken_videos_are_left_out_and_counted(net: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"up/7\.mp4"):
        found = aim.evaluate(net, folder("train"), "1x1", **QUIET)
    assert found.count == 23 and [record.name for record in found.skipped] == ["up/7.mp4"]
    with pytest.raises(aim.VideoError, match="max_skipped"), pytest.warns(UserWarning):
        aim.evaluate(net, folder("train"), "1x1", max_skipped=0.0, **QUIET)


def test_the_model_is_left_as_it_was(net: nn.Module) -> None:
    net.train()
    net.blocks[1].eval()
    modes = [module.training for module in net.modules()]
    before = torch.get_rng_state()
    aim.evaluate(net, folder("test"), "1x1", **QUIET)
    aim.predict(net, videos() / "test" / "up" / "0.mp4")
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)


def test_any_model_of_clips_is_evaluated_with_a_spec(net: nn.Module) -> None:
    def brightness(video: torch.Tensor) -> torch.Tensor:
        return video.mean((1, 2, 3, 4))[:, None] * torch.tensor([1.0, 0.0, -1.0])

    found = aim.evaluate(Answers(brightness), folder("test"), "1x1", spec=SPEC, **QUIET)
    assert found.count == 9
    within = aim.evaluate(Answers(lambda video: (brightness(video), None)), folder("test"), "1x1", spec=SPEC, **QUIET)
    assert torch.equal(within.probabilities, found.probabilities)
    features = model(labels=None, num_classes=0)
    probe = nn.Sequential(features, nn.Linear(32, 3))
    assert aim.evaluate(probe, folder("test"), "1x1", spec=SPEC, **QUIET).count == 9


def test_a_model_is_evaluated_in_the_dtype_that_it_has(net: nn.Module) -> None:
    expected = aim.evaluate(net, folder("test"), "1x1", **QUIET)
    for dtype, near in ((torch.bfloat16, 0.02), (torch.float16, 0.01), (torch.float64, 1e-6)):
        found = aim.evaluate(model().to(dtype), folder("test"), "1x1", **QUIET)
        other = aim.evaluate(model(), folder("test"), "1x1", **QUIET)
        torch.testing.assert_close(found.probabilities, other.probabilities, rtol=0, atol=near)
    for precision in ("bf16", "fp16"):
        found = aim.evaluate(net, folder("test"), "1x1", precision=precision, **QUIET)
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=0.02)


def test_classes_that_only_the_dataset_names_are_called_as_there() -> None:
    unnamed = model(labels=None, num_classes=3)
    assert aim.evaluate(unnamed, folder("test"), "1x1", **QUIET).labels == CLASSES


@pytest.mark.parametrize("classes", [2, 5])
def test_a_model_of_other_classes_is_refused(classes: int) -> None:
    message = f"returns {classes} classes, and 3 have names: .'left'"
    with pytest.raises(aim.StateError, match=message):
        aim.evaluate(model(labels=None, num_classes=classes), folder("test"), **QUIET)
    with pytest.raises(aim.StateError, match=message):
        aim.predict(Answers(lambda video: torch.zeros(len(video), classes)), videos() / "test/up/0.mp4", spec=SPEC)


def test_the_frozen_image_model_is_evaluated_only_where_its_classes_are_the_same(net: nn.Module) -> None:
    with aim.disable_adapters(net), pytest.raises(aim.StateError, match="leave disable_adapters"):
        aim.evaluate(net, folder("test"), **QUIET)
    copied = model(labels=None)
    data = VideoFolder(videos() / "test", num_frames=4, labels=(*CLASSES, "x", "y"), allow_empty=True)
    with aim.disable_adapters(copied):
        assert aim.evaluate(copied, data, "1x1", **QUIET).count == 9


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda video: torch.full((len(video), 3), float("nan")), r"not finite for left/0\.mp4"),
        (lambda video: torch.full((len(video), 3), float("inf")), r"not finite for left/0\.mp4"),
        (lambda video: torch.zeros(len(video), 3, dtype=torch.int64), r"must return logits .* torch.int64"),
        (lambda video: torch.zeros(len(video), 0), r"must return logits .* \[8, 0\]"),
        (lambda video: torch.zeros(len(video) * 4, 3), r"must return logits .* \[32, 3\]"),
        (lambda video: "x", r"must return logits .* str"),
    ],
)
def test_answers_that_are_none_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(aim.StateError, match=message):
        aim.evaluate(Answers(answer), folder("test"), "1x1", spec=SPEC, **QUIET)


def test_a_class_that_is_ruled_out_is_an_answer() -> None:
    ruled_out = Answers(lambda video: torch.tensor([[-float("inf"), 0.0, 0.0]]).expand(len(video), 3))
    found = aim.evaluate(ruled_out, folder("test"), "1x1", spec=SPEC, **QUIET)
    assert found.probabilities[0].tolist() == [0, 0.5, 0.5] and found.answers.tolist() == [1] * 9


def test_the_transform_of_a_dataset_is_kept(net: nn.Module) -> None:
    spec = aim.clip_spec(net)
    plain = aim.evaluate(net, folder("test"), "1x1", **QUIET).probabilities

    def found(transform: Any, views: str = "1x1") -> torch.Tensor:
        return aim.evaluate(net, folder("test", transform=transform), views, **QUIET).probabilities

    assert torch.equal(found(transform_for(net)), plain)
    assert torch.equal(found(transform_for(net, train=True)), plain)  # as a test set
    closer = ClipTransform(spec.image_size, short_side=22)
    assert not torch.equal(found(closer), plain)
    darker = transform_for(dataclasses.replace(spec, mean=(0.9, 0.9, 0.9)))
    assert not torch.equal(found(darker), plain)
    # What is floating point already is normalized already.
    own = transform_for(net)
    torch.testing.assert_close(found(lambda frames: own(frames)), found(lambda frames: own.clip(frames)))
    with pytest.raises(aim.ConfigError, match=r"torch.uint8 \[4, 3, 24, 24\], expected torch.uint8 \[4, 3, 16, 16\]"):
        found(ClipTransform((24, 24)))
    with pytest.raises(aim.ConfigError, match="gives 1 views of a video, expected 3"):
        found(lambda frames: own.clip(frames), "1x3")


def test_parts_lists_and_shards_are_evaluated_too(net: nn.Module, tmp_path: Path) -> None:
    data = folder("test")
    whole = aim.evaluate(net, data, "1x1", **QUIET)
    part = aim.evaluate(net, Subset(data, [7, 2]), "1x1", **QUIET)
    assert part.names == (whole.names[7], whole.names[2])
    torch.testing.assert_close(part.probabilities, whole.probabilities[[7, 2]])

    prepared = folder("test", transform=transform_for(net))
    pairs = [prepared[index] for index in range(9)]
    found = aim.evaluate(net, pairs, "1x1", **QUIET)
    torch.testing.assert_close(found.probabilities, whole.probabilities)
    assert (found.labels, found.names[8]) == (CLASSES, "8")
    with pytest.raises(aim.ConfigError, match="pass views='1x1'"):
        aim.evaluate(net, pairs, **QUIET)
    with pytest.raises(aim.ConfigError, match="video 0 has label 3"):
        aim.evaluate(net, [(pairs[0][0], 3)], "1x1", **QUIET)
    with pytest.raises(aim.ConfigError, match=r"item 0 of the dataset must be \(clip, label\)"):
        aim.evaluate(net, [(pairs[0][0], 0.5)], "1x1", **QUIET)
    with pytest.raises(TypeError, match="pass the loader's dataset"):
        aim.evaluate(net, DataLoader(data), **QUIET)  # type: ignore[arg-type]

    shards = VideoShards(write_shards(data, tmp_path), 4, labels=CLASSES)
    before = torch.get_rng_state()
    found = aim.evaluate(net, shards, "1x1", **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.names == whole.names
    torch.testing.assert_close(found.probabilities, whole.probabilities)


def test_what_does_not_fit_is_named(net: nn.Module) -> None:
    for views in ("3", "0x1", "3x1x1", "100x1", "", None):
        with pytest.raises(aim.ConfigError, match="views must be"):
            aim.evaluate(net, folder("test"), views, **QUIET)  # type: ignore[arg-type]
    more = VideoFolder(videos() / "test", num_frames=4, labels=(*CLASSES, "down"), allow_empty=True)
    with pytest.raises(aim.ConfigError, match=r"only in the model: \[\], only in the dataset: \['down'\]"):
        aim.evaluate(net, more, **QUIET)
    turned = VideoFolder(videos() / "test", num_frames=4, labels=CLASSES[::-1])
    with pytest.raises(aim.ConfigError, match="another order"):
        aim.evaluate(net, turned, **QUIET)
    with pytest.raises(aim.ConfigError, match="clips of 8 frames, the model reads 4"):
        aim.evaluate(net, VideoFolder(videos() / "test", num_frames=8), **QUIET)
    with pytest.raises(TypeError, match="dataset must be a VideoFolder"):
        aim.evaluate(net, videos() / "test", **QUIET)  # type: ignore[arg-type]
    for device in ("gpu", "meta", "cuda:99", []):
        with pytest.raises(aim.AIMError, match="device"):
            aim.evaluate(net, folder("test"), device=device, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(aim.ConfigError, match="no video of the dataset"):
        aim.evaluate(net, [], "1x1", **QUIET)
    with pytest.raises(aim.StateError, match="returns features"):
        aim.evaluate(model(labels=None, num_classes=0), folder("test"), **QUIET)
