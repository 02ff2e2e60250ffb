"""Say to which part of a step each kernel of a GPU belongs, by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.profiler import Kernel

# The first that fits: a library's attention kernels name products too, and fused kernels name all that they compute.
# "quanti" fits either spelling.
WORDS = (
    ("optimizer", ("multi_tensor_apply", "adam")),
    ("adapter", ("hidden_", "widened_", "joined_", "gradients_", "output_layer_", "mlp_layers_")),
    ("norms", ("layer_norm", "layernorm", "gammabeta", "prepare_")),  # of heads, rotated in the same pass
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("spatial attention", ("window_", "resident_", "streaming_")),
    ("activation", ("activation", "gelu", "sigmoid")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk", "gemv", "convolve")),
    ("copies and casts", ("copy", "memcpy", "memset", "catarray", "_clone", "_cat_", "transpose", "quanti")),
)
TEMPORAL_KERNELS = ("forward_kernel", "backward_kernel")
PARTS = (
    "matrix products", "spatial attention", "temporal attention", "norms", "activation", "adapter",
    "copies and casts", "optimizer", "other",
)  # fmt: skip


def part_of(kernel: Kernel, sequences: int, heads: int) -> str:
    """Return the part of a step that a kernel belongs to.

    Products of adapters count with all other products. A library's attention runs the same kernels over tokens and over
    frames; those whose grid counts the ``sequences`` over frames (or their heads) attend over frames.
    """
    if kernel.name in TEMPORAL_KERNELS:
        return "temporal attention"
    name = kernel.name.lower()
    part = next((part for part, words in WORDS if any(word in name for word in words)), "other")
    if part != "attention":
        return part
    over_frames = any(size in (sequences, sequences * heads) for size in kernel.grid)
    return "temporal attention" if over_frames else "spatial attention"


def breakdown(kernels: Sequence[Kernel], *, steps: int, sequences: int, heads: int) -> dict[str, Any]:
    """Return the seconds of each part in a step, the launches, and the kernels that took longest."""
    seconds: Counter[str] = Counter(dict.fromkeys(PARTS, 0.0))
    by_name: Counter[tuple[str, str]] = Counter()
    for kernel in kernels:
        part = part_of(kernel, sequences, heads)
        seconds[part] += kernel.seconds / steps
        by_name[part, kernel.name] += kernel.seconds / steps
    return {
        "seconds": {part: seconds[part] for part in PARTS},
        "launches": round(len(kernels) / steps),
        "longest": [
            {"part": part, "kernel": name[:120], "seconds": took} for (part, name), took in by_name.most_common(16)
        ],
    }
