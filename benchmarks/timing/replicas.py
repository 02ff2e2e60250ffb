"""Models that train as one in several processes: how their gradients are averaged, and whether they stay equal."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.timing.peers import blocks

SHARDED = "+fsdp2"  # behind the name of a peer each of whose processes holds a part of every block
FLAT = "+flat"  # behind the name of a peer that sends its gradients in one message


class Flat:
    """Average the gradients of a model over the processes, all in one message, when the last of them is there."""

    def __init__(self, model: nn.Module) -> None:
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.missing = len(self.trained)
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self.arrived)

    def arrived(self, _: Tensor) -> None:
        """Count a gradient, and send all after the last."""
        self.missing -= 1
        if self.missing:
            return
        self.missing = len(self.trained)
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for parameter, part in zip(self.trained, flat.split([each.numel() for each in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


def hold(model: nn.Module, peer: str) -> nn.Module:
    """Let a model train as one with those of the other processes."""
    if peer.endswith(FLAT):
        Flat(model)
        return model
    if peer.endswith(SHARDED):
        mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    # Nothing is left to compute while a graph's gradients are sent, so one bucket holds them all.
    bucket = 1 + sum(map(nbytes, model.parameters())) // 2**20 if peer.endswith("/graph") else None
    # Gradients lie where they are sent from; which there are, and in what order, is the same at every step.
    return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=bucket)


def nbytes(parameter: nn.Parameter) -> int:
    """Return the bytes of a parameter's gradient."""
    return parameter.numel() * parameter.element_size() * parameter.requires_grad


def compare(model: nn.Module) -> None:
    """Hold all that trains to what the first process has; of what is sharded there is but one.

    Raises:
        ValueError: It is not the same, bit for bit.
    """
    unlike = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            first = parameter.detach().clone()
            dist.broadcast(first, 0)
            if not torch.equal(first, parameter):
                unlike.append(name)
    if unlike:
        raise ValueError(f"{len(unlike)} parameters are not those of process 0, {unlike[0]} the first")
