"""Hold each .ipynb to the .py that is its source, and run every source on tiny data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat import NotebookNode

from tests.examples.notebook_runner import TINY

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "examples" / "notebooks").glob("*.py"))
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

# What a notebook says when it has got to where its story leads.
SAID = {
    "look_inside": ("AttentionMaps(", "Probability of 'fade in'", "report.html:"),
    "many_tasks": ("direction: still", "the image model is unchanged"),
    "own_backbone": ("saved, unwrapped, loaded: the same answers, to the bit",),
    "own_videos": ("the same answers, to the bit",),
    "quickstart": ("the same predictions, to the bit", "the image model is unchanged"),
    "reference_checkpoint": ("relative difference", "the same logits, to the bit", "QuickGELU"),
    "share_on_the_hub": (
        "the same answers, to the bit",
        "the first version is still there",
        "no such repository",
    ),
    "zero_shot_clip": ("embeddings equal the averages of their frames'", "the averages of the frames again"),
}


def cells(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Return what a notebook says, without outputs and identifiers."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks() -> None:
    assert {source.stem for source in SOURCES} == set(SAID)
    listed = re.findall(r"notebooks/(\w+)\.ipynb", (ROOT / "docs" / "notebooks.md").read_text())
    assert sorted(listed) == [source.stem for source in SOURCES]


@each_notebook
def test_ipynb_follows_its_source(source: Path) -> None:
    written = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert cells(written) == cells(jupytext.read(source)), "run `make notebooks`"
    nbformat.validate(written)


@each_notebook
def test_ipynb_holds_what_its_cells_show(source: Path) -> None:
    path = source.with_suffix(".ipynb")
    if source.stem == "quickstart":  # which trains two models for minutes; the README has its script's results
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), "clear its outputs"
        return
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    shown = [{**output.get("data", {}), "stdout": output.get("text", "")} for output in outputs]
    text = "".join(value for each in shown for kind, value in each.items() if not kind.startswith("image/"))
    assert all(words in text for words in SAID[source.stem])
    assert not re.search(r"/(home|root|tmp|Users|work)/", text), "a path of the machine that ran it"
    assert path.stat().st_size < 150_000


@each_notebook
def test_links_lead_to_pages_and_notebooks(source: Path) -> None:
    for link in re.findall(r"\]\((\.\./[^)#]+)|`(\w+\.ipynb)`", source.read_text()):
        assert (source.parent / "".join(link)).exists(), link


@pytest.mark.slow
def test_notebooks_run(tmp_path: Path) -> None:
    # One process for all: it takes seconds to import what they need, and the Hub's address is read at that time.
    assert set(TINY) <= set(SAID)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    kept.update(PYTHONPATH=os.pathsep.join(path), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "tests.examples.notebook_runner", str(tmp_path), *map(str, SOURCES)]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    missing = {name: [words for words in expected if words not in said[name]] for name, expected in SAID.items()}
    assert not any(missing.values()), {name: said[name][-3000:] for name in missing if missing[name]}
