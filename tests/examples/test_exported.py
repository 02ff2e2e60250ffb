from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import exported
from exported import CLIP, DINOV2, Layout, WeightsError, timm_state_from_onnx

onnx = pytest.importorskip("onnx")

SIZES = {"img_size": 28, "patch_size": 14, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 0}
TINY = {id(DINOV2): SIZES | {"init_values": 1.0}, id(CLIP): SIZES | {"pre_norm": True}}


def tiny(layout: Layout) -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(**TINY[id(layout)])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def export(
    model: timm.models.VisionTransformer, path: Path, layout: Layout, *, without: str = "", int8: bool = False
) -> None:
    """Write the tensors as an export of transformers keeps them: nameless weights of linear layers, transposed.

    Of int8 weights the model gets those that the integers stand for.
    """
    state, tensors, nodes = model.state_dict(), {}, []

    def node(op: str, name: str, *inputs: str) -> None:
        if name != f"/{without.replace('.', '/')}/MatMul":
            nodes.append(onnx.helper.make_node(op, list(inputs), [f"{name}_output"], name=name))

    def linear(name: str, weight: torch.Tensor) -> None:
        constant, module = f"onnx::MatMul_{len(tensors)}", f"/{name.replace('.', '/')}"
        if int8:
            scale = weight.abs().amax(1) / 127
            rounded = (weight / scale[:, None]).round()
            weight.copy_(rounded * scale[:, None])
            zero = torch.zeros_like(scale, dtype=torch.int8)
            tensors[f"{constant}_quantized"] = rounded.T.to(torch.int8)
            tensors[f"{constant}_scale"], tensors[f"{constant}_zero_point"] = scale, zero
            inputs = (f"{constant}_quantized", f"{module}/zero", f"{constant}_zero_point")
            node("MatMulInteger", f"{module}/MatMul_quant", f"{module}/input_quantized", *inputs)
        else:
            tensors[constant] = weight.T
            node("MatMul", f"{module}/MatMul", f"{module}/input", constant)

    def place(name: str, tensor: torch.Tensor) -> None:
        if name.endswith(".weight") and tensor.ndim == 2 and "embedding" not in name:
            linear(name.removesuffix(".weight"), tensor)
        else:
            tensors[name] = tensor

    outside = {name: state[key] for key, name in layout.outside.items()}
    if layout is DINOV2:  # its position embedding is nameless, and split
        positions = outside.pop(layout.outside["pos_embed"])
        tensors["onnx::Reshape_9"], tensors["onnx::Concat_10"] = positions[:, 1:], positions[:, :1]
        node("Reshape", "/backbone/embeddings/Reshape", "onnx::Reshape_9")
        node("Concat", "/backbone/embeddings/Concat", "onnx::Concat_10")
    else:  # its token and position embedding have no batch axis
        outside[layout.outside["cls_token"]] = state["cls_token"][0, 0]
        outside[layout.outside["pos_embed"]] = state["pos_embed"][0]
    for name, tensor in outside.items():
        place(name, tensor)
    for index in range(len(model.blocks)):
        for kind in ("weight", "bias"):
            thirds = state[f"blocks.{index}.attn.qkv.{kind}"].chunk(3)
            for part in (1, 2, 0):  # exported in another order than timm's
                place(f"{layout.blocks}{index}.{layout.qkv[part]}.{kind}", thirds[part])
        for key, name in layout.inside.items():
            place(f"{layout.blocks}{index}.{name}", state[f"blocks.{index}.{key}"])
    constants = [onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "exported", [], [], initializer=constants)), path)


@pytest.mark.parametrize(("layout", "int8"), [(DINOV2, False), (CLIP, False), (CLIP, True)])
def test_every_tensor_of_an_export_finds_its_place(tmp_path: Path, layout: Layout, int8: bool) -> None:
    model = tiny(layout)
    export(model, tmp_path / "model.onnx", layout, int8=int8)
    state = timm_state_from_onnx(tmp_path / "model.onnx", layout)
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_another_model_is_refused(tmp_path: Path) -> None:
    export(tiny(DINOV2), tmp_path / "model.onnx", DINOV2, without="backbone.encoder.layer.1.mlp.fc2")
    with pytest.raises(WeightsError, match=r"not an exported vit_small.*: it has no '.*layer\.1\.mlp\.fc2\.weight'"):
        timm_state_from_onnx(tmp_path / "model.onnx", DINOV2)
    with pytest.raises(WeightsError, match=r"it has no 'vision_model\.embeddings\.class_embedding'"):
        timm_state_from_onnx(tmp_path / "model.onnx", CLIP)
    export(tiny(CLIP), tmp_path / "model.onnx", CLIP, int8=True)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.initializer.remove(next(item for item in model.graph.initializer if item.name.endswith("_scale")))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(WeightsError, match=r"it has no 'onnx::MatMul_\d+_scale'"):
        timm_state_from_onnx(tmp_path / "model.onnx", CLIP)


def test_a_quantized_graph_is_compared_without_the_rounding_of_what_it_multiplies(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="/layer/MatMul")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, n]) for name, n in (("x", 8), ("y", 4))
    ]
    graph = onnx.helper.make_graph([product], "one", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    opset = [onnx.helper.make_opsetid("", 14)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "float.onnx")
    quantization.quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", per_channel=True, extra_options={"WeightSymmetric": True}
    )
    model = onnx.load(tmp_path / "int8.onnx")
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}
    dequantized = exported._exported_state(model.graph)["layer.weight"].numpy().T
    exported._multiply_in_float(model.graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], x @ dequantized, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dequantized, weight, atol=np.abs(weight).max() / 127)
