"""Runs notebooks, each from its .py, and writes the .ipynb with what its cells show.

python scripts/run_notebooks.py [NAME ...]
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[1] / "examples" / "notebooks"


def shrink(data: dict[str, str]) -> None:
    """Keep a picture as JPEG where that is smaller, as it is for photographs."""
    if "image/png" in data:
        packed = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB").save(packed, "JPEG", quality=80)
        jpeg = base64.b64encode(packed.getvalue()).decode()
        if len(jpeg) < len(data["image/png"]):
            data["image/jpeg"] = jpeg
            del data["image/png"]


def write(source: Path) -> None:
    """Run one notebook in a kernel of its own, and write it beside its source.

    Raises:
        SystemExit: a cell wrote to stderr, as warnings do.
    """
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{source.stem.replace('_', '-')}-{index}"  # the same each time, so that a diff shows what changed
    client = NotebookClient(notebook, timeout=3600, kernel_name="python3", record_timing=False, coalesce_streams=True)
    client.resources = {"metadata": {"path": str(source.parent)}}
    client.execute()
    notebook.metadata.pop("language_info", None)  # the version of Python that happened to run it
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = [output.text for output in outputs if output.get("name") == "stderr"]
    if said:
        raise SystemExit(f"{source.name} wrote to stderr:\n{''.join(said)}")
    for output in outputs:
        shrink(output.get("data", {}))
    nbformat.write(notebook, source.with_suffix(".ipynb"))


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, where ipywidgets is not installed
    names = sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    for name in names:
        print(f"{name} ...", flush=True)
        write(NOTEBOOKS / f"{name}.py")
