"""The bottleneck adapter, and stochastic depth per clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.layers.linear import zero_linear


class Adapter(nn.Module):
    """The bottleneck adapter of AIM (Figure 2a): ``up(gelu(down(x)))``, plus ``x`` if ``skip``; or a linear one.

    The up-projection starts at zero, so a new adapter returns zero, or ``x`` if ``skip``. The GELU is exact, both
    projections have a bias, and ``down`` has PyTorch's default initialization.

    Args:
        dim: Width D of the tokens.
        width: Width of the bottleneck.
        skip: Whether the input is added to the output.
        linear: Whether there is no GELU: ``up(down(x))``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        *,
        skip: bool,
        linear: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.skip, self.linear = skip, linear
        self.down_proj = nn.Linear(dim, width, device=device, dtype=dtype)
        self.up_proj = zero_linear(width, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted tokens.

        Args:
            x: Tokens ``[..., D]``, in the dtype of the parameters or under autocast.

        Returns:
            Tokens ``[..., D]``.
        """
        hidden = self.down_proj(x)  # [..., W]
        out: Tensor = self.up_proj(hidden if self.linear else F.gelu(hidden))
        return x + out if self.skip else out

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.up_proj.weight.dtype

    def extra_repr(self) -> str:
        """Return the settings that the printed layers do not show."""
        return f"skip={self.skip}" + ", linear=True" * self.linear


def drop_path(branch: Tensor, *, rate: float, num_frames: int, training: bool) -> Tensor:
    """Drop a residual branch for whole clips (stochastic depth).

    The frames of a clip are kept or dropped together. The reference draws one number per token position instead, an
    oversight due to its ``[N, B*T, D]`` layout.

    Args:
        branch: The branch's output ``[B*T, ...]``, floating point.
        rate: Probability of dropping a clip's branch, in [0, 1).
        num_frames: Frames per clip T.
        training: False: return ``branch`` as it is.

    Returns:
        ``[B*T, ...]``: zero for dropped clips, divided by ``1 - rate`` for the others.
    """
    if not training or rate == 0.0:
        return branch
    clips = branch.unflatten(0, (-1, num_frames))  # [B, T, ...]
    mask = keep_clips(clips.new_empty([clips.shape[0]] + [1] * (clips.ndim - 1)), rate)
    out: Tensor = (clips * mask).flatten(0, 1)  # [B*T, ...]
    return out


def keep_clips(out: Tensor, rate: float) -> Tensor:
    """Fill a tensor with the random factor of each clip's branch: 0, or ``1 / (1 - rate)`` where it is kept.

    Args:
        out: Floating point, one element per clip; overwritten.
        rate: Probability of dropping a clip's branch, in [0, 1).

    Returns:
        ``out``.
    """
    return out.bernoulli_(1.0 - rate).div_(1.0 - rate)
