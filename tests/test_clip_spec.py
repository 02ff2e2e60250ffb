from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import aim_adapters as aim
from aim_adapters.clip_spec import record_clip
from tests.tiny import PREPROCESSING, base, trained, wrapped

NAMES = ("tap", "wave", "zoom")


def test_a_wrapped_model_says_what_it_reads() -> None:
    spec = aim.clip_spec(wrapped("tiny.x", labels=NAMES))
    assert spec == aim.ClipSpec(4, None, (16, 16), PREPROCESSING["mean"], PREPROCESSING["std"], NAMES)
    larger = aim.wrap_image_model(base("tiny.x", img_size=32), 8)
    assert aim.clip_spec(larger).image_size == (32, 32)
    assert aim.clip_spec(larger).labels is None


def test_labels_are_saved_with_the_adapters_and_come_back(tmp_path: Path) -> None:
    model = trained("tiny.x", labels=NAMES)
    record_clip(model, stride=6, mean=(0.1, 0.2, 0.3))
    aim.save_adapters(model, tmp_path)
    for fresh in (base("tiny.x"), wrapped("tiny.x", num_classes=3), wrapped("tiny.x", labels=("a", "b", "c"))):
        aim.load_adapters(fresh, tmp_path)
        assert aim.clip_spec(fresh) == aim.clip_spec(model)
        assert (aim.clip_spec(fresh).labels, aim.clip_spec(fresh).stride) == (NAMES, 6)


def test_each_adapter_has_labels_of_its_own() -> None:
    model = wrapped("tiny.x", labels=NAMES)
    aim.add_adapter(model, "other", aim.AIMConfig(4), labels=("a", "b"))
    aim.set_adapter(model, "other")
    assert aim.clip_spec(model).labels == ("a", "b")
    assert model(_video()).shape[1] == 2
    aim.set_adapter(model, "default")
    assert aim.clip_spec(model).labels == NAMES


def test_an_average_keeps_what_all_its_adapters_say() -> None:
    model = wrapped("tiny.x", labels=NAMES)
    record_clip(model, stride=6)
    for name, labels in (("same", NAMES), ("turned", NAMES[::-1])):
        aim.add_adapter(model, name, aim.AIMConfig(4), labels=labels)
        aim.average_adapters(model, ["default", name], into=f"with {name}")
    aim.set_adapter(model, "with same")
    assert (aim.clip_spec(model).labels, aim.clip_spec(model).stride) == (NAMES, None)
    aim.set_adapter(model, "with turned")
    assert aim.clip_spec(model).labels is None


def test_what_is_put_around_a_model_changes_nothing() -> None:
    model = trained("tiny.x", labels=NAMES)
    spec = aim.clip_spec(model)
    assert aim.clip_spec(torch.compile(model)) == aim.clip_spec(copy.deepcopy(model)) == spec
    with aim.disable_adapters(model):
        assert aim.clip_spec(model) == spec
    with pytest.warns(UserWarning, match="interpolated"):
        aim.set_num_frames(model, 8)
    assert aim.clip_spec(model) == dataclasses.replace(spec, frames=8)


def test_models_of_transformers_learn_the_names_too() -> None:
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    model = aim.wrap_image_model(hf.ViTForImageClassification(config), 4, labels=NAMES)
    assert model.config.id2label == dict(enumerate(NAMES)) and model.config.label2id["zoom"] == 2
    with pytest.raises(aim.ConfigError, match=r"does not say its mean, std; build an aim\.ClipSpec"):
        aim.clip_spec(model)
    assert aim.unwrap_image_model(model).config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def _video() -> Any:
    from tests.tiny import video

    return video()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ()}, "name each class once, got none"),
        ({"labels": ("a", "a", "b")}, "name each class once, got twice: ['a']"),
        ({"labels": "abc"}, "labels must be a sequence of names"),
        ({"labels": (1, 2)}, "labels must be a sequence of names"),
        ({"labels": NAMES, "num_classes": 4}, "got 3 labels and num_classes=4"),
    ],
)
def test_wrong_labels_leave_the_model_alone(settings: dict[str, Any], message: str) -> None:
    model = base("tiny.x")
    with pytest.raises(aim.ConfigError) as refused:
        aim.wrap_image_model(model, 4, **settings)
    assert message in str(refused.value)
    assert not aim.is_wrapped(model)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"stride": 0},
        {"image_size": (224,)},
        {"mean": ("x",) * 3},
        {"std": (0.0, 1.0, 1.0)},
        {"labels": "ab"},
    ],
)
def test_a_spec_refuses_what_cannot_be(change: dict[str, Any]) -> None:
    spec = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(aim.ConfigError, match=next(iter(change))):
        dataclasses.replace(spec, **change)
