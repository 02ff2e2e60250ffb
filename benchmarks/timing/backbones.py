"""What does a training step cost with the backbones that people choose today, beside CLIP's ViT-B/16?

``python -m benchmarks.timing.backbones`` on a GPU, in less than four minutes. Each is a ViT-B on 8 frames, ours eager
and replayed from the CUDA graphs of ``aim.graph``, and the same model layer by layer with its blocks compiled; all
take turns. CLIP's is there with the paper's adapters for SSv2 too, whose one more adapter stands in front of temporal
attention. ``--no-compile`` leaves the compiled peers out; ``--compile-ours`` adds ours compiled as a whole, which
takes a compiler half a minute for each. The steps are those of ``benchmarks.timing.train_step``, whose file holds the
result.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from benchmarks.harness import Target
from benchmarks.timing.goals import fastest
from benchmarks.timing.peers import COMPILED, Size
from benchmarks.timing.step_command import begin, measure_all, parser
from benchmarks.timing.steps import Job
from benchmarks.timing.train_step import BASE, TASK

CLIP, SSV2 = "CLIP B/16", "CLIP B/16, SSv2"
SIZES = {
    CLIP: replace(BASE, clips=16),
    SSV2: replace(BASE, clips=16, input_adapter=True),
    "DINOv3 B/16": Size("vit_base_patch16_dinov3", 16),
    "SigLIP 2 B/16": Size("vit_base_patch16_siglip_224", 16),
    "EVA-02 B/14": Size("eva02_base_patch14_224", 16),
    "DINOv2 B/14": Size("vit_base_patch14_dinov2", 16),
}
OURS, PLAIN = ("aim/eager", "aim/recorded"), "plain/blocks"
PER_TOKEN = {"DINOv3 B/16": 1.06, "EVA-02 B/14": 1.25}
INPUT_ADAPTER, PLAIN_SPEED = 1.08, 1.8


@cache
def tokens(size: Size) -> int:
    """Return how many tokens a frame has."""
    with torch.device("meta"):
        model = size.build()
    return model.patch_embed.num_patches + getattr(model, "num_prefix_tokens", 0)


def of_backbone(peers: dict[str, Any], backbone: str) -> dict[str, Any]:
    """Return the peers with one backbone, by model and mode."""
    found = (label.split(", ", 1) for label in peers)
    return {peer: peers[f"{peer}, {name}"] for peer, name in found if name == backbone}


def goals(key: str, peers: dict[str, Any]) -> list[Target]:
    """Hold a token's time to that with CLIP's, the SSv2 recipe to the step without, and all to plain, compiled."""
    ours = {name: fastest(of_backbone(peers, name), ("aim",)) for name in SIZES}
    found, clip = [], ours[CLIP]
    for name, mine in ours.items():
        if mine is None:
            continue
        if clip is not None and name == SSV2:
            ratio = mine[1]["median"] / clip[1]["median"]
            found.append(Target(f"{key}: {name} against {CLIP}, share of its time", ratio, at_most=INPUT_ADAPTER))
        if clip is not None and name in PER_TOKEN:
            ratio = mine[1]["median"] / clip[1]["median"] * tokens(SIZES[CLIP]) / tokens(SIZES[name])
            words = f"{key}: {name} against {CLIP}, share of its time for a token"
            found.append(Target(words, ratio, at_most=PER_TOKEN[name]))
        if name in PER_TOKEN and (plain := fastest(of_backbone(peers, name), ("plain",), COMPILED)) is not None:
            speed = plain[1]["median"] / mine[1]["median"]
            words = f"{key}: {name}, {mine[0]} against {plain[0]}, times as fast"
            found.append(Target(words, speed, at_least=PLAIN_SPEED))
    return found


def job(peers: Sequence[str], sizes: dict[str, Size]) -> Job:
    """Return the table of some peers with some backbones."""
    runs = {f"{peer}, {name}": (peer, size) for name, size in sizes.items() for peer in peers}
    size = next(iter(sizes.values()))
    return Job(f"today's backbones, {size.frames} frames, {size.clips} clips", runs, (goals,))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    made = parser((__doc__ or "").splitlines()[0], SIZES)
    made.add_argument("--no-compile", action="store_true", help="leave the compiled peers out")
    made.add_argument("--compile-ours", action="store_true", help="also ours, compiled as a whole")
    made.set_defaults(brief=True)
    run, arguments = begin(TASK, made, argv, name="backbones")
    peers = arguments.peers or (
        *(OURS if arguments.device == "cuda" else OURS[:1]),
        *("aim/graph",) * arguments.compile_ours,
        *(PLAIN,) * (not arguments.no_compile),
    )
    clips = {} if arguments.clips is None else {"clips": arguments.clips[0]}
    sizes = {name: replace(SIZES[name], **clips) for name in arguments.sizes or SIZES}
    return measure_all(run, [job(peers, sizes)])


if __name__ == "__main__":
    sys.exit(main())
