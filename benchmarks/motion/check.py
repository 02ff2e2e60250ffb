"""Checks that the test clips of every variant are the frozen ones, to the bit, on any device.

Usage, with the bundle that ``benchmarks.motion.photographs`` wrote::

    python -m benchmarks.motion.check --photographs FILE [--device cuda]

Another version of Pillow may resize or decode photographs otherwise: then they differ, and frames with them, while
programs are as frozen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.motion.photographs import Photographs, load_photographs
from benchmarks.motion.programs import VARIANTS, Programs, classes_of, draw_programs
from benchmarks.motion.render import render

__all__ = ["digest_frames", "digest_photographs", "digest_programs", "digests"]

FROZEN = Path(__file__).with_name("frozen.json")
CLIPS, FRAMES, SIZE = 1200, 8, 84


def digest_programs(programs: Programs, names: tuple[str, ...]) -> str:
    """Return the sha256 of programs and of the names of their classes."""
    sha = hashlib.sha256("\n".join(names).encode())
    for field, values in programs._asdict().items():
        sha.update(f"{field} {values.shape}".encode())
        sha.update(np.ascontiguousarray(values, "<i8").tobytes())
    return sha.hexdigest()


def digest_frames(frames: torch.Tensor) -> str:
    """Return the sha256 of frames, uint8."""
    return hashlib.sha256(frames.cpu().numpy().tobytes()).hexdigest()


def digest_photographs(photographs: Photographs) -> str:
    """Return the sha256 of photographs as they were decoded, and of what they are used for."""
    used = json.dumps([photographs.names, photographs.splits, photographs.classes])
    sha = hashlib.sha256(used.encode())
    sha.update(np.ascontiguousarray(photographs.table, "<i8").tobytes())
    sha.update(np.ascontiguousarray(photographs.texels.cpu().numpy(), "<i4").tobytes())
    return sha.hexdigest()


def digests(photographs: Photographs) -> dict[str, str]:
    """Return what is frozen: sha256 of the photographs, and of programs and frames of each variant's test clips."""
    found = {"photographs": digest_photographs(photographs)}
    for variant in VARIANTS:
        programs = draw_programs(variant, "test", CLIPS, photographs)
        found[f"{variant} programs"] = digest_programs(programs, classes_of(variant, photographs).names)
        found[f"{variant} frames"] = digest_frames(render(photographs, programs, frames=FRAMES, size=SIZE))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compare with the frozen digests, or write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.motion.check", description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--freeze", action="store_true", help=f"write {FROZEN.name} instead")
    settings = parser.parse_args(arguments)
    found = digests(load_photographs(settings.photographs, settings.device))
    if settings.freeze:
        FROZEN.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    expected: dict[str, str] = json.loads(FROZEN.read_text(encoding="utf-8"))
    for name in found | expected:
        digest, frozen = found.get(name, "nothing"), expected.get(name, "nothing")
        print(f"{name:20} {digest} {'as frozen' if digest == frozen else f'expected {frozen}'}")
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main())
