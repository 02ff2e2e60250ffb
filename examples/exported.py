"""Reads an image transformer that transformers exported to ONNX, as timm's state dict, and checks it.

Some packages ship their backbone this way. The names in the file are those of transformers' modules; a `Layout` says
what timm calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnx

__all__ = ["CLIP", "DINOV2", "Layout", "WeightsError", "check_against_onnx", "timm_state_from_onnx"]

TOLERANCE = 1e-5  # relative; float32 rounding of two implementations
ENDS_OF_NORM = ("Add", "LayerNormalization")  # the operator that gives a normalization's output, by the ONNX version


class WeightsError(RuntimeError):
    """Tells that pre-trained weights could not be fetched, or are not what they should be."""


def affine(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the weights and biases of modules, from the names of the modules."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of a backbone and of its tensors, each timm's and then transformers'."""

    model: str  # timm's
    outside: Mapping[str, str]  # outside the blocks
    inside: Mapping[str, str]  # of a block, without the block's name
    blocks: str  # how the names of transformers' blocks begin, up to the index
    qkv: tuple[str, str, str]  # transformers' query, key and value layers; timm's are one


DINOV2 = Layout(
    model="vit_small_patch14_dinov2.lvd142m",
    outside={
        "cls_token": "backbone.embeddings.cls_token",
        "pos_embed": "backbone.embeddings.position_embeddings",
        **affine({"patch_embed.proj": "backbone.embeddings.patch_embeddings.projection"}),
        **affine({"norm": "backbone.layernorm"}),
    },
    inside={
        **affine({"norm1": "norm1", "attn.proj": "attention.output.dense", "norm2": "norm2"}),
        **affine({"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    },
    blocks="backbone.encoder.layer.",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
)
CLIP = Layout(
    model="vit_base_patch16_clip_quickgelu_224.openai",
    outside={
        "cls_token": "vision_model.embeddings.class_embedding",
        "pos_embed": "vision_model.embeddings.position_embedding.weight",
        "patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        **affine({"norm_pre": "vision_model.pre_layrnorm", "norm": "vision_model.post_layernorm"}),
    },
    inside={
        **affine({"norm1": "layer_norm1", "attn.proj": "self_attn.out_proj", "norm2": "layer_norm2"}),
        **affine({"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
    },
    blocks="vision_model.encoder.layers.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)


def timm_state_from_onnx(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Rename the tensors of a model of transformers, exported to ONNX, to timm's.

    Args:
        path: ONNX file.
        layout: how the tensors are named.

    Returns:
        timm's state dict, in float32, with the position embedding of the original size, `[1, 1 + patches, D]`.

    Raises:
        WeightsError: the file does not hold such a model.
    """
    import onnx

    graph = onnx.load(path).graph
    try:
        theirs = _exported_state(graph)
        positions = layout.outside["pos_embed"]
        if positions not in theirs:
            theirs[positions] = _position_embedding(graph, layout)
        state = {ours: theirs[name] for ours, name in layout.outside.items()}
        in_blocks = [name.removeprefix(layout.blocks) for name in theirs if name.startswith(layout.blocks)]
        for index in range(len({name.partition(".")[0] for name in in_blocks})):
            block = f"{layout.blocks}{index}"
            for kind in ("weight", "bias"):
                parts = [theirs[f"{block}.{part}.{kind}"] for part in layout.qkv]
                state[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)  # [3 D, D] or [3 D]
            state |= {f"blocks.{index}.{ours}": theirs[f"{block}.{name}"] for ours, name in layout.inside.items()}
    except KeyError as error:
        raise WeightsError(f"{path} is not an exported {layout.model}: it has no {error}.") from error
    for key in ("cls_token", "pos_embed"):
        state[key] = state[key].reshape(1, -1, state[key].shape[-1])  # [1, N, D]
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _constants(graph: onnx.GraphProto) -> dict[str, Tensor]:
    from onnx import numpy_helper

    return {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}


def _exported_state(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Read transformers' state dict from an exported graph, as far as the names tell it.

    Vectors keep their names in the file. Weights of linear layers are nameless and transposed, so they are found by
    the product that reads them, whose name tells the layer: `/encoder/layer.0/mlp/fc1/MatMul`.
    """
    constants = _constants(graph)
    state = dict(constants)
    for node in graph.node:
        layer = node.name.strip("/").removesuffix("_quant").removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMul" and node.input[1] in constants:
            state[f"{layer}.weight"] = constants[node.input[1]].T  # [out, in]
        elif node.op_type == "MatMulInteger":
            state[f"{layer}.weight"] = _dequantized(node, constants).T  # [out, in]
    return state


def _dequantized(product: onnx.NodeProto, constants: Mapping[str, Tensor]) -> Tensor:
    """Return the matrix, `[in, out]`, float32, that ONNX Runtime rounded to int8, with a scale for each output."""
    name = product.input[1].removesuffix("_quantized")
    zero = constants[f"{name}_zero_point"].float()
    return (constants[f"{name}_quantized"].float() - zero) * constants[f"{name}_scale"]


def _nodes_of(tensor: str) -> str:
    """Return how the names of the nodes begin that belong to a tensor's module."""
    return f"/{tensor.rpartition('.')[0].replace('.', '/')}/"


def _position_embedding(graph: onnx.GraphProto, layout: Layout) -> Tensor:
    """Join the position embedding, nameless and split by the export: the [class] token's and the patches' constants."""
    constants = _constants(graph)
    token = layout.outside["cls_token"]
    width, embeddings = constants[token].shape[-1], _nodes_of(token)
    read = {name for node in graph.node if node.name.startswith(embeddings) for name in node.input}
    found = [constants[name] for name in sorted(read & constants.keys()) if name != token]
    found = [tensor for tensor in found if tensor.ndim == 3 and tensor.shape[-1] == width]
    found.sort(key=lambda tensor: tensor.shape[1])
    if len(found) != 2 or found[0].shape[1] != 1:
        raise WeightsError(f"Expected two position embeddings, got {[tuple(tensor.shape) for tensor in found]}.")
    return torch.cat(found, dim=1)  # [1, 1 + patches, D]


def check_against_onnx(state: dict[str, Tensor], path: Path, layout: Layout) -> float:
    """Compare timm's features with those of ONNX Runtime on a random image.

    The exported graph may resample the position embedding without anti-aliasing, timm with it. So for this comparison
    timm's model gets the graph's. And a quantized graph rounds what it multiplies too, which timm's model does not;
    for this comparison it multiplies in float32.

    Args:
        state: what `timm_state_from_onnx` gave.
        path: the ONNX file it came from.
        layout: how the tensors are named.

    Returns:
        The difference's norm relative to the features' norm.

    Raises:
        WeightsError: the features differ by more than 1e-5.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    _multiply_in_float(proto.graph)
    embeddings, norm = _nodes_of(layout.outside["cls_token"]), _nodes_of(layout.outside["norm.weight"])
    # The embeddings end with the sum of the tokens and the position embedding.
    position = next(node.input[1] for node in proto.graph.node if node.name == f"{embeddings}Add")
    ends = [node for node in proto.graph.node if node.name.startswith(norm) and node.op_type in ENDS_OF_NORM]
    features = ends[-1].output[0]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (features, position))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    image = torch.randn(1, *entry.shape[1:], generator=torch.Generator().manual_seed(0))
    expected, embedding = session.run([features, position], {entry.name: image.numpy()})

    model = timm.create_model(layout.model, pretrained=False, img_size=image.shape[-1], num_classes=0)
    model.load_state_dict(state | {"pos_embed": torch.from_numpy(embedding)})
    with torch.no_grad():
        got = model.eval().forward_features(image)  # [1, N, D]
    reference = torch.from_numpy(expected)
    if reference.ndim == 2:  # CLIP normalizes the [class] token only
        got = got[:, 0]
    difference = float((got - reference).norm() / reference.norm())
    if not difference <= TOLERANCE:
        raise WeightsError(f"timm's features differ from ONNX Runtime's by {difference:.1e}, more than {TOLERANCE}.")
    return difference


def _multiply_in_float(graph: onnx.GraphProto) -> None:
    """Replace the integer products of a dynamically quantized graph by products with the dequantized weights.

    The node that scales an integer product becomes the float product; nothing reads the integer one any more.
    """
    from onnx import numpy_helper

    constants = _constants(graph)
    unrounded = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DynamicQuantizeLinear"}
    products = {f"{node.name}_output_scale_mul": node for node in graph.node if node.op_type == "MatMulInteger"}
    for node in graph.node:
        if product := products.get(node.name):
            weight = f"{product.input[1]}_in_float"
            graph.initializer.append(numpy_helper.from_array(_dequantized(product, constants).numpy(), weight))
            node.op_type = "MatMul"
            node.input[:] = [unrounded[product.input[0]], weight]
