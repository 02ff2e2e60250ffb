"""Let Triton's kernels run on a CPU where there is no GPU, and let tests do without."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch

if not torch.cuda.is_available():
    # Before Triton is imported for the first time: its own library of functions is made for one or the other.
    os.environ["TRITON_INTERPRET"] = "1"
    with suppress(ImportError, AttributeError):  # without Triton, and where it names its parts otherwise
        from tests.interpreter import patch_once_a_launch

        patch_once_a_launch()


def pytest_collection_finish() -> None:
    """Take all that was imported out of garbage collections, each of which looked at it for a third of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be on a machine without a GPU, and with Triton as its users have it."""
    from aim_adapters.ops import device

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device._missing.clear()
    device._shared_memory.clear()
    device._crowded.clear()
    yield
    device._missing.clear()
    device._shared_memory.clear()
    device._crowded.clear()


@pytest.fixture(scope="module")
def on_the_hub(request: pytest.FixtureRequest) -> dict[str, str]:
    """Run the scenarios of a module against a Hub of its own, once; the traceback of each, ``""`` for none."""
    from tests.loopback_hub import run_scenarios

    return run_scenarios(request.module.__name__)
