"""The recipes of the paper, one for each row that it or its reference publishes.

Where the paper's appendix and the reference's configuration differ, the paper counts, and `Recipe.reference` has the
other value.
"""

from __future__ import annotations

from typing import Any

from aim_adapters.recipes.augmentation import Augmentation
from aim_adapters.recipes.recipe import ExpectedModel, Recipe

_VIT_B = ExpectedModel(12, 768, 16)
_VIT_L = ExpectedModel(24, 1024, 14)
_SWIN_B = ExpectedModel(24, 128, 4)

# The reference's; the paper: "warmed up from 0 in the first 3 epochs".
_WARMUP: dict[str, Any] = {"warmup_epochs": 2.5, "warmup_start": 0.1}
_B: dict[str, Any] = {"learning_rate": 3e-4}
_L: dict[str, Any] = {"learning_rate": 3e-5, "head_learning_rate": 3e-4}
_COLOR: dict[str, Any] = {"augmentation": Augmentation(color=0.1)}
_STRONG = Augmentation(flip=0.0, rand_augment=(4, 7), erasing=0.25)

_CLIP_B: dict[str, Any] = {"backbone": "CLIP ViT-B/16", "expected": _VIT_B, **_B}
_CLIP_L: dict[str, Any] = {"backbone": "CLIP ViT-L/14", "expected": _VIT_L, **_L}
_IN21K_B: dict[str, Any] = {"backbone": "ImageNet-21K ViT-B/16", "expected": _VIT_B, **_B}
_SWIN: dict[str, Any] = {"backbone": "ImageNet-21K Swin-B", "expected": _SWIN_B, "frames": 32, "tubelet_size": 2}

_K400: dict[str, Any] = {"dataset": "Kinetics-400", "epochs": 30, "views": "3x1"}
_K700: dict[str, Any] = {"dataset": "Kinetics-700", "epochs": 30, "views": "3x3"}
_DIVING: dict[str, Any] = {"dataset": "Diving-48", "epochs": 50, "views": "1x1", "frames": 32}
_SSV2: dict[str, Any] = {
    "dataset": "Something-Something v2", "epochs": 50, "views": "1x3", "augmentation": _STRONG, "label_smoothing": 0.1,
}  # fmt: skip
_SSV2_VIT: dict[str, Any] = {**_SSV2, "temporal_input_adapter": True, "reference": {"scale": 1.0}}


def _recipe(name: str, *parts: dict[str, Any], **settings: Any) -> Recipe:
    merged = {"batch_size": 64, **{key: value for part in parts for key, value in part.items()}, **settings}
    return Recipe(name=name, **{**merged, "reference": {**_WARMUP, **merged.get("reference", {})}})


def _kinetics(name: str, *parts: dict[str, Any], top1: tuple[float | None, ...], **users: Any) -> list[Recipe]:
    """Return the recipes for 8, 16 and 32 frames, which span the same time."""
    return [
        _recipe(
            f"{name}-{frames}f", *parts, frames=frames, stride=128 // frames, paper_top1=accuracy,
            users_top1=users.get(f"users_{frames}f"),
        )
        for frames, accuracy in zip((8, 16, 32), top1, strict=True)
    ]  # fmt: skip


def _something(name: str, *parts: dict[str, Any], top1: tuple[float | None, ...]) -> list[Recipe]:
    return [
        _recipe(f"{name}-{frames}f", _SSV2_VIT, *parts, frames=frames, paper_top1=accuracy)
        for frames, accuracy in zip((8, 16, 32), top1, strict=True)
    ]


PUBLISHED = (
    *_kinetics("k400-clip-vit-b16", _K400, _CLIP_B, top1=(83.9, 84.5, 84.7), users_32f=(83.3, 83.3)),
    *_kinetics("k400-clip-vit-l14", _K400, _CLIP_L, _COLOR, top1=(86.8, 87.3, 87.5), users_32f=(86.2, 87.3)),
    _recipe("k400-in21k-vit-b16-8f", _K400, _IN21K_B, frames=8, stride=16, paper_top1=78.8),
    _recipe(
        "k400-swin-b-32f", _K400, _SWIN, stride=2, views="4x3", learning_rate=1e-4, head_learning_rate=1e-3,
        batch_size=128, paper_top1=82.1,
    ),
    # Table 4 names no frames; its text compares them with another method's, "40 vs 32".
    *_kinetics("k700-clip-vit-b16", _K700, _CLIP_B, top1=(None, None, 76.9)),
    *_kinetics("k700-clip-vit-l14", _K700, _CLIP_L, _COLOR, top1=(None, None, 80.4)),
    *_something("ssv2-clip-vit-b16", _CLIP_B, top1=(66.4, 68.1, 69.1)),
    *_something("ssv2-clip-vit-l14", _CLIP_L, top1=(67.6, 69.4, 70.6)),
    *_something("ssv2-in21k-vit-b16", _IN21K_B, top1=(62.0, None, None)),
    _recipe(
        "ssv2-swin-b-32f", _SSV2, _SWIN, epochs=60, learning_rate=3e-5, head_learning_rate=3e-4, batch_size=256,
        drop_path=0.4,
    ),
    _recipe("diving48-clip-vit-b16-32f", _DIVING, _CLIP_B, paper_top1=88.9),
    _recipe("diving48-clip-vit-l14-32f", _DIVING, _CLIP_L, _B, head_learning_rate=None, paper_top1=90.6),
)  # fmt: skip
