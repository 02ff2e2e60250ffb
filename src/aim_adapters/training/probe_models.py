"""Probes: classifiers of what a frozen image model says of each frame."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import require_integer, require_number
from aim_adapters.clip_spec import ClipFacts
from aim_adapters.core import place_of
from aim_adapters.errors import ConfigError, InputError
from aim_adapters.layers import new_classifier
from aim_adapters.training.baseline_models import ImageBaseline


class MeanProbe(nn.Module):
    """A linear probe: features are averaged over frames, and over tokens if there are several, and classified.

    It cannot see the order of frames. It may run under autocast and be captured in a CUDA graph.

    Args:
        width: Width D of the features.
        classes: Number of classes K.
        dropout: Dropout rate before the classification layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ConfigError: A setting is of another kind, or out of range.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        dropout: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width, classes = require_integer("width", width, low=1), require_integer("classes", classes, low=1)
        self.dropout = nn.Dropout(require_number("dropout", dropout, low=0.0, high=1.0))
        self.head = new_classifier(width, classes, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips.

        Args:
            x: Features of frames ``[B, T, D]``, or of their tokens ``[B, T, N, D]``, floating point.

        Returns:
            Logits ``[B, K]``.

        Raises:
            InputError: The features are of another kind or shape.
        """
        x = _features(x, self.head.in_features, None)  # [B, T, N, D]
        logits: Tensor = self.head(self.dropout(x.mean((1, 2), dtype=self.head.weight.dtype)))
        return logits


class AttentiveProbe(nn.Module):
    """An attentive probe: one learned query reads the tokens of all frames, and what it found is classified.

    It is the probe of V-JEPA (Bardes et al., 2024, "Revisiting Feature Prediction for Learning Visual Representations
    from Video"): a block of cross-attention, ``q += attn(q, norm(x))`` and ``q += mlp(norm(q))``, then a linear layer.
    Tokens of a video model know their time, those of an image model do not: a learned position of its frame is added
    to each token.

    It may run under autocast and be captured in a CUDA graph.

    Args:
        width: Width D of the features.
        classes: Number of classes K.
        frames: Frames of a clip T.
        heads: Heads of the attention; they divide the width.
        mlp_ratio: Width of the MLP, as a multiple of D.
        dropout: Dropout rate before the classification layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ConfigError: A setting is of another kind, out of range, or does not fit the others.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        frames: int,
        heads: int = 12,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width, classes = require_integer("width", width, low=1), require_integer("classes", classes, low=1)
        frames, heads = require_integer("frames", frames, low=1), require_integer("heads", heads, low=1)
        hidden = int(require_number("mlp_ratio", mlp_ratio, low=0.0, open_low=True) * width)
        if width % heads:
            raise ConfigError(f"heads must divide the width, {width}, got {heads}")
        if not hidden:
            raise ConfigError(f"mlp_ratio must leave the MLP a unit, >= 1 / {width}, got {mlp_ratio}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width, **place))
        self.time = nn.Parameter(torch.empty(1, frames, 1, width, **place))
        self.norm = nn.LayerNorm(width, **place)
        self.q_proj = nn.Linear(width, width, **place)
        self.kv_proj = nn.Linear(width, 2 * width, **place)
        self.mlp_norm = nn.LayerNorm(width, **place)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, **place), nn.GELU(), nn.Linear(hidden, width, **place))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.dropout = nn.Dropout(require_number("dropout", dropout, low=0.0, high=1.0))
        self.head = new_classifier(width, classes, **place)

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips.

        Args:
            x: Tokens of frames ``[B, T, N, D]``, or one feature of each frame ``[B, T, D]``, floating point.

        Returns:
            Logits ``[B, K]``.

        Raises:
            InputError: The features are of another kind or shape.
        """
        _, frames, _, width = self.time.shape
        x = _features(x, width, frames)  # [B, T, N, D]
        x = self.norm((x.to(self.time.dtype) + self.time).flatten(1, 2))  # [B, T*N, D]
        k, v = self.kv_proj(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T*N, d] each
        q = self.q_proj(self.query).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [1, H, 1, d]
        found = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1).contiguous(), k, v).flatten(1)  # [B, D]
        pooled = self.query[0] + found  # [B, D]
        pooled = pooled + self.mlp(self.mlp_norm(pooled))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


def _features(x: Tensor, width: int, frames: int | None) -> Tensor:
    """Return features with a dimension of tokens, ``[B, T, N, D]``."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"features must be a floating-point tensor, got {got}")
    wrong = x.ndim not in (3, 4) or x.shape[-1] != width or (frames is not None and x.shape[1] != frames)
    if wrong or 0 in x.shape[1:]:
        count = "T" if frames is None else frames
        raise InputError(
            f"features must be [B, {count}, {width}] or [B, {count}, N, {width}], with T and N >= 1, got "
            f"{list(x.shape)}; of flat frames [B*T, ...] pass x.unflatten(0, (-1, T))"
        )
    return x if x.ndim == 4 else x.unsqueeze(2)


class Probe(ImageBaseline):
    """A frozen image model, and a probe of what it says of each frame.

    Args:
        baseline: Name of the baseline.
        image_model: The image model; its classification layer is taken away, and it is frozen.
        anatomy: Its anatomy.
        num_classes: Number of classes K.
        facts: What it reads.
        tubelet_size: Consecutive frames that are averaged before the image model reads them.
        dropout: Dropout rate before the classification layer.
        attentive: Whether an `AttentiveProbe` reads all tokens behind the final norm, or a `MeanProbe` what the image
            model pools of them.
    """

    def __init__(
        self,
        baseline: str,
        image_model: nn.Module,
        anatomy: BackboneAnatomy,
        num_classes: int,
        *,
        facts: ClipFacts,
        tubelet_size: int,
        dropout: float,
        attentive: bool,
    ) -> None:
        super().__init__(baseline, image_model, anatomy, num_classes, facts=facts, tubelet_size=tubelet_size)
        path, block = anatomy.blocks[-1]
        last: Any = image_model.get_submodule(path)
        self._tokens: Tensor | None = None
        self._norm = anatomy.norm
        if anatomy.norm is not None:  # behind the attention pooling of open_clip it may have another width
            norm = image_model.get_submodule(anatomy.norm)
            self._norm = anatomy.norm if all(len(p) == anatomy.block_widths[-1] for p in norm.parameters()) else None
        self.probe: nn.Module
        if attentive:
            width, heads = anatomy.block_widths[-1], block.heads(getattr(last, block.attention))
            self.probe = AttentiveProbe(
                width,
                num_classes,
                self.read_frames,
                heads if width % heads == 0 else 1,
                dropout=dropout,
                **place_of(last),
            )
            last.register_forward_hook(self._keep)
        else:
            self.probe = MeanProbe(anatomy.output_width, num_classes, dropout=dropout, **place_of(last))
        image_model.requires_grad_(False).eval()

    def forward(self, video: Tensor) -> Tensor:
        """Classify clips.

        Args:
            video: Floating point and normalized, ``[B, T, C, H, W]``.

        Returns:
            Logits ``[B, K]``.

        Raises:
            InputError: The video is of another kind or shape.
        """
        logits: Tensor = self.probe(self.read(video))
        return logits

    @torch.no_grad()
    def read(self, video: Tensor) -> Tensor:
        """Return what the probe reads, which training does not change.

        Args:
            video: Floating point and normalized, ``[B, T, C, H, W]``.

        Returns:
            ``[B, T, D]`` of a mean probe, ``[B, T, N, D]`` of an attentive one.

        Raises:
            InputError: The video is of another kind or shape.
        """
        found = self.features(self.frames_of(video))  # [B*T, D]
        if self._tokens is not None:
            found, self._tokens = self._tokens.flatten(1, -2), None  # [B*T, N, D]
            found = found if self._norm is None else self.image_model.get_submodule(self._norm)(found)
        clips: Tensor = found.unflatten(0, (-1, self.read_frames))  # [B, T, ...]
        return clips

    def train(self, mode: bool = True) -> Probe:
        """Set the mode of the probe; the image model stays in evaluation mode.

        Args:
            mode: Training or evaluation.
        """
        super().train(mode)
        self.image_model.eval()
        return self

    def _keep(self, block: nn.Module, args: object, tokens: Tensor) -> None:
        self._tokens = tokens
