"""Wrapped models and blocks to test, float64, with random weights everywhere."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core import ByModules, by_modules, fused_branches
from tests.backbones.cases import scramble, wake

T = 4
SIZE: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
_OF_MODEL = (
    *("init_values", "use_rot_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"),
    *("qk_norm", "scale_attn_norm"),
)
ALL = ["frames", "tokens", "mlp"]
UNFROZEN = "a weight of the image model requires a gradient"
POSITIONS = "its spatial attention knows positions or masks"


class LowRank(nn.Module):
    """A layer that another tool puts into the place of a linear one."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.lora_a = layer, nn.Parameter(torch.zeros(2, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.lora_a.T @ self.lora_b.T


def model_of(cls: type[nn.Module] = VisionTransformer, **arguments: Any) -> Any:
    """Return a wrapped model with random weights everywhere, float64."""
    sizes = {key: arguments.pop(key) for key in _OF_MODEL if key in arguments}
    torch.manual_seed(0)
    model = scramble(cls(**SIZE, **sizes)).double()
    return wake(aim.wrap_image_model(model, T, **arguments)).eval()


def block_of(**arguments: Any) -> Any:
    """Return the first block of such a model."""
    return model_of(**arguments).blocks[0]


def tokens(clips: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(clips * T, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def video(clips: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, T, 3, 16, 16, dtype=torch.float64, generator=generator).to(dtype)


def answers(block: Any, x: Tensor | None = None, *, positions: Any = None) -> list[str | None]:
    """Return for each branch ``"fused"``, why not, or None."""
    branches = fused_branches(block, tokens() if x is None else x, positions=positions)
    return [b and (b.reason if isinstance(b, ByModules) else "fused") for b in branches]


def gradients(block: Any, x: Tensor) -> list[Tensor]:
    """Return the output of a block, and the gradients of its input and of what trains."""
    leaf = x.detach().clone().requires_grad_()
    out = block(leaf)
    trained = [p for p in block.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, [leaf, *trained], weights)]


def assert_as_modules(block: Any, x: Tensor | None = None) -> None:
    """Hold a block's output and gradients to those that its modules give."""
    x = tokens() if x is None else x
    ours = gradients(block, x)
    with by_modules(block.aim.root_state):
        for one, other in zip(ours, gradients(block, x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
