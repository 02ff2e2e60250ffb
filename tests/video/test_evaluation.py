from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

import aim_adapters as aim
from aim_adapters.video import ClipTransform, Normalize, VideoFolder, open_video, uniform_indices
from tests.training.cases import CLASSES, folder, model, videos

QUIET: dict[str, Any] = {"workers": 0, "progress": False}


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
    assert str(found).startswith("top-1 50.0%, top-5 87.5%, mean of classes 45.8% (8 videos, 1x1 views)")


def test_predictions_are_kept(net: nn.Module, tmp_path: Path) -> None:
    found = aim.evaluate(net, folder("test"), "1x1", **QUIET)
    found.save(tmp_path / "a.csv")
    found.save(tmp_path / "a.parquet")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for row, line, kept in zip(found.predictions, rows, table, strict=True):
        assert (line["name"], line["label"], line["predicted"]) == (row["name"], row["label"], row["predicted"])
        assert kept["name"] == row["name"]
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


def test_any_model_of_clips_is_evaluated_with_a_spec() -> None:
    class Brightness(nn.Module):
        def forward(self, video: torch.Tensor) -> torch.Tensor:
            return video.mean((1, 2, 3, 4))[:, None] * torch.tensor([1.0, 0.0, -1.0])

    spec = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3, CLASSES)
    assert aim.evaluate(Brightness(), folder("test"), "1x1", spec=spec, **QUIET).count == 9


def test_what_does_not_fit_is_named(net: nn.Module) -> None:
    for views in ("3", "0x1", "3x1x1", "", None):
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
    with pytest.raises(aim.StateError, match="returns features"):
        aim.evaluate(model(labels=None, num_classes=0), folder("test"), **QUIET)
