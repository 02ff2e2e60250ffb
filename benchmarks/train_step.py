"""How long does a training step take, and how much memory, beside those of the peers?

``python -m benchmarks.train_step`` on a GPU; without one, a small model on the processor. A step is forward pass,
cross-entropy, backward pass and fused AdamW, in bf16 autocast (on a CPU in float32). Each peer is built, warmed up and
measured alone; then all of a size take turns, several rounds, so that drift of the clocks meets all alike, and the
times are of those. A peer is named ``<model>/<mode>``.

Models:

- ``aim``: a wrapped model whose blocks run fused, frozen weights held in bf16; ``aim-balanced`` and ``aim-low``: the
  same with less memory; ``aim-fp32``: the same with frozen weights held in float32;
- ``plain``: the same model over SDPA, layer by layer, frozen weights held in bf16; ``reference``: layer by layer,
  written-out attention over frames, all in float32 under autocast;
- ``full``: fine-tuning of the whole ViT on frames, whose logits are averaged; ``timesformer``: fine-tuning of the whole
  TimeSformer of transformers; ``swin3d``: fine-tuning of the whole Video Swin-B of torchvision.

Modes: ``eager``; ``blocks``, each block compiled; ``whole``, the model compiled; ``graph``, the same replayed from CUDA
graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Target
from benchmarks.peers import Batch, Size
from benchmarks.steps import Goal, Job, Step, Task, finish, key_of, measure, parser, start, sweep, targets

BASE = Size("vit_base_patch16_clip_224", 32)
SIZES = {
    "base-8": BASE,
    "base-16": replace(BASE, frames=16, clips=16),
    "base-32": replace(BASE, frames=32, clips=8),
    "base-64": replace(BASE, frames=64, clips=4),
    "large-8": Size("vit_large_patch14_clip_224", 16),
    "swin-32": Size("swin_base_patch4_window7_224", 8, frames=32, tubelet=2),
    "small-8": Size("vit_small_patch16_224", 1, dtype="float32"),
}
DEFAULT = {"cuda": tuple(SIZES)[:-1], "cpu": ("small-8",)}
