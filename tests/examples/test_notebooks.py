"""Run every notebook on tiny data, and hold each .ipynb to the .py that is its source."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.py"))

# What takes the place of the settings: four photographs' worth of noise, a small random model, a few steps, no network.
TINY = {
    "quickstart": """
from pathlib import Path
import matplotlib
import timm
matplotlib.use("agg")
cache, out, photos = Path({out!r}), Path({out!r}) / "runs", Path({photos!r})
num_frames, size = 4, 32
train_clips, test_clips = 12, 12
epochs, batch_size, lr = 1, 4, 1e-3
device = "cpu"
torch.manual_seed(0)
torch.set_num_threads(1)

def load_backbone():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2, num_classes=0)
""",
}


def cells(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return what a notebook says, without outputs and identifiers."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Write a folder of pictures with something to see at every scale."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def test_there_are_notebooks() -> None:
    assert {source.stem for source in SOURCES} == set(TINY)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_ipynb_follows_its_source(source: Path) -> None:
    written = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert cells(written) == cells(jupytext.read(source)), "run `make notebooks`"
    assert not any(cell.get("outputs") for cell in written.cells), "outputs are not kept: clear them"


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_runs(source: Path, photographs: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    settings = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    assert len(settings) == 1
    tiny = TINY[source.stem].format(out=str(tmp_path / "out"), photos=str(photographs))
    notebook.cells[settings[0]] = nbformat.v4.new_code_cell(tiny)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}).execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "the same predictions, to the bit" in said
    assert "the image model is unchanged" in said
