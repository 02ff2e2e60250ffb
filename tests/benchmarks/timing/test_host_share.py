"""Run the benchmark of the host's share on a smaller model: both ways compute the same, and are held to the goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.report import plots
from benchmarks.timing import host_share as benchmark
from benchmarks.timing import inference, train_step


@pytest.mark.parametrize("task", [train_step.TASK, inference.TASK], ids=lambda task: task.name)
def test_both_ways_compute_the_same(task: benchmark.Task) -> None:
    ours, plain = (benchmark.make(task, fused=fused) for fused in (True, False))
    assert (len(ours.blocks), ours.embed_dim, ours.training) == (12, 64, task.train)
    assert (ours.aim.execution.fused, plain.aim.execution.fused) == ("auto", False)
    clips = benchmark.SIZE.batch("cpu")
    found, expected = (task.observe(model, clips, torch.float32) for model in (ours, plain))
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        torch.testing.assert_close(found[name], exact)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    status = benchmark.main(["--out", str(tmp_path), "--rounds", "2", "--batch", "0.001"])
    assert torch.get_num_threads() == threads
    result = json.loads((tmp_path / "host_share.json").read_text())
    assert [target["at_most"] for target in result["targets"]] == [0.6, 0.7]
    assert status == (0 if result["met"] else 1)
    for target, task in zip(result["targets"], ("training step", "inference"), strict=True):
        ours, plain = (result["timings"][f"{task}, {way}"]["median"] for way in ("ours", "layer by layer"))
        assert target["value"] == pytest.approx(ours / plain)
    assert "target at most 0.6" in capsys.readouterr().out
    shown = plots.load(tmp_path)
    assert "host's share, inference" in plots.targets(shown)
    assert "inference, ours" in plots.times(shown)
    assert "`host_share`" in plots.ran_on(shown)
