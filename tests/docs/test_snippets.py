"""Run the Python code in README.md and docs/, so that it cannot go stale.

The blocks of a page run one after the other in one namespace, as a reader would type them. Pre-trained models are
replaced by small random ones of the same kind; the working directory holds small videos: ``data/train``, ``data/test``,
``new.mp4``.
"""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers as hf
from torch.utils.data import DataLoader

from aim_adapters import BaseRequest
from tests.backbones.cases import scramble
from tests.video.videos import write

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in MARKDOWN if "```python" in page.read_text(encoding="utf-8")]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the page's Python blocks, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in BLOCK.finditer(text)]


@functools.cache
def videos() -> Path:
    """Write the videos once in a process: four of each class to train on, one to test on."""
    root = Path(tempfile.mkdtemp(prefix="aim-snippets-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for part, count in (("train", 4), ("test", 1)):
        for place, name in enumerate(("zoom in", "zoom out")):
            for index in range(count):
                write(root / part / name / f"{index}.mp4", count=10, height=24, width=32, seed=10 * place + index)
    return root


class Loader(DataLoader[Any]):
    """A loader without worker processes, which take longer to start than such videos to read."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "num_workers": 0, "persistent_workers": False})


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Build every model of a page with the same kind of parts, 4 patches, width 32 and depth 2, and without weights."""
    timm_create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        size = {"img_size": 224, "patch_size": 112, "embed_dim": 32, "depth": 2, "num_heads": 2}
        torch.manual_seed(0)  # two calls give the same "pre-trained" weights
        return timm_create(name, pretrained=False, **{**size, **kwargs})

    def create_model_and_transforms(name: str, pretrained: str | None = None) -> tuple[torch.nn.Module, None, None]:
        config = open_clip.get_model_config(name)
        assert config is not None, f"open_clip has no model {name}"
        config["vision_cfg"].update(layers=2, width=64, head_width=32, patch_size=112)
        config["text_cfg"].update(layers=1, width=32, heads=2)
        return open_clip.CLIP(**config), None, None

    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))

    def from_pretrained(name: str) -> torch.nn.Module:
        size = {"patch_size": 112, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = scramble(hf.ViTForImageClassification(hf.ViTConfig(**size, intermediate_size=64)))
        model.name_or_path = str(tmp_path)
        return model

    def build_base(library: str, request: BaseRequest) -> torch.nn.Module:
        return create_model(request.name)

    monkeypatch.setattr("aim_adapters.checkpoint.video_model.build_base", build_base)
    load_processor = hf.AutoImageProcessor.from_pretrained
    monkeypatch.setattr(hf.AutoImageProcessor, "from_pretrained", lambda name: load_processor(tmp_path))

    monkeypatch.setattr(hf.ViTForImageClassification, "from_pretrained", from_pretrained)
    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", create_model_and_transforms)


# What the pages save has not been trained, as training takes longer than reading.
@pytest.mark.filterwarnings("ignore:every up-projection in:UserWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # Trainer without a GPU
@pytest.mark.filterwarnings("ignore:Found [0-9]+ module.s. in eval mode")  # Lightning, of the frozen ones
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # PyTorch 2.11's own exporter
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(
    page: Path, small_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    (tmp_path / "data").symlink_to(videos())
    (tmp_path / "new.mp4").symlink_to(videos() / "test" / "zoom in" / "0.mp4")
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for line, code in blocks(page):
        # The padding makes a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_every_page_with_code_is_found() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/getting-started.md", "docs/training.md", "docs/saving.md"} <= names
