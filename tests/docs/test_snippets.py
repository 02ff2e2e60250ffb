"""Run the Python code in README.md and docs/, so that it cannot go stale.

The blocks of a page run one after the other in one namespace, as a reader would type them. Pre-trained models are
replaced by small random ones of the same kind; what a page calls ``loader`` is given here.
"""

from __future__ import annotations

import atexit
import functools
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
def _videos() -> Path:
    """Write, once in a process, the folder of videos that pages read."""
    root = Path(tempfile.mkdtemp(prefix="aim-snippets-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for part, count in (("train", 4), ("test", 2)):
        for place, label in enumerate(("zoom in", "zoom out")):
            for index in range(count):
                write(root / "data" / part / label / f"{index}.mp4", count=8, seed=10 * place + index)
    write(root / "new.mp4", count=8)
    return root


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
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

    def from_pretrained(name: str) -> torch.nn.Module:
        size = {"patch_size": 112, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return scramble(hf.ViTForImageClassification(hf.ViTConfig(**size, intermediate_size=64)))

    monkeypatch.setattr(hf.ViTForImageClassification, "from_pretrained", from_pretrained)
    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", create_model_and_transforms)


# What the pages save has not been trained, as training takes longer than reading.
@pytest.mark.filterwarnings("ignore:every up-projection in:UserWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # Trainer without a GPU
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # PyTorch 2.11's own exporter
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(
    page: Path, small_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_videos(), tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    loader = [(torch.randn(2, 8, 3, 224, 224), torch.tensor([i, i + 1])) for i in range(2)]
    namespace: dict[str, Any] = {"__name__": "snippet", "loader": loader}
    for line, code in blocks(page):
        # The padding makes a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_every_page_with_code_is_found() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/getting-started.md", "docs/training.md", "docs/saving.md"} <= names
