"""Train with the Trainer of transformers on a folder of videos.

python examples/trainer_loop.py data/train data/test --out runs/trainer
torchrun --nproc-per-node 2 examples/trainer_loop.py data/train data/test --out runs/trainer
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, Trainer, TrainingArguments, ViTForImageClassification

import aim_adapters as aim
from aim_adapters.integrations import AdapterCallback
from aim_adapters.video import VideoFolder, transform_for


def collate(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Name the parts of a batch as the model's ``forward`` does."""
    clips, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(clips), "labels": torch.tensor(labels)}


def score(answers: Any) -> dict[str, float]:
    """Return the accuracy of an evaluation."""
    return {"top1": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(argv: list[str] | None = None) -> Trainer:
    """Train, evaluate after each epoch, and return to the best; a run that was interrupted goes on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="google/vit-base-patch16-224-in21k")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(argv)

    labels = VideoFolder(args.train, args.frames).labels
    AutoImageProcessor.from_pretrained(args.model)  # fetches the model's normalization
    model = ViTForImageClassification.from_pretrained(args.model)
    aim.wrap_image_model(model, args.frames, labels=labels, head_dropout=0.5)
    train = VideoFolder(args.train, args.frames, transform=transform_for(model, train=True))
    test = VideoFolder(args.test, args.frames, labels=labels, transform=transform_for(model))
    trainer = Trainer(
        model,
        TrainingArguments(
            args.out,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            dataloader_num_workers=args.workers,
            bf16=torch.cuda.is_available(),
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="top1",
            report_to="none",
        ),
        data_collator=collate,
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=score,
        callbacks=[AdapterCallback()],
        optimizers=(torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=3e-4), None),
    )
    trainer.train(resume_from_checkpoint=args.resume)
    if trainer.is_world_process_zero():
        aim.save_adapters(model, args.out)  # the best
    return trainer


if __name__ == "__main__":
    main()
