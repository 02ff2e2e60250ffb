"""Print every row of the paper's tables beside what this library counts: parameters and multiply-accumulates.

python -m benchmarks.checks.paper_tables        # exits non-zero when a row does not come out
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch

import aim_adapters as aim

BASE, LARGE = "vit_base_patch16_clip_quickgelu_224.openai", "vit_large_patch14_clip_quickgelu_224.openai"
IN21K = "vit_base_patch16_224"
K400: dict[str, Any] = {"num_classes": 400}
SSV2: dict[str, Any] = {"num_classes": 174, "temporal_input_adapter": True}
VIEWS = 3


@dataclass(frozen=True)
class Row:
    """A number the paper prints.

    Attributes:
        what: what the row is.
        printed: the paper's figure, as printed.
        value: ours, in the same unit.
        tolerance: greatest difference that still is the same number: one unit of the last printed digit for
            parameters (the paper rounds in some rows and cuts off in others), one percent for arithmetic.
    """

    what: str
    printed: str
    value: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Tell whether the row comes out."""
        return abs(self.value - float(self.printed)) < self.tolerance


def wrapped(name: str, frames: int = 8, **settings: Any) -> torch.nn.Module:
    """Build and wrap a model without its memory."""
    with torch.device("meta"):
        return aim.wrap_image_model(timm.create_model(name), frames, **settings)


def parameters(what: str, model: torch.nn.Module, trainable: str, total: str | None = None) -> Iterator[Row]:
    """Yield the rows of a model's parameters, in millions."""
    count = aim.count_parameters(model)
    for kind, printed, value in (("trained", trainable, count.trainable), ("all", total, count.total)):
        if printed is not None:
            unit = 10.0 ** -len(printed.partition(".")[2])
            yield Row(f"{what}: {kind} parameters (M)", printed, value / 1e6, unit)


def rows() -> Iterator[Row]:
    """Yield every row."""
    count = aim.count_parameters(wrapped(BASE, **K400))
    yield Row("ViT-B/16 CLIP, 8 frames, 400 classes: trained parameters", "10966672", count.trainable, 0.5)
    yield Row("ViT-B/16 CLIP, 8 frames, 400 classes: all parameters", "96764560", count.total, 0.5)
    ladder = [
        ("frozen space-only", (), False, "0.1", "86"),
        ("+ spatial", ("spatial",), False, "3.7", "89"),
        ("+ temporal", ("temporal", "spatial"), True, "10.8", "97"),
        ("+ joint (AIM)", ("temporal", "spatial", "joint"), True, "14.3", "100"),
    ]
    for what, components, with_input, trainable, total in ladder:
        model = wrapped(IN21K, num_classes=174, components=components, temporal_input_adapter=with_input)
        yield from parameters(f"Table 1, {what}", model, trainable, total)
    yield from parameters("ViT-L/14 K400", wrapped(LARGE, **K400), "38", "341")
    yield from parameters("ViT-L/14 SSv2", wrapped(LARGE, **SSV2), "50", "354")
    swin = wrapped("swin_base_patch4_window7_224.ms_in22k", 32, tubelet_size=2, **K400)
    yield from parameters("Swin-B K400", swin, "9.2")
    for layers in ("bottom_half", "top_half", "alternate"):
        yield from parameters(f"Table 7, {layers}", wrapped(BASE, layers=layers, **K400), "5.6")
    for ratio, printed in ((0.0625, "3"), (0.125, "5.6"), (0.25, "11"), (0.5, "21")):
        yield from parameters(f"Table 8, ratio {ratio}", wrapped(BASE, bottleneck=ratio, **K400), printed)
    for what, name, settings, printed_gmacs in (
        ("ViT-B/16 K400", BASE, K400, ("606", "1214", "2428")),
        ("ViT-B/16 SSv2", BASE, SSV2, ("624", "1248", "2496")),
        ("ViT-L/14 K400", LARGE, K400, ("2802", "5604", "11208")),
        ("ViT-L/14 SSv2", LARGE, SSV2, ("2877", "5754", "11508")),
    ):
        for frames, printed in zip((8, 16, 32), printed_gmacs, strict=True):
            gmacs = VIEWS * aim.count_flops(wrapped(name, frames, **settings)).gmacs
            yield Row(f"{what}, {frames} frames: GMACs of {VIEWS} views", printed, gmacs, 0.01 * float(printed))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows; return 1 if one does not come out."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    failed = 0
    print(f"{'':58} {'paper':>10} {'ours':>14}")
    for row in rows():
        failed += not row.agrees
        print(f"{row.what:58} {row.printed:>10} {row.value:14,.3f}{'' if row.agrees else '  DIFFERS'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
