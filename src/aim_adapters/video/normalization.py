"""Normalization of uint8 pixels, on whatever device they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from aim_adapters.arguments import read_items, shown
from aim_adapters.clip_spec import per_channel
from aim_adapters.errors import ConfigError, InputError
from aim_adapters.video.frames import require_uint8


class Normalize(nn.Module):
    """Normalizes uint8 pixels: ``(frames / 255 - mean) / std``, computed in float32.

    It runs where the frames are, so that they cross to a GPU as uint8, a quarter of the bytes. Nothing of it is in a
    ``state_dict``, and a change of the module's dtype does not touch it.

    Args:
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, likewise.
        dtype: Type of the result.

    Raises:
        ConfigError: A value is no finite number, a ``std`` is not positive, or ``dtype`` is not a floating-point type.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        means = read_items(mean, "mean must be a number for each channel")
        self._values = {
            "mean": per_channel("mean", means, max(1, len(means))),
            "std": per_channel("std", std, max(1, len(means))),
        }
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigError(f"dtype must be a floating-point type such as torch.float32, got {shown(dtype)}")
        self.dtype = dtype
        self._fill(None)

    def forward(self, frames: Tensor) -> Tensor:
        """Return normalized frames of the same shape.

        Args:
            frames: ``[..., C, H, W]``, uint8.

        Raises:
            InputError: The frames are not uint8, or do not have C channels.
        """
        require_uint8(frames)
        channels = len(self.mean)
        if frames.ndim < 3 or frames.shape[-3] != channels:
            last = frames.ndim >= 3 and frames.shape[-1] == channels
            advice = "channels are last: pass frames.movedim(-1, -3)" if last else "pass frames with their channels"
            raise InputError(f"frames must be [..., {channels}, H, W], got {list(frames.shape)}; {advice}")
        # These three steps, in float32, and not one product: the same bits as everybody else's normalization.
        # Decoded frames have their channels last in memory, where models read them slowly.
        pixels = frames.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        pixels = pixels.sub_(self.mean.to(frames.device)).div_(self.std.to(frames.device))
        return pixels.to(self.dtype)

    def extra_repr(self) -> str:
        """Return mean and std, which ``print`` shows."""
        return ", ".join(f"{name}={values}" for name, values in self._values.items())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalize:
        """Move to a device, and stay float32: ``model.to(torch.bfloat16)`` would round the values."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill(self.mean.device)
        return self

    def _fill(self, device: torch.device | None) -> None:
        for name, values in self._values.items():
            tensor = torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)  # [C, 1, 1]
            self.register_buffer(name, tensor, persistent=False)
