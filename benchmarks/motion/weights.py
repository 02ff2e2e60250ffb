"""Write the pre-trained weights of the backbones into a folder, in float16, for a machine that reaches no Hub.

    python -m benchmarks.motion.weights --out FOLDER

They come from where the examples take them: the Hub, or a package that ships them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import timm
from safetensors.torch import save_file

from benchmarks.harness import ROOT
from benchmarks.motion.ways import BACKBONES, weights_of


def main(argv: list[str] | None = None) -> None:
    """Write a file for each backbone that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made when missing")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="by default all")
    settings = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "examples"))
    from pretrained import load_pretrained

    settings.out.mkdir(parents=True, exist_ok=True)
    for name in settings.backbones:
        size = timm.get_pretrained_cfg(BACKBONES[name].model).input_size  # the published one: positions as they are
        model = load_pretrained(name, img_size=size[1:], cache=settings.out / "cache")
        tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
        save_file(tensors, weights_of(name, settings.out), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
