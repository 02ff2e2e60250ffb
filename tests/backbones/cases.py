"""Members of families of image transformers, and what tests do with any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import aim_adapters as aim

FRAMES = 4
WAYS_TO_RUN: tuple[tuple[Any, Any], ...] = (
    (False, "fast"), (False, "low"), ("auto", "fast"), ("auto", "balanced"), ("auto", "low"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A member of a family: how to make a tiny one and how to call it on images."""

    name: str
    build: Callable[[], nn.Module]
    image_size: int = 16
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    dropout: Callable[[], nn.Module] | None = None  # the same with every dropout and drop path switched on
    mask: dict[str, Any] = field(default_factory=dict)  # arguments that must be refused
    output: Callable[[Any], Tensor] = lambda out: out  # what `call` reads of the tower's output
    exact: bool = True  # False: the whole model projects outside its tower, behind the average over frames
    channels: int = 3
    tokens: tuple[int, ...] = (5,)  # shape of the tokens that a block reads
    plain_attention: Callable[[Any, Tensor], Tensor] | None = None  # the family's attention without spatial position
    checkpoints: bool = True  # the library can checkpoint activations itself
    machinery: bool = False  # runs what takes seconds: compiling, exporting, sharding; some members of each family do
    compiler: str = "aot_eager"  # what compiled graphs are handed to

    def model(self) -> nn.Module:
        """Return a member with random weights everywhere, so that nothing is hidden behind a zero or a one.

        Always the same weights.
        """
        torch.manual_seed(0)
        return scramble(self.build()).eval()

    def video(self, clips: int = 2, frames: int = FRAMES, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(clips, frames, self.channels, self.image_size, self.image_size, generator=generator)

    def averaged(self, model: nn.Module, video: Tensor) -> Tensor:
        """Return the image model's output, averaged over frames."""
        with torch.no_grad():
            return self.call(model, video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


def scramble(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def wake(model: nn.Module) -> nn.Module:
    """Give every trainable parameter a random value, as if trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def train_steps(case: Case, model: nn.Module, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.SGD(aim.trainable_parameters(model), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(case.call(model, case.video(seed=step))).backward()
        optimizer.step()
    model.eval()


def loss(out: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return (out * weights).sum() + out.square().mean()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a failed or undone wrap must leave alone."""
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "ids": {name: id(parameter) for name, parameter in model.named_parameters()},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("types", "modes", "attributes", "flags", "ids"):
        assert before[key] == after[key], key
    assert before["state"].keys() == after["state"].keys()
    assert all(torch.equal(value, after["state"][name]) for name, value in before["state"].items())


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_machinery(case: Case, names: tuple[str, ...]) -> Case:
    """Let the members of these names run what takes seconds; the first compiles gradients too, others graphs alone.

    Most of them have two blocks, a first and a last one, where others have one between them: compilers trace each.
    """
    return replace(case, machinery=case.name in names, compiler="aot_eager" if case.name == names[0] else "eager")


def needs_machinery(case: Case) -> None:
    """Skip a test that takes seconds unless this member of its family runs it."""
    if not case.machinery:
        pytest.skip("another member of the family runs this")


def set_checkpointing(model: nn.Module, enable: bool) -> None:
    """Switch on the library's own activation checkpointing."""
    tower = model.get_submodule(read_root(model))
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers; renamed in its later versions
        if enable and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        elif enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        (tower if hasattr(tower, "set_grad_checkpointing") else model).set_grad_checkpointing(enable)


def read_root(model: nn.Module) -> str:
    """Return the path of the wrapped root."""
    return next(name for name, module in model.named_modules() if hasattr(getattr(module, "aim", None), "record"))
