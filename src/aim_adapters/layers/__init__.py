"""The trainable layers that AIM adds to an image transformer, and the steps from videos to frames and back to clips."""

from aim_adapters.layers.adapter import Adapter, drop_path, keep_clips
from aim_adapters.layers.folding import folded_bias, folded_weight
from aim_adapters.layers.head import average_frames, new_classifier
from aim_adapters.layers.input_advice import advise_dtype, advise_type
from aim_adapters.layers.linear import zero_linear
from aim_adapters.layers.pixels import suspicions
from aim_adapters.layers.temporal import (
    add_temporal_embedding,
    is_temporal,
    new_temporal_bias,
    new_temporal_embedding,
    relative_temporal_bias,
    resize_temporal_bias,
    resize_temporal_embedding,
)
from aim_adapters.layers.temporal_conv import TemporalConv
from aim_adapters.layers.video_input import flatten_patches, flatten_video

__all__ = [
    "Adapter",
    "TemporalConv",
    "add_temporal_embedding",
    "advise_dtype",
    "advise_type",
    "average_frames",
    "drop_path",
    "flatten_patches",
    "flatten_video",
    "folded_bias",
    "folded_weight",
    "is_temporal",
    "keep_clips",
    "new_classifier",
    "new_temporal_bias",
    "new_temporal_embedding",
    "relative_temporal_bias",
    "resize_temporal_bias",
    "resize_temporal_embedding",
    "suspicions",
    "zero_linear",
]
