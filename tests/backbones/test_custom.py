"""A family that others describe keeps every promise, whether registered by a call or by an entry point."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import aim_adapters as aim
import custom_backbone
from aim_adapters.backbones import base_facts, registry
from aim_adapters.errors import ConfigError
from custom_backbone import TINY_VIT, TinyViT
from tests.backbones.cases import Case, process_group
from tests.backbones.contract import Contract

__all__ = ["process_group"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", {})
    aim.register_backbone(TINY_VIT)
    yield


@pytest.fixture
def case() -> Case:
    return Case("tiny_vit", TinyViT, checkpoints=False, machinery=True)


class TestContract(Contract):
    pass


def test_registered_families_are_listed_and_unique() -> None:
    assert aim.list_backbones()[-1] == "tiny_vit"
    assert "timm_vit" in aim.list_backbones()
    with pytest.raises(ConfigError, match="'tiny_vit' exists already"):
        aim.register_backbone(TINY_VIT)
    with pytest.raises(ConfigError, match=r"takes an aim_adapters\.Backbone, got str"):
        aim.register_backbone("tiny_vit")  # type: ignore[arg-type]


def test_an_unknown_model_names_its_block_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(aim.UnsupportedModelError, match=r"custom_backbone\.Layer.*register_backbone"):
        aim.wrap_image_model(TinyViT(), 8)


def test_entry_points_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> Any:
            return TINY_VIT

    def entry_points(group: str) -> list[Point]:
        assert group == "aim_adapters.backbones"
        return [Point()]

    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_entry_points_loaded", False)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert aim.list_backbones().count("tiny_vit") == 1
    assert aim.wrap_image_model(TinyViT(), 4)(torch.randn(1, 4, 3, 16, 16)).shape == (1, 5)


def test_facts_of_others_models_are_theirs_or_general(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    assert base_facts("", "mine", {}) == base_facts("theirs", "user/mine", {}) == (None, "model")
    assert base_facts("theirs", "hf-hub:user/mine@v1", {}).hub_id == "user/mine"
    aim.register_backbone(dataclasses.replace(TINY_VIT, library="theirs", hub_id=lambda name: f"us/{name}"))
    aim.register_backbone(dataclasses.replace(TINY_VIT, name="big", library="theirs", call=lambda arguments: None))
    assert base_facts("theirs", "mine", {}) == ("us/mine", None)
    # A family that says nothing leaves the word to others of its library.
    aim.register_backbone(dataclasses.replace(TINY_VIT, name="new", library="timm"))
    assert base_facts("timm", "vit.in1k", {}).hub_id == "timm/vit.in1k"


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    custom_backbone.main()
    assert "torch.Size([2, 3])" in capsys.readouterr().out
