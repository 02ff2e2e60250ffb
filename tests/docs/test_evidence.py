"""Hold what docs/evidence.md says of the experiments and the benchmark to the code that runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.motion import photographs
from benchmarks.motion.claims import BOUNDS
from benchmarks.motion.experiments import BATCH, CLIPS, EXPERIMENTS, FEW_SEEDS, FRAMES, SEEDS, STEPS
from benchmarks.motion.judging import MARGIN, TEST_CLIPS
from benchmarks.motion.programs import DIRECTED, SIMPLE
from benchmarks.motion.ways import BACKBONES, SHARE_OF_NEW, rate_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"
TEXT = re.sub(r"<!-- begin.*?<!-- end -->", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
WORDS = " ".join(TEXT.split())


def test_settings_are_those_of_the_code() -> None:
    size = BACKBONES["dinov2-small"].size
    others = f"{STEPS['composition']:,} on `composition`, {STEPS['appearance']} on `appearance`"
    steps = f"{STEPS['order']:,} steps of {BATCH} clips ({others})"
    clip = BACKBONES["clip-base"].size
    few = EXPERIMENTS["defaults"][0]
    epochs, rate = few.steps * few.batch // few.clips, f"{rate_of('joint', 'order'):.0e}".replace("e-0", "e-")
    for said in (
        f"{size} × {size} pixels, {FRAMES} frames, {CLIPS:,} clips to train on, {steps}",
        f"CLIP's ViT-B/16 at {clip} × {clip} pixels",
        f"{few.clips:,} clips in batches of {few.batch}, AIM at {rate} for {epochs} epochs",
        f"within {MARGIN:g} points",
        f"the {TEST_CLIPS:,} test clips",
    ):
        assert said in WORDS, said
    assert SHARE_OF_NEW == 10 and "with ten times as much for what is new" in WORDS
    assert (len(SEEDS), len(FEW_SEEDS)) == (5, 3) and "of five seeds (three on" in WORDS


def test_the_benchmark_is_that_of_the_code() -> None:
    entries = json.loads(photographs.MANIFEST.read_text(encoding="utf-8"))
    shown = sum(entry.get("appearance", False) for entry in entries)
    for said in (
        f"There are {len(entries)} photographs",
        f"| {SIMPLE} motions",
        f"| {shown + DIRECTED} of {shown} photographs",
        *(f"| {bound:.1f} % |" for bound in BOUNDS.values()),
    ):
        assert said in WORDS, said
