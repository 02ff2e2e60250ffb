"""How long does wrapping ViT-B/16 take?

``python -m benchmarks.timing.wrap_time``. Each repeat wraps a model that was never wrapped before (a copy) and one that
was wrapped and unwrapped; the first wrap of the process, which also loads the descriptors, is shown apart.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys

import timm

import aim_adapters as aim
from benchmarks.harness import Timing, measure, report, seconds_of

TARGET = 0.05
NAME = "vit_base_patch16_clip_224"


def wrap(model: object) -> object:
    """Wrap as the README does."""
    return aim.wrap_image_model(model, num_frames=8, num_classes=400)


def main() -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    base = timm.create_model(NAME)
    model = copy.deepcopy(base)
    first = seconds_of(lambda: wrap(model))
    fresh = measure(wrap, setup=lambda: copy.deepcopy(base), repeats=repeats)
    again = measure(wrap, setup=lambda: aim.unwrap_image_model(model), repeats=repeats)
    print(f"  first wrap of the process        {1e3 * first:9.2f} ms")
    return report(
        "wrap_time",
        f"wrap_image_model({NAME}, num_frames=8, num_classes=400)",
        seconds=max(statistics.median(fresh), statistics.median(again)),
        target=TARGET,
        details={"a fresh model": Timing.of(fresh), "an unwrapped model": Timing.of(again)},
    )


if __name__ == "__main__":
    sys.exit(main())
