"""Write tiny base models as their libraries keep them, and compare what is built of them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torchvision.models import SwinTransformer, VisionTransformer, Weights, WeightsEnum

from tests.alignment import run_aligned
from tests.backbones.cases import scramble

SMALL: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN: dict[str, Any] = {
    "img_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, "num_classes": 5,
}  # fmt: skip
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "patch_size": 8}),
    "clip": ("vit_base_patch16_clip_224", {**SMALL, "patch_size": 8}),
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "patch_size": 8, "num_classes": 0}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 28}),
    "distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "patch_size": 8}),
    "eva": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 28}),
    "mixed rope": ("vit_small_patch16_rope_mixed_224", {**SMALL, "patch_size": 8}),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "patch_size": 8}),
    "naflex": ("naflexvit_base_patch16_gap", {**SMALL, "patch_size": 8}),
    "naflex of a vit": ("vit_tiny_patch16_224", {**SMALL, "patch_size": 8, "use_naflex": True}),
    "beit": ("beit_base_patch16_224", {**SMALL, "patch_size": 8}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin v2": ("swinv2_tiny_window8_256", SWIN),
}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "own": {"embed_dim": 16, "quick_gelu": True, "text_cfg": TEXT, "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16,
    }},
    "timm trunk": {"embed_dim": 16, "custom_text": True, "text_cfg": TEXT, "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear",
    }},
}  # fmt: skip
TOWER: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
CLIP_TEXT: dict[str, Any] = {
    **TOWER, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
TRANSFORMERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "vit": ("ViTForImageClassification", lambda: transformers.ViTConfig(**TOWER, num_labels=5)),
    "deit": ("DeiTModel", lambda: transformers.DeiTConfig(**TOWER)),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(**TOWER)),
    "dinov3": ("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**TOWER)),
    "clip tower": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**TOWER)),
    "siglip tower": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**TOWER)),
    "clip": ("CLIPModel", lambda: transformers.CLIPConfig(vision_config=TOWER, text_config=CLIP_TEXT)),
}


class TinyWeights(WeightsEnum):
    """What torchvision offers for the models below."""

    V1 = Weights(url="https://localhost/tiny-00000000.pth", transforms=nn.Identity, meta={})


def tiny_vit(*, weights: TinyWeights | None = None, progress: bool = True, **options: Any) -> VisionTransformer:
    return VisionTransformer(
        **{"image_size": 16, **options}, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )


def tiny_swin(*, weights: TinyWeights | None = None, progress: bool = True, **options: Any) -> SwinTransformer:
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], **options
    )


class Probing(nn.Module):
    """A model that runs a part of itself while it is made, as timm's hybrids do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 3)
        self.positive = bool(self.proj(torch.ones(1, 2)).square().sum() >= 0)


def timm_folder(folder: Path, architecture: str, arguments: dict[str, Any]) -> Path:
    """Write a timm model with random weights as the Hub keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "model_args": arguments,
        "pretrained_cfg": {"tag": "x", "classifier": "head"},
    }
    config["pretrained_cfg"]["num_classes"] = arguments.get("num_classes", 1000)  # type: ignore[index]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(scramble(timm.create_model(architecture, **arguments)).state_dict(), folder / "model.safetensors")
    return folder


def open_clip_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}})
    )
    model = scramble(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def torchvision_file(cache: Path, model: nn.Module) -> None:
    """Put weights where torch keeps what it has downloaded."""
    torch.save(scramble(model).state_dict(), cache / "tiny-00000000.pth")


def parts(model: nn.Module) -> dict[str, Any]:
    """Return everything a model is made of."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "tensors": {name: (tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()},
        "persistent": list(model.state_dict()),
        "values": tensors,
    }


def assert_equal(built: nn.Module, expected: nn.Module) -> None:
    found, wanted = parts(built), parts(expected)
    for what in ("modules", "tensors", "persistent"):
        assert found[what] == wanted[what]
    assert all(torch.equal(tensor, wanted["values"][name]) for name, tensor in found["values"].items())
    assert all(p.is_contiguous() for p in built.parameters())


def assert_bare(model: nn.Module) -> None:
    """Nothing of how it was built stays behind."""
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())
    assert not torch_module._global_parameter_registration_hooks
    pickle.dumps(model)


def mapped(tensor: Tensor, file: Path) -> bool:
    """Say whether a tensor's memory is the pages of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in span.split("-"))
        if first <= tensor.data_ptr() < last:
            return name == str(file.resolve())
    return False


def run(model: nn.Module, size: int) -> Any:
    return run_aligned(model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
