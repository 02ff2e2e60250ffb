"""The hidden layer of an adapter, as columns beside those of a frozen layer: one product gives both branches."""

from aim_adapters.ops.bottleneck.api import BottleneckRows, bottleneck_rows
from aim_adapters.ops.bottleneck.layer import Layer
from aim_adapters.ops.bottleneck.weights import Adapter, Composed, MlpLayers, OutputLayer, scaled_output
from aim_adapters.ops.bottleneck.width import aligned, padded

__all__ = [
    "Adapter",
    "BottleneckRows",
    "Composed",
    "Layer",
    "MlpLayers",
    "OutputLayer",
    "aligned",
    "bottleneck_rows",
    "padded",
    "scaled_output",
]
