"""Let torchvision build tiny models by name, and let nothing be fetched."""

from __future__ import annotations

from typing import Any

import pytest
from torchvision.models._api import BUILTIN_MODELS

from aim_adapters.backbones import _fetch
from tests.backbones.bases import tiny_swin, tiny_vit


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for builder in (tiny_vit, tiny_swin):
        monkeypatch.setitem(BUILTIN_MODELS, builder.__name__, builder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(_fetch, "download", refuse)
