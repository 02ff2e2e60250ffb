"""Train with Lightning on a folder of videos: checkpoints without the frozen image model, and adapters beside them.

python examples/lightning_loop.py data/train data/test --out runs/lightning      # on all GPUs
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning.pytorch as L
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import aim_adapters as aim
from aim_adapters.integrations import LightningAdapterCallback
from aim_adapters.video import VideoFolder, transform_for


class Classifier(L.LightningModule):
    """A wrapped image model."""

    def __init__(self, name: str, frames: int, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=True)
        aim.wrap_image_model(self.model, frames, labels=labels, head_dropout=0.5)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch of clips and labels."""
        return cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Log the accuracy."""
        right = self.model(batch[0]).argmax(1) == batch[1]
        self.log("top1", right.float().mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return AdamW for what trains, with a warm-up and a cosine."""
        optimizer = torch.optim.AdamW(aim.adapter_param_groups(self.model, weight_decay=0.05), lr=3e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main(argv: list[str] | None = None) -> Classifier:
    """Train, validate after each epoch, and keep the best."""
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="vit_base_patch16_clip_quickgelu_224.openai")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--resume", help="a checkpoint to go on from")
    args = parser.parse_args(argv)

    labels = VideoFolder(args.train, args.frames).labels
    classifier = Classifier(args.model, args.frames, labels)
    train = VideoFolder(args.train, args.frames, transform=transform_for(classifier.model, train=True))
    test = VideoFolder(args.test, args.frames, labels=labels, transform=transform_for(classifier.model))
    best = ModelCheckpoint(f"{args.out}/checkpoints", "best", monitor="top1", mode="max")
    trainer = L.Trainer(
        max_epochs=args.epochs,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        default_root_dir=args.out,
        callbacks=[LightningAdapterCallback(), best],
    )
    batches = DataLoader(train, args.batch_size, shuffle=True, num_workers=args.workers)
    tests = DataLoader(test, args.batch_size, num_workers=args.workers)
    trainer.fit(classifier, batches, tests, ckpt_path=args.resume)
    return classifier  # the best adapters are in OUT/checkpoints/best.aim


if __name__ == "__main__":
    main()
