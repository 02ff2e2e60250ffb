"""Provide the bottleneck adapter and the stochastic depth of its branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.layers.linear import zero_linear


class Adapter(nn.Module):
    """Map tokens through a bottleneck: ``up(gelu(down(x)))``, plus ``x`` when ``skip``.

    Zero at the start (identity with ``skip``), as the up-projection starts at zero. Figure 2a of the paper;
    exact GELU, both projections with bias, ``down`` with PyTorch's default initialization.

    Args:
        dim: Width D of the tokens.
        width: Width of the bottleneck.
        skip: Add the input to the output.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self, dim: int, width: int, *, skip: bool, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.skip = skip
        self.down_proj = nn.Linear(dim, width, device=device, dtype=dtype)
        self.up_proj = zero_linear(width, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted tokens.

        Args:
            x: Tokens ``[..., D]``.

        Returns:
            Tokens ``[..., D]``.
        """
        out: Tensor = self.up_proj(F.gelu(self.down_proj(x)))
        return x + out if self.skip else out

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of its parameters."""
        return self.up_proj.weight.dtype

    def extra_repr(self) -> str:
        """Return the setting that the children do not show."""
        return f"skip={self.skip}"


def drop_path(branch: Tensor, *, rate: float, num_frames: int, training: bool) -> Tensor:
    """Drop a residual branch for whole clips (stochastic depth).

    One draw per clip: the frames of a clip are kept or dropped together. The reference draws along its
    token axis instead, by an oversight of its ``[N, B*T, D]`` layout.

    Args:
        branch: Branch ``[B*T, ...]``.
        rate: Probability of dropping a clip's branch, in [0, 1).
        num_frames: T.
        training: Identity when False.

    Returns:
        Branch ``[B*T, ...]``, kept clips divided by ``1 - rate``.
    """
    if not training or rate == 0.0:
        return branch
    clips = branch.unflatten(0, (-1, num_frames))  # [B, T, ...]
    mask = keep_clips(clips.new_empty([clips.shape[0]] + [1] * (clips.ndim - 1)), rate)
    out: Tensor = (clips * mask).flatten(0, 1)  # [B*T, ...]
    return out


def keep_clips(out: Tensor, rate: float) -> Tensor:
    """Draw the factor of each clip's branch, 0 or ``1 / (1 - rate)``, into a tensor.

    Args:
        out: Floating point, one element a clip; overwritten.
        rate: Probability of dropping a clip's branch, in [0, 1).
    """
    return out.bernoulli_(1.0 - rate).div_(1.0 - rate)
