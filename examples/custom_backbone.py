"""Describes a home-made vision transformer to aim-adapters, without touching aim-adapters.

The model below belongs to no library. Its descriptor says where things are in it (`BackboneAnatomy`), how its blocks
are built and how their attention is read (`BlockAnatomy`); everything else works from that alone: adapters, training,
saving, counting. The contract tests of the built-in families run on it too.

    python examples/custom_backbone.py

A package of your own can announce its descriptor instead of calling `register_backbone`:

    [project.entry-points."aim_adapters.backbones"]
    tiny_vit = "my_package.video:TINY_VIT"
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.anatomy import (
    AttentionParts,
    BackboneAnatomy,
    BlockAnatomy,
    BlockParts,
    HeadAnatomy,
    MlpParts,
    has_hooks,
)

# The model, as somebody might have written it -----------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Attends with queries from one layer, and keys and values from another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, D]` for tokens `[B, N, D]`."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Is a pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, D]` for tokens `[B, N, D]`."""
        x = x + self.attend(self.norm_a(x))
        return x + self.feed(self.norm_b(x))


class TinyViT(nn.Module):
    """Classifies images `[B, 3, 16, 16]` by the mean of their patches."""

    def __init__(self, width: int = 32, heads: int = 2, depth: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(torch.randn(1, 4, width))
        self.enter = nn.Identity()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, K]`."""
        x = self.enter(self.patches(images).flatten(2).transpose(1, 2) + self.position)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.final_norm(x).mean(1))


# Its descriptor -----------------------------------------------------------------------------------------------------


def project_qkv(attention: SelfAttention, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read queries, keys and values, each `[B, N, H, d]`."""
    q = attention.query(h).unflatten(-1, (attention.heads, -1))
    k, v = attention.key_value(h).unflatten(-1, (2, attention.heads, -1)).unbind(-3)
    return q, k, v


def project_out(attention: SelfAttention, o: Tensor, h: Tensor) -> Tensor:
    """Project `[B, N, H, d]` back to `[B, N, D]`."""
    return attention.output(o.flatten(-2))


def attend(layer: Layer, h: Tensor) -> Tensor:
    """Run the model's own attention over the tokens of a frame."""
    return layer.attend(h)


def softmax_scale(attention: SelfAttention) -> float:
    """Return the factor on the scores."""
    return (attention.query.out_features // attention.heads) ** -0.5


def heads(attention: SelfAttention) -> int:
    """Return the number of heads."""
    return attention.heads


LAYER_TYPES = [
    nn.LayerNorm, SelfAttention, nn.Linear, nn.Linear, nn.Linear, nn.LayerNorm, nn.Sequential, nn.Linear, nn.GELU,
    nn.Linear,
]  # fmt: skip


def parts(layer: Layer, anatomy: BlockAnatomy) -> BlockParts:
    """Hand over a layer's weights, so that its branches run fused. A descriptor can do without this function.

    It is called each time the layer runs: a part that was replaced, or has hooks, must be called, and its weights are
    not enough. Then words take their place.
    """
    attention, feed = layer.attend, layer.feed
    modules = (layer.norm_a, attention, *attention.children(), layer.norm_b, feed, *feed.children())
    if [type(module) for module in modules] != LAYER_TYPES or any(map(has_hooks, modules)):
        why = "a part of it was replaced or has hooks"
        return BlockParts(attention=why, mlp=why)
    return BlockParts(
        attention=AttentionParts(
            norm_weight=layer.norm_a.weight,
            norm_bias=layer.norm_a.bias,
            qkv_weight=torch.cat((attention.query.weight, attention.key_value.weight)),
            qkv_bias=torch.cat((attention.query.bias, attention.key_value.bias)),
            out_weight=attention.output.weight,
            out_bias=attention.output.bias,
            gamma=None,
            eps=layer.norm_a.eps,
            heads=attention.heads,
            scale=softmax_scale(attention),
            plain=True,
        ),
        mlp=MlpParts(
            norm_weight=layer.norm_b.weight,
            norm_bias=layer.norm_b.bias,
            in_weight=feed[0].weight,
            in_bias=feed[0].bias,
            out_weight=feed[2].weight,
            out_bias=feed[2].bias,
            gamma=None,
            eps=layer.norm_b.eps,
            activation="gelu",
        ),
    )


LAYER = BlockAnatomy(
    attention="attend",
    mlp="feed",
    pre_attention="norm_a",
    post_attention=None,
    pre_mlp="norm_b",
    post_mlp=None,
    project_qkv=project_qkv,
    project_out=project_out,
    attend=attend,
    softmax_scale=softmax_scale,
    heads=heads,
    parts=parts,
)


def read(model: nn.Module) -> BackboneAnatomy | None:
    """Say where things are in a TinyViT; None for any other model."""
    if type(model) is not TinyViT:
        return None
    width = model.final_norm.normalized_shape[0]
    return BackboneAnatomy(
        family="tiny_vit",
        root="",
        input_name="images",
        blocks=tuple((f"layers.{i}", LAYER) for i in range(len(model.layers))),
        block_widths=(width,) * len(model.layers),
        entry="enter",
        entry_side="input",
        norm="final_norm",
        heads=(HeadAnatomy("classifier"),),
        output_width=width,
        in_channels=3,
        patch_size=(8, 8),
        prefix_tokens=0,
        image_size=(16, 16),
    )


TINY_VIT = aim.Backbone(name="tiny_vit", library="", describes="the home-made ViT of this example", read=read)


def main() -> None:
    """Adapt a TinyViT to video."""
    aim.register_backbone(TINY_VIT)
    warnings.filterwarnings("ignore", "the image model looks untrained")  # so it is, unlike one of yours
    model = aim.wrap_image_model(TinyViT(), num_frames=8, num_classes=3)
    aim.print_trainable_parameters(model)
    print(model(torch.randn(2, 8, 3, 16, 16)).shape)


if __name__ == "__main__":
    main()
