"""Compute spatial attention on a packed projection as it was written, its gradient packed alike, by Triton kernels.

Three kinds, by the length of the sequences: *window*, *resident*, *streaming*. Probabilities stay in the
registers: where a product needs them transposed, they are computed transposed. Heads vary fastest in the grid, as they
lie side by side.
"""

from aim_adapters.ops.spatial_attention.kernels.resident import resident_backward, resident_forward
from aim_adapters.ops.spatial_attention.kernels.streaming import streaming_backward, streaming_forward
from aim_adapters.ops.spatial_attention.kernels.window import window_backward, window_forward

__all__ = [
    "resident_backward",
    "resident_forward",
    "streaming_backward",
    "streaming_forward",
    "window_backward",
    "window_forward",
]
