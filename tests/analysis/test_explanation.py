from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import aim_adapters as aim
from aim_adapters.analysis.explanation import explain
from aim_adapters.clip_spec import record_clip
from aim_adapters.errors import ConfigError, InputError, StateError, VideoError
from tests.tiny import base, trained
from tests.video.videos import write

LABELS = ("push", "pull", '</script><b>"lift"', "drop", "turn")
NAME = "vit_tiny_patch16_224"  # a name that says how frames are normalized


def frames(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def scene_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    scene: dict[str, Any] = json.loads(found[1])
    return scene


def test_answers_are_those_of_predict_and_everything_is_on_the_page(tmp_path: Path) -> None:
    model = trained(NAME, labels=LABELS)
    file = write(tmp_path / "a<b>&.mp4", height=16, width=16)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps: list[tuple[int, int]] = []
    explanation = explain(model, file, top=3, progress=lambda done, total: steps.append((done, total)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert steps == [(done, 7) for done in range(1, 8)]
    expected = aim.predict(model, file, 3, views="1x1")
    assert [name for name, _ in explanation.predictions["AIM"]] == [name for name, _ in expected]
    assert [value for _, value in explanation.predictions["AIM"]] == pytest.approx([value for _, value in expected])
    assert list(explanation.predictions) == ["Frozen", "+ spatial", "+ temporal", "AIM"]
    page = explanation.to_html()
    scene = scene_of(page)
    assert scene["target"]["name"] == explanation.target == expected[0][0]
    assert len(scene["frames"]) == scene["mapFrames"] == 4
    assert scene["order"]["text"] and len(scene["deletion"]["curves"]) == 3
    assert {row["name"] for row in scene["rows"]} >= {name for name, _ in expected}
    assert "<title>a&lt;b&gt;&amp;.mp4" in page
    assert LABELS[2] not in page


@pytest.mark.parametrize("target", [3, "drop", np.int64(3)])
def test_a_class_is_chosen_by_index_or_name(target: Any) -> None:
    model = trained(NAME, labels=LABELS)
    if not isinstance(target, (int, str)):
        with pytest.raises(ConfigError, match="target"):
            explain(model, frames(), target=target)
        return
    assert explain(model, frames(), target=target, variants=False, checks=False).target == "drop"


def test_what_a_model_lacks_is_said() -> None:
    model = trained(NAME, num_classes=5, components=("spatial",), layers=(0, 2))
    explanation = explain(model, frames(), blocks=[-1], checks=False)
    assert list(explanation.predictions) == ["Frozen", "AIM"]
    scene = scene_of(explanation.to_html())
    assert "order" not in scene and "deletion" not in scene
    assert [variant["temporal"] for variant in scene["variants"]] == [[], []]
    assert "does not know names of its classes" in scene["answersText"]
    assert any("Only blocks 2 of 3" in note for note in scene["notes"])


@pytest.mark.parametrize(
    ("temporal", "blocks", "instead"),
    [
        ("conv", None, "a convolution relates the frames, which has no attention to show"),
        ("both", [0], "those that do were not asked for"),
    ],
)
def test_frames_that_no_attention_relates_are_not_said_to_be_alone(temporal: Any, blocks: Any, instead: str) -> None:
    model = trained(NAME, labels=LABELS, temporal=temporal, layers=[1, 2])
    scene = scene_of(explain(model, frames(4), blocks=blocks, checks=False).to_html())
    alone = "each frame is looked at alone"
    assert [(each["temporal"], each["instead"]) for each in scene["variants"]] == [([], alone)] * 2 + [
        ([], instead)
    ] * 2
    assert any("a convolution over 3 frames relates the frames" in note for note in scene["notes"])


def test_fewer_maps_than_frames_with_tubelets() -> None:
    model = trained(NAME, labels=LABELS, tubelet_size=2)
    scene = scene_of(explain(model, frames()).to_html())
    assert (len(scene["frames"]), scene["mapFrames"]) == (4, 2)
    assert any("joins 2 frames" in note for note in scene["notes"])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"target": 5}, ConfigError, "one of 5 classes"),
        ({"target": "jump"}, ConfigError, "'push', 'pull'"),
        ({"blocks": [3]}, ConfigError, "0 to 2"),
        ({"blocks": []}, ConfigError, "at least one block"),
        ({"top": 0}, ConfigError, "top"),
        ({"variants": "no"}, ConfigError, "variants must be True or False"),
        ({"source": frames().float()}, InputError, "uint8"),
        ({"source": b"no video"}, VideoError, "video"),
        ({"source": 3}, TypeError, "source"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    given = {"source": frames(), **arguments}
    with pytest.raises(error, match=said):
        explain(trained(NAME, labels=LABELS), given.pop("source"), **given)


def test_wrong_models_and_folders_are_refused(tmp_path: Path) -> None:
    model = trained(NAME, labels=LABELS)
    for name in "ab":
        write(tmp_path / f"{name}.mp4", count=4)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError, match="one video, got a folder of 3"):
        explain(model, tmp_path)
    with pytest.raises(VideoError, match=re.escape(str(tmp_path / "c.mp4"))):
        explain(model, tmp_path / "c.mp4")
    with pytest.raises(StateError, match="no classes"):
        explain(trained(NAME, num_classes=0), frames())
    with pytest.raises(StateError, match="wrap"):
        explain(base(NAME), frames())
    with aim.disable_adapters(model), pytest.raises(StateError, match="disabled"):
        explain(model, frames())
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.fill_(float("nan"))
    with pytest.raises(StateError, match="not finite"):
        explain(model, frames())


def test_a_page_is_saved_whole_and_shown_in_a_frame(tmp_path: Path) -> None:
    model = trained(NAME, labels=LABELS)
    record_clip(model, stride=2)
    explanation = explain(model, frames(), variants=False, checks=False)
    explanation.save(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == explanation.to_html()
    assert any("4 frames, 2 apart" in note for note in scene_of(explanation.to_html())["notes"])
    with pytest.raises(OSError, match="new"):
        explanation.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    for nothing in ("", "a\0b"):
        with pytest.raises(ConfigError, match="name a file"):
            explanation.save(nothing)
    shown = explanation._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts"')
    assert shown.count("<") == 2
    assert "The video" in repr(explanation)
