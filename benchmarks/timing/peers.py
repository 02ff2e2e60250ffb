"""What is timed in steps and in inference: models and batches, ways to compile, and their arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import aim_adapters as aim

BACKEND = "inductor"
COMPILED = ("blocks", "whole", "graph")
MODES = ("eager", "recorded", *COMPILED)
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """A model and its batch; ``dtype`` is that of autocast, and float32 is none.

    ``input_adapter`` adds the adapter in front of temporal attention, as the paper does on SSv2.
    """

    name: str
    clips: int
    frames: int = 8
    tubelet: int = 1
    resolution: int = 224
    classes: int = 400
    dtype: str = "bfloat16"
    input_adapter: bool = False

    @property
    def low(self) -> torch.dtype:
        """The dtype of autocast."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def build(self, **settings: Any) -> nn.Module:
        """Return the image model."""
        import timm

        return timm.create_model(self.name, img_size=self.resolution, **settings)

    def batch(self, device: str) -> Batch:
        """Return random clips ``[B, T, 3, H, W]`` and labels."""
        video = torch.randn(self.clips, self.frames, 3, self.resolution, self.resolution, device=device)
        return video, torch.randint(self.classes, (self.clips,), device=device)


class ImageModelOnFrames(nn.Module):
    """Average an image model's logits over the frames of a clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of clips ``[B, T, 3, H, W]``."""
        return self.model(video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


class Logits(nn.Module):
    """Return the logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of clips ``[B, T, 3, H, W]``."""
        return self.model(video).logits


class ChannelsFirst(nn.Module):
    """Give a video model of torchvision its channels in front of the frames."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """Return logits ``[B, K]`` of clips ``[B, T, 3, H, W]``."""
        return self.model(video.transpose(1, 2))


def wrapped(
    size: Size,
    *,
    attention: str = "auto",
    fused: bool | str = "auto",
    memory: str = "fast",
    frozen_precision: str = "auto",
    held: str | None = None,
) -> nn.Module:
    """Return a wrapped model; ``held`` is the dtype of its frozen weights, by default that of autocast."""
    model = aim.wrap_image_model(
        size.build(),
        size.frames,
        num_classes=size.classes,
        tubelet_size=size.tubelet,
        attention=attention,
        temporal_input_adapter=size.input_adapter,
    )
    aim.set_execution(model, fused=fused, memory=memory, frozen_precision=frozen_precision)
    aim.set_base_dtype(model, getattr(torch, held or size.dtype))
    return model


def timesformer(size: Size) -> nn.Module:
    """Return TimeSformer with divided space-time attention, as wide and deep as the ViT."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    vit = size.build()
    config = TimesformerConfig(
        image_size=size.resolution,
        patch_size=vit.patch_embed.patch_size[0],
        num_frames=size.frames,
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=vit.blocks[0].attn.num_heads,
        intermediate_size=vit.blocks[0].mlp.fc1.out_features,
        attention_type="divided_space_time",
        num_labels=size.classes,
    )
    return Logits(TimesformerForVideoClassification(config))


def swin3d(size: Size) -> nn.Module:
    """Return torchvision's Video Swin-B, without stochastic depth as all models here.

    Its probability is another in each block, so each would be compiled for itself.
    """
    from torchvision.models.video import swin3d_b
    from torchvision.ops import StochasticDepth

    model = swin3d_b(num_classes=size.classes)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return ChannelsFirst(model)


MODELS: dict[str, Callable[[Size], nn.Module]] = {
    "aim": wrapped,
    "aim-balanced": partial(wrapped, memory="balanced"),
    "aim-low": partial(wrapped, memory="low"),
    "aim-fp32": partial(wrapped, held="float32"),
    "aim-fp8": partial(wrapped, frozen_precision="fp8"),
    "plain": partial(wrapped, attention="sdpa", fused=False),
    "reference": partial(wrapped, attention="eager", fused=False, held="float32"),
    "full": lambda size: ImageModelOnFrames(size.build(num_classes=size.classes)),
    "timesformer": timesformer,
    "swin3d": swin3d,
}
WHOLE_MODELS = ("full", "timesformer", "swin3d")  # all of whose weights train


def family(model: str) -> str:
    """Return the model whose arithmetic is this one's: ours all compute what `plain` does."""
    return model if model in WHOLE_MODELS else "plain"


def compile_model(model: nn.Module, mode: str) -> None:
    """Compile in place: nothing, each block, the whole model, or the whole model replayed from CUDA graphs.

    Nothing of a model whose CUDA graphs are recorded without a compiler, which needs a batch first.
    """
    if mode == "blocks":
        for block in blocks(model):
            block.compile(dynamic=False, backend=BACKEND)
    elif mode in COMPILED:
        model.compile(dynamic=False, backend=BACKEND, mode="reduce-overhead" if mode == "graph" else None)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return a model's transformer blocks: of each list of modules that are of one kind, the members that attend."""
    lists = (m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)))
    return [block for each in lists for block in each if hasattr(block, "attn") or hasattr(block, "attention")]


def arithmetic(model: nn.Module, size: Size, *, train: bool) -> int:
    """Count the floating-point operations of a clip: products, convolutions and attention, two for each product-sum.

    In training they are those of the forward pass and of what autograd computes for the tensors that train: the
    gradient of every layer's input from the first that trains upwards, and of the weights that train. For AIM on
    ViT-B/16 that is 2.1 times the forward pass, for a model that trains as a whole 3 times.
    """
    model = model.float()  # without autocast there is one dtype
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with (
        sdpa_kernel(SDPBackend.MATH),  # a CPU's fused attention has no formula; the products it stands for have
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.set_grad_enabled(train),
        FlopCounterMode(display=False) as counter,
    ):
        logits = model(torch.empty(1, size.frames, 3, size.resolution, size.resolution))  # [1, K]
        if train:
            torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    return counter.get_total_flops()
