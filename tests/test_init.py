"""Importing is quiet and light, and exports exactly the public names."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

import aim_adapters as aim

OPTIONAL = {"accelerate", "av", "rich", "timm", "typer", "open_clip", "torchvision", "transformers", "triton"}
INTERPRETER = {"HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV"}
PUBLIC = {name: getattr(aim, name) for name in aim.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(inspect.unwrap(value))}

_PROBE = """
import json, logging, os, random, sys, warnings
import torch
before = set(sys.modules), dict(os.environ), sys.path[:], torch.get_rng_state(), random.getstate()
handlers, filters, dtype = logging.getLogger().handlers[:], warnings.filters[:], torch.get_default_dtype()
import aim_adapters
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - before[0]}),
    "environment": dict(os.environ) != before[1],
    "path": sys.path != before[2],
    "torch_rng": not torch.equal(torch.get_rng_state(), before[3]),
    "random": random.getstate() != before[4],
    "handlers": logging.getLogger().handlers != handlers,
    "filters": warnings.filters != filters,
    "dtype": torch.get_default_dtype() != dtype,
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported() -> tuple[dict[str, Any], str, str]:
    """Import in a fresh interpreter; return what changed, and all that was printed."""
    # What this process has imported may have set variables, so only what an interpreter needs is handed on.
    environment = {name: value for name, value in os.environ.items() if name in INTERPRETER}
    command = [sys.executable, "-W", "error", "-c", _PROBE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *printed, facts = run.stdout.splitlines()
    return json.loads(facts), "\n".join(printed), run.stderr


def test_import_brings_in_no_optional_library(imported: tuple[dict[str, Any], str, str]) -> None:
    modules = set(imported[0]["modules"])
    assert "aim_adapters" in modules
    assert not modules & OPTIONAL


def test_pytorch_is_imported_when_a_name_is_first_used() -> None:
    code = "import sys, aim_adapters as aim; assert 'torch' not in sys.modules; aim.wrap_image_model; import torch"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_hides_the_function_that_has_its_name() -> None:
    code = "import aim_adapters.clip_spec, aim_adapters as aim; assert aim.clip_spec.__name__ == 'clip_spec'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_changes_nothing_global(imported: tuple[dict[str, Any], str, str]) -> None:
    assert [name for name, changed in imported[0].items() if name != "modules" and changed] == []


def test_import_prints_nothing(imported: tuple[dict[str, Any], str, str]) -> None:
    assert imported[1:] == ("", "")


def test_all_is_exactly_what_is_exported() -> None:
    ours = {name for name, value in vars(aim).items() if getattr(value, "__module__", "").startswith("aim_adapters")}
    exported = {name for name in ours if not name.startswith("_")}
    assert exported | set(aim._LAZY) == set(aim.__all__)
    assert set(aim.__all__) <= set(dir(aim))
    assert len(aim.__all__) == len(set(aim.__all__))
    assert list(aim.__all__) == sorted(aim.__all__)


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", aim.__version__)


# Documentation


@pytest.mark.parametrize("name", PUBLIC)
def test_first_line_is_a_sentence(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n")[0]
    assert re.match(r"[A-Z].*[.:]$", first), first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_document_arguments_and_errors(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    parameters = inspect.signature(function).parameters
    doc = inspect.getdoc(function) or ""
    if parameters:
        assert section(doc, "Args") == list(parameters)
        assert section(doc, "Raises")
    assert set(raised(function)) <= set(section(doc, "Raises"))


@pytest.mark.parametrize("name", ["AIMConfig", "Backbone"])
def test_dataclasses_document_their_fields(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    assert section(doc, "Args") == [field.name for field in dataclasses.fields(PUBLIC[name])]


def section(doc: str, title: str) -> list[str]:
    """Return the names that a Google-style section explains."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    return re.findall(r"^ {4}(\w+):", match[1], re.MULTILINE) if match else []


def raised(function: Callable[..., Any]) -> list[str]:
    """Return the names of the errors in the function's own ``raise`` statements."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    ]
