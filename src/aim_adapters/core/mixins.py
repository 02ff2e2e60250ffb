"""The mixins of modules around the blocks: entry, patches, final norm, head, and what holds an adapted tower."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from aim_adapters.anatomy import Override
from aim_adapters.core.fusion import compute_dtype
from aim_adapters.core.given_state import require_whole_state
from aim_adapters.core.guards import require_recorded
from aim_adapters.core.overrides import overriding
from aim_adapters.core.patching import Patched, blocked_methods
from aim_adapters.core.readers import require_flat
from aim_adapters.core.state import NormState, RootState
from aim_adapters.layers import add_temporal_embedding, average_frames
from aim_adapters.ops.device import exporting


class WholeModel(Patched):
    """A model around an adapted tower, such as CLIP, whose other parts stay frozen.

    The specification is the path of the tower, the methods to block, and the overrides.
    """

    aim_spec: ClassVar[tuple[str, tuple[str, ...], tuple[tuple[str, Override], ...]]]

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        """Block and override the methods that the anatomy names."""
        return {**blocked_methods(base, spec[1]), **overriding(base, spec[2])}

    def train(self, mode: bool = True) -> WholeModel:
        """Set the mode of the adapted tower; the rest of the model stays in evaluation mode."""
        super().train(mode)
        tower = self.aim_spec[0]
        for name, module in self.named_modules():
            leads_to_tower = f"{tower}.".startswith(f"{name}.") or name == ""
            if not leads_to_tower and not name.startswith(f"{tower}."):
                module.training = False
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Refused here, before anything of the other parts is copied.
        require_whole_state(self.get_submodule(self.aim_spec[0]), state_dict, f"{prefix}{self.aim_spec[0]}.")
        super()._load_from_state_dict(state_dict, prefix, *args)


class TokenEntry(Patched):
    """The module where tokens enter the blocks, which adds the temporal embedding.

    The specification is ``"input"`` or ``"output"``.
    """

    aim_spec: ClassVar[str]
    aim_shared: tuple[RootState]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the embedding added before or after it.

        Args:
            x: Tokens ``[B*T, N, D]`` (entry at the input), or whatever the module reads (entry at the output).
            *args: The module's own further arguments.
            **kwargs: The same by name.

        Raises:
            InputError: It was called by itself with a 5-D video.
        """
        require_flat(self, x)
        shared = self.aim_shared[0]
        if not shared.enabled or shared.temporal_embedding is None:
            return super().forward(x, *args, **kwargs)
        if self.aim_spec == "input":
            return super().forward(add_temporal_embedding(x, shared.temporal_embedding), *args, **kwargs)
        return add_temporal_embedding(super().forward(x, *args, **kwargs), shared.temporal_embedding)


class PatchProduct(Patched):
    """A frozen patch embedding whose kernel is as wide as its stride, computed as one product."""

    aim_shared: tuple[RootState]

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches.

        Args:
            x: Images ``[B*T, C, H, W]``.

        Returns:
            ``[B*T, D, H/p, W/q]``; a token's elements lie side by side.

        Raises:
            InputError: It was called by itself with a 5-D video.
        """
        require_flat(self, x)
        shared, weight = self.aim_shared[0], self.weight
        bias: Any = self.bias
        assert isinstance(weight, Tensor)
        height, width = weight.shape[2:]
        fits = x.shape[2] % height == 0 and x.shape[3] % width == 0
        by_modules = not shared.enabled or shared.execution.fused is False or exporting()
        if by_modules or weight.requires_grad or not fits:
            out: Tensor = super().forward(x)
            return out
        patches = rearrange(x, "f c (h p) (w q) -> f h w c p q", p=height, q=width)
        rows = patches.to(compute_dtype(x), memory_format=torch.contiguous_format).flatten(3)  # [F, h, w, C*p*q]
        return F.linear(rows, weight.flatten(1), bias).permute(0, 3, 1, 2)  # [F, D, h, w]


class TrainedNorm(Patched):
    """A final norm in whose place the trained copy runs."""

    aim: NormState

    def forward(self, x: Tensor) -> Tensor:
        """Normalize.

        Args:
            x: ``[..., D]``.

        Raises:
            StateError: Re-entrant checkpointing would give it no gradients.
        """
        if not self.aim.root_state.enabled:
            out: Tensor = super().forward(x)
            return out
        require_recorded(self.aim.root_state, self.aim, x)
        trained: Tensor = self.aim(x)
        return trained


class ClipHead(Patched):
    """An output layer in front of which frames are averaged. The specification is ``(our layer's name, keep_own)``."""

    aim_spec: ClassVar[tuple[str, bool]]
    aim_shared: tuple[RootState]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return one output per clip.

        Args:
            x: Features of each frame ``[B*T, ..., D]``.
            *args: The layer's own further arguments.
            **kwargs: The same by name.

        Returns:
            ``[B, ..., K]``.
        """
        shared, (name, keep_own) = self.aim_shared[0], self.aim_spec
        if shared.enabled and not keep_own:
            return shared.classify(x, name)
        # The frozen layer may not be linear, so frames are averaged behind it; while adapters are disabled the root
        # does that, behind everything.
        out: Tensor = super().forward(x, *args, **kwargs)
        return average_frames(out, shared.num_frames) if shared.enabled else out
