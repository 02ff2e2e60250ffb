"""Fine-tune an image transformer on a folder of videos, one sub-folder for each class.

python examples/train.py data/train data/test --out runs/mine
accelerate launch examples/train.py data/train data/test --out runs/mine      # on every GPU of the machine
"""

from __future__ import annotations

import argparse

import timm

import aim_adapters as aim
from aim_adapters.video import VideoFolder


def main(argv: list[str] | None = None) -> aim.FitResult:
    """Train, evaluate and save; a run that was interrupted goes on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("train", help="folder of the training videos")
    parser.add_argument("test", help="folder of the test videos")
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--model", default="vit_base_patch16_clip_quickgelu_224.openai", help="an image model of timm")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--recipe", default="small-data")
    args = parser.parse_args(argv)
    train = VideoFolder(args.train, num_frames=args.frames)
    test = VideoFolder(args.test, num_frames=args.frames, labels=train.labels)
    model = timm.create_model(args.model, pretrained=True)
    aim.wrap_image_model(model, num_frames=args.frames, labels=train.labels)
    return aim.fit(model, train, test, out=args.out, recipe=args.recipe, epochs=args.epochs)


if __name__ == "__main__":
    print(main())
