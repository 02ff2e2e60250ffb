"""The names that the reference gives its tensors, and the settings that their shapes imply."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from aim_adapters.config import COMPONENTS, AIMConfig
from aim_adapters.convert.reading import FLOATS
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.layers import is_temporal

_VIT_ADAPTERS = {
    "T_Adapter": "temporal",
    "T_Adapter_in": "temporal_input",
    "S_Adapter": "spatial",
    "MLP_Adapter": "joint",
}
_LINEAR = {"D_fc1": "down_proj", "D_fc2": "up_proj"}
_BUFFERS = ("relative_position_index", "t_relative_coords", "attn_mask")


@dataclass(frozen=True, eq=False)
class Layout:
    """The names that the reference gives the tensors of one kind of model, and the settings that are not tensors.

    Args:
        name: Name of the kind, for messages.
        block: Pattern of a key inside a block, with groups for the stage (if any), the index and the rest.
        names: Our names of modules and parameters outside of blocks, by the reference's.
        block_names: Our names of those inside a block.
        adapters: Our names of a block's adapters.
        eps: Epsilon of every LayerNorm.
        quick_gelu: Whether the MLP's activation is ``x * sigmoid(1.702 x)`` instead of the exact GELU.
        models: Base models that compute the same function, for messages.
    """

    name: str
    block: str
    names: Mapping[str, str]
    block_names: Mapping[str, str]
    adapters: Mapping[str, str]
    eps: float
    quick_gelu: bool
    models: str

    def translate(self, key: str, offsets: Mapping[int, int]) -> str | None:
        """Return our name of a tensor: its key in a checkpoint, or ``base.`` and its role; None if it is unknown.

        Args:
            key: The reference's key.
            offsets: Number of blocks before each stage.
        """
        if (match := re.fullmatch(self.block, key)) is None:
            return _look_up(self.names, key)
        *stage, index, rest = match.groups()
        at = f"blocks.{offsets[int(stage[0]) if stage else 0] + int(index)}"
        adapter, _, layer = rest.partition(".")
        if adapter in self.adapters:
            linear = _look_up(_LINEAR, layer)
            return linear and f"{at}.{self.adapters[adapter]}.{linear}"
        if rest == "attn.temporal_position_bias_table":
            return f"{at}.temporal_bias"
        role = _look_up(self.block_names, rest.replace("in_proj_", "in_proj."))
        return role and f"base.{at}.{role}"


def _look_up(names: Mapping[str, str], key: str) -> str | None:
    module, _, leaf = key.rpartition(".")
    if key in names:
        return names[key]
    return f"{names[module]}.{leaf}" if module in names and leaf in ("weight", "bias") else None


_TRAINED = {"temporal_embedding": "temporal_embedding", "ln_post": "norm", "cls_head.fc_cls": "head"}
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}

CLIP = Layout(
    name="CLIP ViT",
    block=r"transformer\.resblocks\.([0-9]{1,3})\.(.+)",
    names={
        "class_embedding": "base.class",
        "positional_embedding": "base.position",
        "conv1": "base.patch",
        "ln_pre": "base.pre_norm",
        **_TRAINED,
    },
    block_names={
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj": "qkv",
        "attn.out_proj": "out",
        "mlp.c_fc": "fc1",
        "mlp.c_proj": "fc2",
    },
    adapters=_VIT_ADAPTERS,
    eps=1e-5,
    quick_gelu=True,
    models="timm's vit_base_patch16_clip_quickgelu_224.openai or vit_large_patch14_clip_quickgelu_224.openai (not "
    "vit_base_patch16_clip_224.openai), the image tower of open_clip's ViT-B-16-quickgelu or ViT-L-14-quickgelu, or "
    "transformers' CLIPVisionModel from openai/clip-vit-base-patch16 or -large-patch14",
)

IMAGENET = Layout(
    name="ImageNet ViT",
    block=r"blocks\.([0-9]{1,3})\.(.+)",
    names={"cls_token": "base.class", "pos_embed": "base.position", "patch_embed.proj": "base.patch", **_TRAINED},
    block_names=_BLOCK,
    adapters=_VIT_ADAPTERS,
    eps=1e-6,
    quick_gelu=False,
    models="timm's vit_base_patch16_224.augreg_in21k, transformers' ViTForImageClassification with "
    "layer_norm_eps=1e-6, or torchvision's vit_b_16",
)

SWIN = Layout(
    name="Swin",
    block=r"layers\.([0-9]{1,3})\.blocks\.([0-9]{1,3})\.(.+)",
    names={
        "patch_embed.proj": "base.patch",
        "patch_embed.norm": "base.patch_norm",
        "norm": "norm",
        "cls_head.fc_cls": "head",
        **{
            f"layers.{stage}.downsample.{layer}": f"base.merge.{stage}.{layer}"
            for stage in range(8)
            for layer in ("norm", "reduction")
        },
    },
    block_names={**_BLOCK, "attn.relative_position_bias_table": "spatial_bias"},
    adapters={"T_Adapter": "temporal", "S_Adapter": "joint", "S_Adapter2": "spatial"},
    eps=1e-5,
    quick_gelu=False,
    models="timm's swin_base_patch4_window7_224.ms_in22k or torchvision's swin_b",
)

LAYOUTS = (CLIP, IMAGENET, SWIN)


@dataclass(frozen=True)
class Reference:
    """The content of a reference checkpoint under our names.

    Args:
        layout: The names that the reference gave it.
        depths: Number of blocks of each stage.
        base: Tensors of the image model by their role; empty in a file with adapters only.
        adapters: All trained tensors, by their keys in our checkpoints.
        unknown: The reference's keys that are unknown.
        tubelet_size: Frames that one patch covers.
    """

    layout: Layout
    depths: tuple[int, ...]
    base: dict[str, Tensor]
    adapters: dict[str, Tensor]
    unknown: tuple[str, ...]
    tubelet_size: int


def read_reference(tensors: Mapping[str, Tensor]) -> Reference:
    """Recognize the layout of a reference checkpoint, and translate its keys.

    Args:
        tensors: Result of `read_tensors`.

    Raises:
        CheckpointError: No layout fits, blocks or the final norm are missing, there are no adapters, a tensor is given
            twice or has the wrong dtype, or a Swin orders its temporal bias differently.
    """
    layout = max(LAYOUTS, key=lambda candidate: sum(re.fullmatch(candidate.block, key) is not None for key in tensors))
    depths = _depths([match for key in tensors if (match := re.fullmatch(layout.block, key))])
    if not depths:
        raise CheckpointError(
            f"this is no checkpoint of the AIM reference: expected keys such as 'backbone.transformer.resblocks.0"
            f".T_Adapter.D_fc1.weight', got {', '.join(map(repr, list(tensors)[:5]))}"
        )
    offsets = {stage: sum(depths[:stage]) for stage in range(len(depths))}
    base: dict[str, Tensor] = {}
    adapters: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        if key.endswith(_BUFFERS):
            _check_buffer(key, tensor)
            continue
        ours = layout.translate(key, offsets)
        if ours is None:
            unknown.append(key)
            continue
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{key!r} must be a floating-point tensor, got {tensor.dtype}")
        target, name = (base, ours.removeprefix("base.")) if ours.startswith("base.") else (adapters, ours)
        if name in target:
            raise CheckpointError(f"{key!r} is given twice, under two spellings")
        target[name] = tensor
    if not any(key.startswith("blocks.") for key in adapters):
        raise CheckpointError(f"these are {layout.name} tensors without adapters; expected a checkpoint trained by AIM")
    for key in ("norm.weight", "norm.bias"):
        if key not in adapters or adapters[key].ndim != 1:
            name = f"{'norm' if layout.name == 'Swin' else 'ln_post'}.{key.partition('.')[2]}"
            raise CheckpointError(f"the checkpoint lacks {name!r} [D], the final norm that the reference trains")
    tubelet_size = _merge_tubelet(base) if layout is SWIN else 1
    return Reference(layout, depths, base, adapters, tuple(unknown), tubelet_size)


def _depths(matches: Sequence[re.Match[str]]) -> tuple[int, ...]:
    """Return the number of blocks of each stage."""
    indices = {tuple(int(group) for group in match.groups()[:-1]) for match in matches}
    blocks = sorted(index if len(index) == 2 else (0, *index) for index in indices)
    for stage, index in blocks:
        before = (stage, index - 1) if index else (stage - 1, 0)
        if before != (-1, 0) and before not in blocks:
            raise CheckpointError(f"the checkpoint holds block {index} of stage {stage}, but none before it")
    return tuple(len(list(group)) for _, group in groupby(blocks, key=lambda block: block[0]))


def _check_buffer(key: str, tensor: Tensor) -> None:
    """Refuse an index of the temporal bias that differs from ours: s - t + T - 1 for query frame s and key frame t."""
    if not key.endswith("t_relative_coords"):
        return
    frames = torch.arange(math.isqrt(tensor.numel()))
    expected = (frames[:, None] - frames[None, :] + len(frames) - 1).flatten()  # [T*T]
    if not torch.equal(tensor.flatten().long(), expected):
        raise CheckpointError(
            f"{key!r} orders the temporal bias otherwise than (query frame - key frame + T - 1); this file was not "
            "made by the published reference"
        )


def _merge_tubelet(base: dict[str, Tensor]) -> int:
    """Replace a patch kernel over several frames by the kernel for their mean, and return the number of frames."""
    kernel = base.get("patch.weight")
    if kernel is None or kernel.ndim == 4:
        return 2 if kernel is None else 1
    if kernel.ndim != 5 or 0 in kernel.shape:
        raise CheckpointError(f"the patch kernel must be [D, 3, frames, height, width], got {list(kernel.shape)}")
    if not torch.equal(kernel, kernel[:, :, :1].expand_as(kernel)):
        raise CheckpointError(
            "the patch kernel differs from frame to frame, so it is not an image model's kernel repeated over frames "
            "and cannot be read as one"
        )
    base["patch.weight"] = kernel[:, :, 0] * kernel.shape[2]  # [D, 3, height, width]
    return kernel.shape[2]


def infer_config(
    reference: Reference,
    block_widths: Sequence[int],
    *,
    scale: float | None,
    num_classes: int | None,
    drop_path: float,
    head_dropout: float,
) -> AIMConfig:
    """Infer the settings from the shapes of a checkpoint.

    Args:
        reference: The checkpoint.
        block_widths: Width D of each block of the model.
        scale: Factor on the joint adapter; None: 1 with input adapters, else 0.5.
        num_classes: 0 for features, None for the classes of the checkpoint.
        drop_path: Stochastic depth rate of the last block.
        head_dropout: Dropout rate before the classification layer.

    Raises:
        CheckpointError: The checkpoint is for a model of other depth or width, or no settings give its shapes.
        ConfigError: An argument is invalid.
    """
    adapters = reference.adapters
    depths = tuple(len(list(group)) for _, group in groupby(block_widths))
    if depths != reference.depths:
        raise CheckpointError(f"the checkpoint has {_count(reference.depths)}, this model has {_count(depths)}")
    paths = [key.split(".") for key in adapters if key.startswith("blocks.")]
    layers = tuple(sorted({int(path[1]) for path in paths}))
    names = {path[2] for path in paths}
    frames = _frames(adapters)
    _require_entry(adapters, layers, "temporal" in names)
    if num_classes not in (None, 0):
        raise CheckpointError(
            f"num_classes={num_classes}: the classification layer is the checkpoint's; pass None, or 0 for features"
        )
    if num_classes is None:
        if (head := adapters.get("head.weight")) is None or head.ndim != 2:
            got = "none" if head is None else f"the shape {list(head.shape)}"
            raise CheckpointError(
                f"'cls_head.fc_cls.weight' must be [classes, D], got {got}; pass num_classes=0 to load features only"
            )
        num_classes = head.shape[0]
    given = AIMConfig(1, scale=0.5 if scale is None else scale, drop_path=drop_path, head_dropout=head_dropout)
    try:
        return dataclasses.replace(
            given,
            num_frames=frames * reference.tubelet_size,
            bottleneck=_bottleneck(adapters, block_widths),
            scale=1.0 if scale is None and "temporal_input" in names else given.scale,
            num_classes=num_classes,
            components=tuple(name for name in COMPONENTS if name in names),
            layers="all" if layers == tuple(range(len(block_widths))) else layers,
            temporal_input_adapter="temporal_input" in names,
            tubelet_size=reference.tubelet_size,
        )
    except ConfigError as error:
        raise CheckpointError(f"the shapes in the checkpoint give settings that no model has: {error}") from error


def _count(depths: Sequence[int]) -> str:
    return f"{depths[0]} blocks" if len(depths) == 1 else f"stages of {' + '.join(map(str, depths))} blocks"


def _require_entry(adapters: dict[str, Tensor], layers: Sequence[int], temporal: bool) -> None:
    """Refuse a temporal embedding that would not be added before block 0, where the reference adds it."""
    embedding = adapters.get("temporal_embedding")
    if embedding is not None and not temporal and not bool(embedding.any()):
        del adapters["temporal_embedding"]  # never trained, so it has no effect
    elif embedding is not None and (layers[0] != 0 or not temporal):
        problem = f"its first adapter is in block {layers[0]}" if temporal else "it has no temporal adapters"
        raise CheckpointError(
            f"the checkpoint adds a temporal embedding before block 0, but {problem}; this cannot be kept exactly"
        )


def _frames(adapters: Mapping[str, Tensor]) -> int:
    """Return the number of frames in temporal attention."""
    for key, tensor in adapters.items():
        if is_temporal(key) and tensor.numel():
            if key == "temporal_embedding" and tensor.ndim == 3 and tensor.shape[0] == 1:
                return tensor.shape[1]
            if key != "temporal_embedding" and tensor.ndim == 2 and tensor.shape[0] % 2:
                return (tensor.shape[0] + 1) // 2
            raise CheckpointError(f"{key} must be [1, T, D], or [2T-1, heads] in a Swin, got {list(tensor.shape)}")
    raise CheckpointError(
        "the checkpoint holds neither a temporal embedding nor temporal biases, so its number of frames is unknown"
    )


def _bottleneck(adapters: Mapping[str, Tensor], block_widths: Sequence[int]) -> float:
    """Return a ratio that gives every adapter its width: 0.25 if possible."""
    pairs: set[tuple[int, int]] = set()
    for key, tensor in adapters.items():
        if key.endswith(".down_proj.weight"):
            dim = block_widths[int(key.split(".")[1])]
            if tensor.ndim != 2 or tensor.shape[1] != dim or not 0 < tensor.shape[0]:
                raise CheckpointError(f"{key} must be [width, {dim}] for this model, got {list(tensor.shape)}")
            pairs.add((tensor.shape[0], dim))
    if not pairs:
        raise CheckpointError("the checkpoint's adapters lack their first layers (D_fc1)")
    low, high = max(width / dim for width, dim in pairs), min((width + 1) / dim for width, dim in pairs)
    for ratio in (0.25, low, (low + high) / 2):
        if all(int(ratio * dim) == width for width, dim in pairs):
            return ratio
    raise CheckpointError(f"no bottleneck ratio gives all adapter widths (width of blocks {sorted(pairs)})")
