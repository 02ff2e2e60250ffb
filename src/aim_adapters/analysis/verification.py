"""Whether this very machine computes what it should: identity, unwrapping, kernels against the oracle, versions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aim_adapters.backbones import build_classifier, read_anatomy
from aim_adapters.core import is_wrapped, pooled_output, require_wrappable
from aim_adapters.errors import StateError, UnsupportedKernelError
from aim_adapters.execution import set_attention, set_execution
from aim_adapters.ops import spatial_attention, temporal_attention
from aim_adapters.parameters import declared_parameters, trainable_parameters
from aim_adapters.table import Table
from aim_adapters.wrapping import unwrap_image_model, wrap_image_model

_FRAMES, _CLIPS = 4, 2
_EXTRAS = ("", "cli", "export", "train", "transformers", "video", "viz")  # what a user installs
_SMALL = "timm:vit_tiny_patch16_224"


class Check(NamedTuple):
    """One check.

    Attributes:
        check: What was checked.
        result: ``"ok"``, ``"failed"``, or ``"skipped"`` where it cannot run here.
        found: The error and its bound, or the reason.
    """

    check: str
    result: str
    found: str


@dataclass(frozen=True)
class Verification:
    """What was checked, and with what result: ``print`` shows it.

    Args:
        checks: The checks.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.result != "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        return {"ok": self.ok, "checks": [check._asdict() for check in self.checks]}

    def to_text(self, columns: int) -> str:
        """Return all of it as text.

        Args:
            columns: Width of the screen.
        """
        failed = sum(check.result == "failed" for check in self.checks)
        last = f"{failed} of {len(self.checks)} checks failed" if failed else "nothing failed"
        return f"{Table(self.checks).to_text(columns)}\n\n{last}"

    def __str__(self) -> str:
        """Return all of it as text of 120 columns."""
        return self.to_text(120)


def verify(model: nn.Module | None = None) -> Verification:
    """Check on this machine that wrapping keeps an image model's function, and that kernels compute what they should.

    Fresh adapters must give the image model averaged over frames; unwrapping must give it back to the bit; every
    implementation of an operator that can run here is compared, forward and backward, with the reference in float64;
    and installed packages are compared with the least versions that this package declares.

    Args:
        model: The image model to wrap, not wrapped; it is the same afterward. By default a small random one.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: It is wrapped already, compiled, sharded or distributed.
        UnsupportedModelError: It cannot be adapted, or pools nothing over tokens.
    """
    if model is not None and isinstance(model, nn.Module) and is_wrapped(model):
        raise StateError("verify wraps and unwraps the model itself; pass the image model, not wrapped")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the image model looks untrained")  # a random one shows as much
        torch.manual_seed(0)
        small = build_classifier(_SMALL, image_size=(32, 32), pretrained=False)
        given = small if model is None else model
        require_wrappable(given)
        checks = [*_wrapping(given)]
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            for dtype in (torch.float32, torch.bfloat16, *[torch.float16] * (device == "cuda")):
                checks += _attention(device, dtype)
            checks.append(_blocks(copy.deepcopy(small).to(device)))
    return Verification((*checks, *_versions()))


def _within(name: str, error: float, bound: float) -> Check:
    """Return a check of an error; NaN is none that is small enough."""
    return Check(name, "ok" if error <= bound else "failed", f"error {error:.1e}, at most {bound:.1e}")


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    scale = float(expected.abs().max()) or 1.0
    return float((found.double() - expected.double()).abs().max()) / scale


def _wrapping(model: nn.Module) -> Iterator[Check]:
    """Check identity and unwrapping."""
    anatomy = read_anatomy(model)
    if anatomy.patch_inputs:
        yield Check(type(model).__name__, "skipped", "it reads patches cut beforehand, and no frames")
        return
    parameter = next(model.parameters())
    size = anatomy.image_size or (224, 224)
    video = torch.randn(_CLIPS, _FRAMES, anatomy.in_channels, *size, device=parameter.device, dtype=parameter.dtype)
    training = {name: module.training for name, module in model.named_modules()}
    tower = model.get_submodule(anatomy.root)  # of a whole CLIP model, what reads images
    model.eval()
    try:
        with torch.no_grad():
            images = pooled_output(tower(video.flatten(0, 1)), anatomy.pooled_outputs)
            before = _state(model)
            wrap_image_model(model, _FRAMES, input_layout="BTCHW")
            try:
                found = pooled_output(tower(video), anatomy.pooled_outputs)
            finally:
                unwrap_image_model(model)
            again = pooled_output(tower(video.flatten(0, 1)), anatomy.pooled_outputs)
        expected = images.unflatten(0, (_CLIPS, _FRAMES)).mean(1)
        eps = torch.finfo(images.dtype).eps
        low = images.dtype in (torch.bfloat16, torch.float16)
        yield _within(
            f"{type(model).__name__} wrapped is itself, averaged over frames",
            _distance(found, expected),
            (16 if low else 1024) * eps,
        )
        same = torch.equal(images, again) and _same(before, _state(model))
        yield Check("unwrapping gives it back to the bit", "ok" if same else "failed", "weights, types and outputs")
    finally:
        for name, module in model.named_modules():
            module.training = training[name]


def _state(model: nn.Module) -> dict[str, Any]:
    types = {f"type of {name}": type(module) for name, module in model.named_modules()}
    flags = {f"flag of {name}": parameter.requires_grad for name, parameter in model.named_parameters()}
    return {**types, **flags, **{key: tensor.clone() for key, tensor in model.state_dict().items()}}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        for key, value in one.items()
    )


def _attention(device: str, dtype: torch.dtype) -> Iterator[Check]:
    """Check every implementation of both kinds of attention, forward and backward."""
    word = str(dtype).removeprefix("torch.")
    qkv = torch.randn(2 * _FRAMES, 17, 3, 3, 64, dtype=torch.float64, device=device)
    weights = torch.randn(2 * _FRAMES, 17, 3, 64, dtype=torch.float64, device=device)

    def temporal(x: Tensor, name: str) -> Tensor:
        return temporal_attention.temporal_attention_packed(x, num_frames=_FRAMES, implementation=name)

    def spatial(x: Tensor, name: str) -> Tensor:
        return spatial_attention.spatial_attention(x, implementation=name)

    operators: dict[str, Callable[[Tensor, str], Tensor]] = {"temporal": temporal, "spatial": spatial}
    rounded, given = qkv.to(dtype), weights.to(dtype)
    for what, attend in operators.items():
        expected = _with_gradient(attend, rounded.double(), given.double(), "eager")
        bound = 16 * torch.finfo(dtype).eps
        for name in ("eager", "sdpa", "triton"):
            check = f"{what} attention, {name}, {device}, {word}"
            if (name, device, dtype) == ("triton", "cpu", torch.bfloat16):
                yield Check(
                    check, "skipped", "no kernel of Triton runs on a CPU; its interpreter multiplies this wrongly"
                )
                continue
            try:
                found = _with_gradient(attend, rounded, given, name)
            except UnsupportedKernelError as error:
                yield Check(check, "skipped", str(error).partition("but ")[2].partition(";")[0])
                continue
            error_of = max(map(_distance, found, expected))
            yield _within(check, error_of, bound)
            if name == "eager":  # kernels may round twice as coarsely, no more
                bound = 2 * max(error_of, torch.finfo(dtype).eps)


def _with_gradient(
    attend: Callable[[Tensor, str], Tensor], qkv: Tensor, weights: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    leaf = qkv.detach().requires_grad_()
    out = attend(leaf, name)
    (gradient,) = torch.autograd.grad(out, leaf, weights)
    return out.detach(), gradient


def _blocks(model: nn.Module) -> Check:
    """Check what runs fused by default: frozen layers, adapters and their gradients, in all blocks at once."""
    wrap_image_model(model, _FRAMES, num_classes=5)
    with torch.no_grad():
        for _, parameter in declared_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    device = next(model.parameters()).device
    video = torch.randn(_CLIPS, _FRAMES, 3, 32, 32, device=device)
    plain = copy.deepcopy(model)
    set_execution(plain, fused=False)
    set_attention(plain, "eager")
    expected = _step(copy.deepcopy(plain).double(), video.double())
    error, most = (max(map(_distance, _step(each, video), expected)) for each in (model, plain))
    return _within(f"adapted blocks as they run here, {device.type}, float32", error, 2 * max(most, 1e-6))


def _step(model: nn.Module, video: Tensor) -> list[Tensor]:
    model.eval()
    out: Tensor = model(video)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), trainable_parameters(model))]


def _versions() -> Iterator[Check]:
    """Check installed packages against the least versions that are declared."""
    from packaging.requirements import Requirement

    try:
        declared = requires("aim-adapters") or []
    except PackageNotFoundError:
        yield Check("versions of packages", "skipped", "aim-adapters runs from its sources and is not installed")
        return
    for text in declared:
        requirement = Requirement(text)
        marker = requirement.marker
        extra = next((name for name in _EXTRAS if marker is None or marker.evaluate({"extra": name})), None)
        if extra is None or requirement.name == "aim-adapters":
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wanted = f"not installed; pip install 'aim-adapters[{extra}]'" if extra else "not installed, and needed"
            yield Check(f"{requirement.name} {requirement.specifier}", "skipped" if extra else "failed", wanted)
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        yield Check(f"{requirement.name} {requirement.specifier}", "ok" if fits else "failed", f"installed {installed}")
