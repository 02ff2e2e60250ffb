"""Two processes train a wrapped model under DDP and FSDP2 as one process does, and save the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from tests import processes
from tests.backbones.cases import scramble, wake

SIZE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
T, WORLD = 4, 2


def make() -> nn.Module:
    torch.manual_seed(0)
    model = scramble(VisionTransformer(**SIZE))
    return wake(aim.wrap_image_model(model, T, num_classes=3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, T, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0])


def train(model: nn.Module, video: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(video), labels).backward()
        optimizer.step()


def worker(rank: int, holders: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", WORLD), rank=rank, world_size=WORLD)
    for holder in holders:
        train_and_load(rank, holder, f"{folder}/{holder}")
    dist.destroy_process_group()


def shard(model: Any, holder: str) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    if holder == "fsdp2, compiled":  # as trainers do: checkpoint, compile, shard
        apply_activation_checkpointing(model, check_fn=lambda module: module in list(model.blocks))
        for block in model.blocks:
            block.compile(fullgraph=True, backend="eager")
    elif holder == "fsdp2, parts":
        parts = ["patch_embed", "norm.aim", "aim.head", "blocks.0.mlp", "blocks.0.norm1", "blocks.1.attn.qkv"]
        for path in [*parts, "blocks.0.aim.temporal", "blocks.1.aim.joint.up_proj"]:
            fully_shard(model.get_submodule(path), mesh=mesh)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_and_load(rank: int, holder: str, out: str) -> None:
    model = make()
    held = DistributedDataParallel(model) if holder == "ddp" else shard(model, holder)
    video, labels = batch()
    part = slice(rank * 2, rank * 2 + 2)
    train(held, video[part], labels[part])
    if holder != "ddp" or rank == 0:
        aim.save_adapters(held, out)
    dist.barrier()
    # and back: every rank loads into what it holds
    before = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(held).items()}
    with torch.no_grad():
        for parameter in aim.trainable_parameters(held):
            parameter.zero_()
    assert not any(aim.load_adapters(held, out))
    after = aim.adapter_state_dict(held)
    assert all(torch.equal(before[key], after[key]) for key in before)


HOLDERS = ["ddp", "fsdp2", "fsdp2, compiled", "fsdp2, parts"]
if not hasattr(torch.cpu.Stream, "record_event"):  # as old as torch may be
    HOLDERS = HOLDERS[:1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in two processes, in one way after the other, and return what each has saved."""
    folder = tmp_path_factory.mktemp("distributed")
    processes.start(worker, args=(HOLDERS, str(folder)), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("holder", HOLDERS)
def test_two_processes_train_as_one(holder: str, saved: Path) -> None:
    alone, together = make(), make()
    train(alone, *batch())
    aim.load_adapters(together, saved / holder)
    expected, got = aim.adapter_state_dict(alone), aim.adapter_state_dict(together)
    assert expected.keys() == got.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
