"""A bottleneck with a depthwise convolution over time, in front of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aim_adapters.layers.linear import zero_linear
from aim_adapters.ops.temporal_conv import temporal_conv_gelu


class TemporalConv(nn.Module):
    """A bottleneck in which each channel sees its neighbors in time: ``up(gelu(conv(down(x))))``.

    After ST-Adapter (Pan et al., NeurIPS 2022, https://arxiv.org/abs/2206.13559), which reads the residual stream
    itself, without a norm; the authors' models convolve over time alone, too (3 x 1 x 1). Where this differs from
    their code, it is as the other adapters here: the up-projection starts at zero, and not the convolution; there is a
    GELU, behind the convolution; and [class] tokens see time as well.

    Args:
        dim: Width D of the tokens.
        width: Width W of the bottleneck.
        kernel: Frames K that the convolution sees: odd.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self, dim: int, width: int, *, kernel: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.down_proj = nn.Linear(dim, width, device=device, dtype=dtype)
        self.conv_weight = nn.Parameter(torch.empty(width, kernel, device=device, dtype=dtype))
        self.conv_bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.up_proj = zero_linear(width, dim, device=device, dtype=dtype)
        for parameter in (self.conv_weight, self.conv_bias):  # as a depthwise nn.Conv1d
            nn.init.uniform_(parameter, -(kernel**-0.5), kernel**-0.5)

    def forward(self, x: Tensor, *, num_frames: int, implementation: str = "auto") -> Tensor:
        """Return what the convolution adds to the tokens; clips do not see one another.

        Args:
            x: Tokens ``[B*T, ..., D]``, in the dtype of the parameters or under autocast.
            num_frames: Frames per clip T; beyond both ends of a clip there are zeros.
            implementation: How the convolution is computed.

        Returns:
            Tokens ``[B*T, ..., D]``.
        """
        h = self.down_proj(x)  # [B*T, ..., W]
        h = temporal_conv_gelu(
            h, self.conv_weight, self.conv_bias, num_frames=num_frames, implementation=implementation
        )
        out: Tensor = self.up_proj(h)  # [B*T, ..., D]
        return out

    def extra_repr(self) -> str:
        """Return the setting that the printed layers do not show."""
        return f"kernel={self.conv_weight.shape[1]}"
