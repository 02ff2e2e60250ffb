"""Give the benchmarks of whole models a size that a CPU trains, and compiles, in no time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.timing.peers import Size


@dataclass(frozen=True)
class Shallow(Size):
    """A size whose ViT has two blocks, as compilers and Triton's interpreter take their time for each."""

    def build(self, **settings: Any) -> nn.Module:
        return super().build(depth=2, **settings)


# Triton's interpreter multiplies bf16 wrongly.
TINY = Shallow("test_vit", clips=2, frames=2, resolution=32, classes=3, dtype="float16")
