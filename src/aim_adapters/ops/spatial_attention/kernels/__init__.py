"""Triton kernels of spatial attention on a packed projection as it was written; its gradient is packed alike.

Three kinds, by the length of the sequences: *window*, *resident*, *streaming*. Probabilities stay in the registers:
where a product needs them transposed, they are computed transposed. Heads vary fastest in the grid, as they lie side by
side.

For every frame (or window) and head, with q, k, v, out and its gradient d_out ``[N, d]``, all kinds compute

    s     = scale * q k^T + bias[head] + mask[window]       [N, N], the scores
    lse   = log(sum(exp(s), along the keys))                [N]
    p     = exp(s - lse) = softmax(s)                       [N, N], the probabilities
    out   = p v                                             [N, d]

and backward

    d_v   = p^T d_out                                       [N, d]
    d_p   = d_out v^T                                       [N, N]
    delta = sum(out * d_out, along d)                       [N], which equals sum(p * d_p, along the keys)
    d_s   = p * (d_p - delta)                               [N, N]
    d_q   = scale * d_s k,  d_k = scale * d_s^T q           [N, d]

Scores, softmax and sums are float32, and products are accumulated in float32; p and d_s are rounded to the dtype of the
projection where a product reads them. Exponentials are powers of 2, which are one instruction: the kernels hold scores
in units of log2, s * log2(e).

Letters: F frames (or windows), W windows that a mask or an index tells apart, N tokens of a sequence (TOKENS), H heads,
d width of a head (HEAD_DIM). A tile is BLOCK_ROWS rows of one head, BLOCK_DIM columns each, zeros where there is no
element. In a packed projection [F, N, 3, H, d] keys lie stride_qkv_q_to_k behind queries, and values behind keys.
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
