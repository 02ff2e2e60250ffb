"""Give each test a checkpoint of its own, and a model that it fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

import aim_adapters as aim
from tests.checkpoint.hostile_cases import STARTS
from tests.tiny import base, trained, wrapped


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a model wrapped with the defaults, for everybody to read."""
    return aim.save_adapters(trained(), tmp_path_factory.mktemp("good"))


@pytest.fixture
def saved(good: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(good, tmp_path / "saved"))


@pytest.fixture(params=["wrapped", "unwrapped"])
def fresh(request: pytest.FixtureRequest) -> VisionTransformer:
    """Return a model that it fits, before loading."""
    model = wrapped() if request.param == "wrapped" else base()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest) -> str:
    """Return the name of a way to start loading; see `hostile_cases.load`."""
    return str(request.param)
