"""Several processes train and evaluate as one does."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from aim_adapters.recipes import get_recipe
from aim_adapters.training import gradient_bytes
from tests.training.cases import CLASSES, fit, folder, model, videos, weights

STILL = dataclasses.replace(get_recipe("small-data"), drop_path=0.0, head_dropout=0.0)


def join(rank: int, world: int, port: int) -> None:
    """Make this process one of several, as torchrun does."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if torch.accelerator.is_available():  # elsewhere it is found out
        os.environ["ACCELERATE_USE_CPU"] = "true"
    dist.init_process_group("gloo", rank=rank, world_size=world)


def train(rank: int, port: int, root: Path, out: Path) -> None:
    join(rank, 2, port)
    sent: list[int] = []
    reduce = dist.all_reduce

    def count(tensor: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **settings)

    dist.all_reduce = count
    for sharding in ("ddp", "fsdp2"):
        net = model()
        result = fit(
            net, out / sharding, root, batch_size=3, recipe=STILL, sharding=sharding, test=folder("test", root),
            max_skipped=1.0,
        )  # fmt: skip
        # And on from the first epoch, to the bit.
        halted = out / f"{sharding} halted"
        if rank == 0:
            source = out / sharding / "checkpoints" / "step-0000004"
            halted.joinpath("checkpoints").mkdir(parents=True)
            source.rename(halted / "checkpoints" / source.name)
        dist.barrier()
        resumed = fit(model(), halted, root, batch_size=3, recipe=STILL, sharding=sharding, max_skipped=1.0)
        found = {
            "losses": result.losses, "resumed": resumed.losses, "gradient_bytes": result.gradient_bytes,
            "top1": None if result.evaluation is None else result.evaluation.top1, "small": max(sent),
        }  # fmt: skip
        if rank == 0:
            torch.save(found, out / f"{sharding}.pt")
    dist.destroy_process_group()


class Coupled(torch.nn.Module):
    """A model whose answer for a clip depends on all clips of its pass, and on their places."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        levels = video.mean((1, 2, 3, 4))[:, None] - video.mean()
        return levels * torch.arange(1.0, len(video) + 1)[:, None] * torch.tensor([1.0, 0.0, -1.0])


COUPLED = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3, CLASSES)


QUIET: dict[str, Any] = {"workers": 0, "progress": False, "max_skipped": 1.0}


def evaluations(root: Path, batch_size: int) -> list[aim.Evaluation]:
    """Evaluate three ways; one of three processes has no video of the last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            aim.evaluate(trained(), folder("train", root), "2x2", batch_size=batch_size, **QUIET),
            aim.evaluate(Coupled(), folder("train", root), "3x1", spec=COUPLED, batch_size=batch_size, **QUIET),
            aim.evaluate(trained(), folder("test", root), "1x1", batch_size=batch_size, **QUIET),
        ]


def assess(rank: int, world: int, port: int, root: Path, out: Path) -> None:
    join(rank, world, port)
    test = folder("test", root)
    net, sharded = trained(), trained()
    net.register_buffer("shared", torch.zeros(1))  # DDP sends it to all processes in each forward
    for block in sharded.blocks:
        fully_shard(block)
    found = {
        "alone": evaluations(root, world),
        "ddp": aim.evaluate(DistributedDataParallel(net), test, "1x1", **QUIET),
        "fsdp2": aim.evaluate(fully_shard(sharded), test, "1x1", **QUIET),
    }
    torch.save(found, out / f"{world}-{rank}.pt")
    dist.destroy_process_group()


def trained() -> torch.nn.Module:
    net = model()
    with torch.no_grad():
        for index, parameter in enumerate(aim.trainable_parameters(net)):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)
    return net


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(work: Any, world: int, *arguments: Any) -> None:
    """Run some work in several processes, which share one import of all that is large."""
    multiprocessing.set_forkserver_preload([__name__, "aim_adapters.training", "torch._dynamo"])
    mp.start_processes(work, (*arguments,), nprocs=world, start_method="forkserver")


@pytest.fixture(scope="module")
def root() -> Path:
    return videos()


@pytest.mark.slow
def test_two_processes_train_as_one_does(root: Path, tmp_path: Path) -> None:
    start(train, 2, port(), root, tmp_path)
    alone = model()
    one = fit(alone, tmp_path / "one", recipe=STILL, test=folder("test"))
    for sharding in ("ddp", "fsdp2"):
        found = torch.load(tmp_path / f"{sharding}.pt")
        assert found["losses"] == pytest.approx(one.losses, rel=1e-4)
        assert found["resumed"] == found["losses"]  # to the bit
        assert one.evaluation is not None and found["top1"] == one.evaluation.top1
        assert found["gradient_bytes"] == gradient_bytes(model())
        assert found["small"] == 12  # beside the gradients one message: loss, clips, whether to stop
        loaded = aim.load_adapters(other := model(), tmp_path / sharding)
        assert not any(loaded)
        for a, b in zip(weights(other), weights(alone), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=5e-4)  # AdamW turns rounding into steps


@pytest.mark.slow
def test_neither_processes_nor_batch_size_change_a_digit_of_an_evaluation(root: Path, tmp_path: Path) -> None:
    # A broken video in the middle leaves the others where they are.
    root = shutil.copytree(root, tmp_path / "videos")
    (root / "train" / "left" / "2.mp4").write_bytes(b"broken")
    for world in (2, 3):
        start(assess, world, world, port(), root, tmp_path)
    one = evaluations(root, 8)
    assert [each.count for each in one] == [22, 22, 9]
    for batch_size in (1, 3):
        assert_same(evaluations(root, batch_size), one)
    for world, rank in ((2, 0), (2, 1), (3, 0), (3, 2)):
        found = torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=False)
        assert_same(found["alone"], one)
        assert_same([found["ddp"]], one[2:])
        # FSDP2 gathers weights into other places in memory, where products may round differently.
        torch.testing.assert_close(found["fsdp2"].probabilities, one[2].probabilities, rtol=0, atol=1e-6)
        assert found["fsdp2"].names == one[2].names


def assert_same(found: list[aim.Evaluation], expected: list[aim.Evaluation]) -> None:
    for each, other in zip(found, expected, strict=True):
        assert torch.equal(each.probabilities, other.probabilities)
        assert each.names == other.names
        assert each.to_dict() == other.to_dict()
