"""The function of the reference's image model, computed from its tensors, and its comparison with a model's.

Activation, epsilon, number of heads, pooling and the order of layers are not tensors, so two models with equal weights
can compute different functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy
from aim_adapters.convert.base import Roles
from aim_adapters.convert.layout import Layout
from aim_adapters.errors import CheckpointError


class Formula:
    """The reference's image model, layer by layer.

    Args:
        layout: Kind of model.
        tensors: Its tensors by role, and the trained final norm as ``norm.weight`` and ``norm.bias``; in one dtype.
        head_width: Width of an attention head; for Swin it is read from the position tables instead.
    """

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor], head_width: int) -> None:
        self.layout, self.w, self.head_width = layout, tensors, head_width

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Apply the LayerNorm of this name to ``[..., D]``."""
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.layout.eps)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply the linear layer of this name to ``[..., D]``."""
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def activation(self, x: Tensor) -> Tensor:
        """Apply the activation of the MLP elementwise."""
        return x * torch.sigmoid(1.702 * x) if self.layout.quick_gelu else F.gelu(x)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images ``[B, C, H, W]`` as the tokens that block 0 reads, ``[B, N, D]`` or ``[B, h, w, D]``."""
        kernel = self.w["patch.weight"]
        x = F.conv2d(images, kernel, self.w.get("patch.bias"), stride=kernel.shape[-2:]).movedim(1, -1)  # [B, h, w, D]
        if "class" in self.w:
            x = torch.cat((self.w["class"].reshape(1, 1, -1).expand(len(x), -1, -1), x.flatten(1, 2)), 1)  # [B, N, D]
            x = x + self.w["position"].reshape(1, -1, x.shape[-1])
        for name in ("pre_norm", "patch_norm"):
            if f"{name}.weight" in self.w:
                x = self.norm(name, x)
        return x

    def merge(self, stage: int, x: Tensor) -> Tensor:
        """Merge the patches ``[B, h, w, D]`` of a stage to ``[B, h/2, w/2, 2*D]``, neighbors column by column.

        Args:
            stage: Index of the stage.
            x: Tokens ``[B, h, w, D]``.

        Raises:
            CheckpointError: ``h`` or ``w`` is odd.
        """
        _require_multiple(x, 2)
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)  # [B, h/2, w/2, 4*D]
        return self.linear(f"merge.{stage}.reduction", self.norm(f"merge.{stage}.norm", x))

    def block(self, index: int, x: Tensor, *, odd: bool) -> Tensor:
        """Run a block.

        Args:
            index: Index of the block.
            x: Tokens ``[B, N, D]`` or ``[B, h, w, D]``.
            odd: Whether it is an odd block of its stage, whose windows are shifted in a Swin.

        Raises:
            CheckpointError: Windows do not divide ``h`` and ``w``.
        """
        at = f"blocks.{index}."
        h = self.norm(f"{at}norm1", x)
        x = x + (self._windows(at, h, odd=odd) if f"{at}spatial_bias" in self.w else self._attention(at, h, None))
        return x + self.mlp(index, self.norm(f"{at}norm2", x))

    def mlp(self, index: int, h: Tensor) -> Tensor:
        """Run the MLP of a block on ``[..., D]``."""
        return self.linear(f"blocks.{index}.fc2", self.activation(self.linear(f"blocks.{index}.fc1", h)))

    def pool(self, x: Tensor) -> Tensor:
        """Pool the last block's tokens to features ``[B, D]``."""
        return self.norm("norm", x[:, 0]) if x.ndim == 3 else self.norm("norm", x).mean((1, 2))

    def heads(self, index: int) -> int:
        """Return the number of attention heads of a block."""
        table = self.w.get(f"blocks.{index}.spatial_bias")
        dim: int = self.w[f"blocks.{index}.norm1.weight"].shape[0]
        return dim // self.head_width if table is None else table.shape[1]

    def _attention(self, at: str, h: Tensor, bias: Tensor | None) -> Tensor:
        """Attend over the second-last dimension of ``h [..., N, D]``."""
        heads = self.heads(int(at.split(".")[1]))
        qkv = self.linear(f"{at}qkv", h).unflatten(-1, (3, heads, -1))  # [..., N, 3, H, d]
        q, k, v = (x.transpose(-2, -3) for x in qkv.unbind(-3))  # [..., H, N, d]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.linear(f"{at}out", o.transpose(-2, -3).flatten(-2))

    def _windows(self, at: str, h: Tensor, *, odd: bool) -> Tensor:
        """Attend within windows of ``h [B, h, w, D]``."""
        table, height, width = self.w[f"{at}spatial_bias"], h.shape[1], h.shape[2]
        size = (math.isqrt(table.shape[0]) + 1) // 2
        _require_multiple(h, size)
        shift = size // 2 if odd and min(height, width) > size else 0
        rows, columns = (x.flatten() for x in torch.meshgrid(*[torch.arange(size, device=h.device)] * 2, indexing="ij"))
        index = (rows[:, None] - rows + size - 1) * (2 * size - 1) + columns[:, None] - columns + size - 1
        bias = table[index].permute(2, 0, 1)  # [H, N, N]
        if shift:
            # Rolling brings tokens of opposite borders into one window, where they must not attend to one another.
            marks = [torch.arange(n, device=h.device) for n in (height, width)]
            y, x = ((m >= len(m) - size).int() + (m >= len(m) - shift) for m in marks)
            region = _cut((3 * y[:, None] + x)[None, :, :, None], size).squeeze(-1)  # [1, y, x, N]
            apart = region[..., :, None] != region[..., None, :]  # [1, y, x, N, N]
            bias = bias - 100.0 * apart.unsqueeze(-3).to(bias)  # [1, y, x, H, N, N]
        tokens = _cut(torch.roll(h, (-shift, -shift), (1, 2)), size)  # [B, y, x, N, D]
        out = self._attention(at, tokens, bias).unflatten(3, (size, size))  # [B, y, x, m, n, D]
        rolled: Tensor = torch.roll(out.transpose(2, 3).flatten(3, 4).flatten(1, 2), (shift, shift), (1, 2))
        return rolled


def _require_multiple(x: Tensor, size: int) -> None:
    if x.shape[1] % size or x.shape[2] % size:
        raise CheckpointError(
            f"a map of {x.shape[1]} x {x.shape[2]} patches cannot be cut into squares of {size} without padding, which "
            "the reference never does; build the model for the image size of the checkpoint"
        )


def _cut(x: Tensor, size: int) -> Tensor:
    """Cut a map ``[B, h, w, D]`` into windows ``[B, h/size, w/size, size*size, D]``."""
    windows: Tensor = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(3, 4)
    return windows


def require_same_function(
    root: nn.Module, anatomy: BackboneAnatomy, roles: Roles, values: Mapping[str, Tensor], formula: Formula
) -> None:
    """Run the model on one image with the checkpoint's weights in place of its own, and compare each step.

    All is computed in float32 on the CPU, whatever the model's dtype and device. The model is not changed.

    Args:
        root: The model's root, not wrapped.
        anatomy: Its anatomy.
        roles: The root's parameters by role.
        values: The checkpoint's tensors by the names of the root's parameters.
        formula: The reference's image model, in float32.

    Raises:
        CheckpointError: A step differs; the message names it.
    """
    own = {**dict(root.named_parameters()), **dict(root.named_buffers()), **values}
    own |= {f"{anatomy.norm}.{leaf}": formula.w[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    own |= {name: torch.eye(anatomy.output_width, device="cpu") for name in anatomy.hidden_when_headed if name in own}
    cpu = {name: t.detach().to("cpu", torch.float32 if t.is_floating_point() else t.dtype) for name, t in own.items()}
    watch = _Watch(anatomy, formula)
    image = _random(1, anatomy.in_channels, *_image_size(anatomy, formula))
    with _evaluating(root), torch.no_grad(), torch.autocast("cpu", enabled=False), ExitStack() as stack:
        watch.norms(root, roles, cpu)
        for index, (path, _) in enumerate(anatomy.blocks):
            hook = root.get_submodule(path).register_forward_hook(watch.block_hook(index, image))
            stack.callback(hook.remove)
        for head in anatomy.heads[:1]:
            stack.callback(root.get_submodule(head.path).register_forward_pre_hook(watch.head_hook).remove)
        out = functional_call(root, cpu, (), {anatomy.input_name: image})
    features = watch.features if watch.features is not None else getattr(out, "pooler_output", out)
    features = features[0] if isinstance(features, tuple) else features
    watch.compare("final norm and pooling", features, formula.pool(watch.tokens), 1e-3)


class _Watch:
    """A comparison of each step of a model with the reference's, on the same input."""

    def __init__(self, anatomy: BackboneAnatomy, formula: Formula) -> None:
        self.anatomy, self.formula = anatomy, formula
        self.tokens: Tensor  # output of the latest block
        self.features: Tensor | None = None

    def norms(self, root: nn.Module, roles: Roles, tensors: Mapping[str, Tensor]) -> None:
        """Compare every LayerNorm on tokens of so little variance that its epsilon matters."""
        weights = {role: names[0] for role, names in roles.items() if re.search(r"norm[12]?\.weight$", role)}
        for role, name in {**weights, "norm.weight": f"{self.anatomy.norm}.weight"}.items():
            path = name.rpartition(".")[0]
            module, x = root.get_submodule(path), 0.01 * _random(16, tensors[name].shape[0])
            out = functional_call(module, {leaf: tensors[f"{path}.{leaf}"] for leaf in ("weight", "bias")}, x)
            why = f"its epsilon is {getattr(module, 'eps', 'unknown')}, the reference's {self.formula.layout.eps}"
            self.compare(f"{path} ({why})", out, self.formula.norm(role.removesuffix(".weight"), x), 1e-4)

    def block_hook(self, index: int, image: Tensor) -> Any:
        """Return a forward hook that compares a block, and what comes before it."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            x, dim = args[0], self.anatomy.block_widths[index]
            widths = self.anatomy.block_widths
            if index == 0:
                self.compare("patch embedding, positions and pre-norm", x, self.formula.embed(image), 1e-3)
            elif dim != widths[index - 1]:
                stage = len(set(widths[:index])) - 1
                self.compare(f"patch merging {stage}", x, self.formula.merge(stage, self.tokens), 1e-3)
            self._mlp_and_heads(index, module, self.anatomy.blocks[index][1])
            odd = (index - widths.index(dim)) % 2 == 1
            expected = self.formula.block(index, x, odd=odd)
            self.compare(f"block {index}", out - x, expected - x, 1e-3)
            self.tokens = out

        return hook

    def head_hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Record the input of the classification layer."""
        self.features = args[0]

    def _mlp_and_heads(self, index: int, module: nn.Module, block: BlockAnatomy) -> None:
        """Compare the MLP on tokens for which its activation matters, and the number of heads."""
        dim, at = self.anatomy.block_widths[index], f"block {index}"
        x = _random(16, dim)
        why = f" (the reference's activation is {'QuickGELU' if self.formula.layout.quick_gelu else 'the exact GELU'})"
        self.compare(f"{at}: {block.mlp}{why}", getattr(module, block.mlp)(x), self.formula.mlp(index, x), 2e-5)
        heads = block.heads(getattr(module, block.attention))
        if heads != self.formula.heads(index):
            raise CheckpointError(
                f"{at} has {heads} heads of width {dim / heads:g}, the reference's has {self.formula.heads(index)}; "
                "if the checkpoint was trained with another width, pass head_width"
            )

    def compare(self, step: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
        """Refuse a step whose relative difference is above the tolerance."""
        difference = f"shape {list(got.shape)} for {list(expected.shape)}"
        error = math.inf
        if got.shape == expected.shape:
            error = float((got - expected).norm() / expected.norm().clamp_min(1e-12))
            difference = f"relative difference {error:.2g}"
        if not error <= tolerance:
            raise CheckpointError(
                f"with the checkpoint's weights this model computes something else than the reference, first at "
                f"{step}: {difference}. Use a model that computes the same: {self.formula.layout.models}"
            )


def _random(*shape: int) -> Tensor:
    """Return the same random numbers at each call, in float32 on the CPU, whatever the caller's defaults."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _image_size(anatomy: BackboneAnatomy, formula: Formula) -> tuple[int, int]:
    """Return the image size of the model; for a Swin without one, the size where one window covers the last map."""
    if anatomy.image_size is not None:
        return anatomy.image_size
    window = (math.isqrt(formula.w["blocks.0.spatial_bias"].shape[0]) + 1) // 2
    times = window * 2 ** (len(set(anatomy.block_widths)) - 1)
    return anatomy.patch_size[0] * times, anatomy.patch_size[1] * times


@contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the block, without calling its ``train``, which may have side effects."""
    modes = [(module, module.training) for module in root.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
