"""Wrap every model of the supported families by name, on the meta device, and write what can be adapted.

python -m benchmarks.checks.coverage            # prints the counts
python -m benchmarks.checks.coverage --write    # also writes docs/supported-backbones.md
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import nn

import aim_adapters as aim

PAGE = Path(__file__).resolve().parents[2] / "docs" / "supported-backbones.md"
TIMM_FAMILIES = {
    "timm VisionTransformer": "timm.models.vision_transformer.VisionTransformer",
    "timm Eva": "timm.models.eva.Eva",
    "timm Beit": "timm.models.beit.Beit",
    "timm NaFlexVit": "timm.models.naflexvit.NaFlexVit",
    "timm Swin": "timm.models.swin_transformer.SwinTransformer",
    "timm Swin v2": "timm.models.swin_transformer_v2.SwinTransformerV2",
}


@dataclass
class Family:
    """What was tried of one family."""

    adapted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def timm_models() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield family, name and model of every timm architecture of the supported families."""
    classes = {}
    for family, path in TIMM_FAMILIES.items():
        module, _, name = path.rpartition(".")
        classes[family] = getattr(importlib.import_module(module), name)
    modules = ("vision_transformer", "deit", "eva", "beit", "swin_transformer", "swin_transformer_v2",
               "vision_transformer_hybrid", "naflexvit")  # fmt: skip
    for name in (name for module in modules for name in timm.list_models(module=module)):
        model = build(lambda name=name: timm.create_model(name))
        for family, cls in classes.items():
            if isinstance(model, cls):
                yield family, name, model


def open_clip_towers() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield family, name and image tower of every open_clip configuration whose tower is a transformer of ours."""
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = CLIPVisionCfg(**config["vision_cfg"])
        if isinstance(vision.layers, (tuple, list)):
            continue  # a convolutional tower
        quick_gelu = config.get("quick_gelu", False)
        tower = build(lambda c=config, v=vision, q=quick_gelu: _build_vision_tower(c["embed_dim"], v, q))
        trunk = getattr(tower, "trunk", None)
        if trunk is None or hasattr(trunk, "blocks") or hasattr(trunk, "layers"):
            yield f"open_clip {type(trunk or tower).__name__}", name, tower


def torchvision_models() -> Iterator[tuple[str, str, nn.Module]]:
    """Yield family, name and model of every torchvision transformer."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        if name.startswith(("vit_", "swin_")):
            model = build(lambda name=name: torchvision.models.get_model(name))
            yield f"torchvision {type(model).__name__}", name, model


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without its memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def collect() -> dict[str, Family]:
    """Wrap every model, and unwrap it again."""
    families: dict[str, Family] = {}
    for source in (timm_models, open_clip_towers, torchvision_models):
        for family, name, model in source():
            entry = families.setdefault(family, Family())
            try:
                aim.wrap_image_model(model, num_frames=8)
            except aim.UnsupportedModelError as error:
                entry.refused[name] = str(error)
            else:
                aim.unwrap_image_model(model)
                entry.adapted.append(name)
    return families


def page(families: dict[str, Family]) -> str:
    """Return the page of the documentation."""
    lines = [
        "# Every supported backbone",
        "",
        "Written by `python -m benchmarks.checks.coverage --write`: each architecture was built by name and wrapped.",
        "The vision models of transformers have no such list; [Supported backbones](backbones.md) names their classes.",
        "",
        "| family | adapted | refused |",
        "|---|---:|---:|",
        *(f"| {name} | {len(f.adapted)} | {len(f.refused)} |" for name, f in families.items()),
    ]
    for name, f in families.items():
        lines += ["", f"## {name}", "", ", ".join(f"`{model}`" for model in f.adapted) or "None."]
        if f.refused:
            lines += ["", "Refused:", "", *(f"- `{model}`: {error}" for model, error in f.refused.items())]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args(argv)
    families = collect()
    for name, f in families.items():
        print(f"{name}: {len(f.adapted)} adapted, {len(f.refused)} refused")
        for model, error in f.refused.items():
            print(f"  {model}: {error}")
    if arguments.write:
        PAGE.write_text(page(families), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
