"""Train with a loop of your own on Accelerate, on one device or several.

python examples/accelerate_loop.py data/train data/test --out runs/accelerate
accelerate launch --num_processes 2 examples/accelerate_loop.py data/train data/test --out runs/accelerate
"""

from __future__ import annotations

import argparse

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import aim_adapters as aim
from aim_adapters.video import VideoFolder, transform_for


def main(argv: list[str] | None = None) -> aim.Evaluation:
    """Train, evaluate, and save the adapters; a run that was interrupted goes on after its last epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="vit_base_patch16_clip_quickgelu_224.openai")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--resume", help="a folder that this script has saved")
    args = parser.parse_args(argv)

    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    set_seed(0)
    labels = VideoFolder(args.train, args.frames).labels
    model = timm.create_model(args.model, pretrained=True)
    aim.wrap_image_model(model, args.frames, labels=labels, head_dropout=0.5)
    train = VideoFolder(args.train, args.frames, transform=transform_for(model, train=True))
    test = VideoFolder(args.test, args.frames, labels=labels)
    loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=3e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, args.epochs * len(loader))
    accelerator.register_for_checkpointing(schedule)
    begin = 0
    if args.resume:
        accelerator.load_state(args.resume)
        begin = schedule.last_epoch // len(loader)

    for epoch in range(begin, args.epochs):
        set_seed(epoch)  # so that a run that goes on draws the same
        loader.set_epoch(epoch)
        model.train()
        for video, label in loader:
            loss = cross_entropy(model(video), label)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        accelerator.save_state(f"{args.out}/epoch-{epoch}")

    bare = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        aim.save_adapters(bare, args.out)
    evaluation = aim.evaluate(bare, test, views="3x1", workers=args.workers)  # over all processes, each video once
    accelerator.print(evaluation)
    return evaluation


if __name__ == "__main__":
    main()
