"""A card says what is true, its code runs, and whatever a README held before stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import example, given

import aim_adapters as aim
from aim_adapters.checkpoint.card import make_card, section_marks
from aim_adapters.checkpoint.snapshot import take_snapshot
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError
from tests.checkpoint.card_cases import WORDS, card, code, config, metadata
from tests.tiny import base, trained

# Metadata


def test_metadata_is_what_the_hub_reads() -> None:
    text = card(
        license="mit",
        datasets=["kinetics400", "ucf101"],
        metrics={"accuracy": 0.847, "top_5_accuracy": 0.965},
        tags=["action", "aim"],
        repo_id="me/aim",
    )
    assert metadata(text) == {
        "base_model": "timm/vit_base_patch16_clip_224.openai",
        "base_model_relation": "adapter",
        "datasets": ["kinetics400", "ucf101"],
        "library_name": "aim-adapters",
        "license": "mit",
        "pipeline_tag": "video-classification",
        "tags": ["aim", "adapter", "video-classification", "timm", "action"],
        "model-index": [
            {
                "name": "me/aim",
                "results": [
                    {
                        "task": {"type": "video-classification"},
                        "dataset": {"name": "kinetics400", "type": "kinetics400"},
                        "metrics": [
                            {"type": "accuracy", "value": 0.847},
                            {"type": "top_5_accuracy", "value": 0.965},
                        ],
                    }
                ],
            }
        ],
    }
    results = ModelCard(text).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("accuracy", 0.847),
        ("top_5_accuracy", 0.965),
    ]


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [
        ("timm", "vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("timm", "timm/vit_base_patch16_224.augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("timm", "hf-hub:me/vit", "me/vit"),
        ("timm", "hf_hub:me/vit@v1", "me/vit"),
        ("timm", "me/vit", "me/vit"),
        ("timm", "vit_base_patch16_224", None),  # no weights are named
        ("open_clip", "ViT-B-16:openai", None),
        ("open_clip", "hf-hub:laion/CLIP-ViT-B-16", "laion/CLIP-ViT-B-16"),
        ("open_clip", "ViT-B-16", None),
        ("transformers", "google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("transformers", "vit", "vit"),
        ("transformers", "/home/me/vit", None),
        ("transformers", "./vit", None),
        ("transformers", "~/vit", None),
        ("transformers", "runs\\vit", None),
        ("transformers", "runs/vit/last", None),
        ("transformers", "not an id", None),
        ("torchvision", "vit_b_16:IMAGENET1K_V1", None),
        ("torchvision", "me/vit", None),
        ("", "mine", None),
        ("timm", None, None),
    ],
)
def test_base_model_is_named_where_it_is_on_the_hub(library: str, name: str | None, expected: str | None) -> None:
    fields = metadata(card(config(base_model_library=library, base_model_name_or_path=name)))
    assert fields.get("base_model") == expected
    assert fields.get("base_model_relation") == (expected and "adapter")
    assert (library in fields["tags"]) == bool(library)


def test_path_of_a_base_model_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/best").mkdir(parents=True)
    for name in (str(tmp_path / "runs"), "runs/best"):
        text = card(config(base_model_library="transformers", base_model_name_or_path=name))
        assert "runs" not in text and "base_model" not in metadata(text)
        assert "model = ...  # the image model these adapters were trained on" in text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"datasets": "kinetics400"}, "datasets must be a list of strings, got 'kinetics400'"),
        ({"tags": "action"}, "tags must be a list of strings"),
        ({"tags": [3]}, "tags must be a list of strings"),
        ({"metrics": {"accuracy": 0.8}}, "pass datasets="),
        ({"metrics": {"accuracy": float("nan")}, "datasets": ["k400"]}, "metrics must be finite numbers by name"),
        ({"metrics": {"accuracy": "good"}, "datasets": ["k400"]}, "metrics must be finite numbers by name"),
        ({"metrics": {"accuracy": None}, "datasets": ["k400"]}, "metrics must be finite numbers by name"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        card(**arguments)


def test_metric_of_any_number_type_is_a_number() -> None:
    text = card(metrics={"accuracy": torch.tensor(0.5)}, datasets=["k400"])  # type: ignore[dict-item]
    assert metadata(text)["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.5}]


@given(name=WORDS, library=WORDS, license=WORDS, dataset=WORDS, metric=WORDS, tag=WORDS, folder=WORDS, repo=WORDS)
@example(
    name="a\n---\nb: |\n```\n# x <!-- aim-adapters:end --> `", library=": {", license="- [", dataset="|\n", metric="`|",
    tag="\x85", folder='"\n```\n', repo="#",
)  # fmt: skip
def test_no_text_breaks_out(
    name: str, library: str, license: str, dataset: str, metric: str, tag: str, folder: str, repo: str
) -> None:
    text = card(
        config(base_model_name_or_path=name, base_model_library=library),
        license=license,
        datasets=[dataset],
        metrics={metric: 0.5},
        tags=[tag],
        subfolder=folder,
        repo_id=repo,
    )
    fields = metadata(text)
    assert (fields["license"], fields["datasets"]) == (license, [dataset])
    assert tag in fields["tags"] and (library in fields["tags"] or not library)
    assert fields["model-index"][0]["results"][0]["metrics"][0]["type"] == metric
    begin, end = section_marks(folder)
    assert text.count(begin) == text.count(end) == 1
    assert text.index("-->") == text.index(begin) + len(begin) - 3 and "--" not in begin[4:-3]
    assert card(config(), existing=text, subfolder=folder).count("<!--") == text.count("<!--") == 2
    assert next(line for line in text.splitlines() if line.startswith("#")).startswith("# AIM adapters for ")
    assert len(re.findall(r"^#+ ", text[text.index(begin) :], re.MULTILINE)) == 3
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 6 - 2 * ("model = ..." in text)
    for block in code(text):
        compile(block, "card", "exec")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") == 3 for row in rows)


# Text


def test_facts_are_listed() -> None:
    text = card(gmacs=405.12, datasets=["k400"], metrics={"accuracy": 0.847})
    for row in (
        "| frames | 8, 16 apart |",
        "| size | 224 × 224 pixels |",
        "| mean | 0.48145466, 0.4578275, 0.40821073 |",
        "| std | 0.26862954, 0.26130258, 0.27577711 |",
        "| classes | 400 |",
        "| parameters | 10,966,672 trained of 96,764,560 (11.3 %) |",
        "| cost | 405.1 GMACs for one clip |",
        "| accuracy on k400 | 0.847 |",
    ):
        assert row in text.splitlines()
    assert "https://arxiv.org/abs/2302.03024" in text
    assert "| adapters | linear |" in card(config(adapter_activation="none")).splitlines()


def test_what_is_not_known_is_not_said() -> None:
    unknown = {"stride": None, "size": None, "mean": None, "std": None}
    text = card(config(num_classes=None, base_model_name_or_path=None, clip=unknown))
    assert "None" not in text and "null" not in text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows == ["", "---", "frames", "parameters"]


def test_classes_are_the_labels_if_there_are_some() -> None:
    assert "| classes | 3 |" in card(config(num_classes=None, clip={"labels": ["a", "b", "c"]}))
    assert "a video classifier" in card() and "a video classifier" not in card(config(num_classes=0))


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        ({}, '"."'),
        ({"repo_id": "me/aim"}, '"me/aim"'),
        ({"repo_id": "me/aim", "subfolder": "last"}, '"me/aim", subfolder="last"'),
        ({"repo_id": "me/aim", "revision": "v1"}, '"me/aim", revision="v1"'),
    ],
)
def test_code_names_the_source(arguments: dict[str, Any], source: str) -> None:
    first, second = code(card(**arguments))
    assert f"model = aim.load_video_model({source})" in first
    assert second == f"aim.load_adapters(model, {source})\n"
    (only,) = code(card(config(base_model_name_or_path=None), **arguments))
    assert f"aim.load_adapters(model, {source})" in only


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_frames": 3},  # as many as channels
        {"num_frames": 3, "input_layout": "BTCHW"},
        {"input_layout": "BCTHW"},
        {"num_frames": 8, "tubelet_size": 2, "num_classes": 7},
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_code_runs_as_written(
    named: bool, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained("vit_x.in1k" if named else None, **arguments)
    aim.save_adapters(model, tmp_path)
    snapshot = take_snapshot(model, only_root(model))
    assert snapshot is not None
    text = make_card(snapshot.config, parameters=snapshot.parameters)

    def load_video_model(source: str) -> torch.nn.Module:
        fresh = base("vit_x.in1k")
        aim.load_adapters(fresh, source)
        return fresh

    monkeypatch.setattr(aim, "load_video_model", load_video_model, raising=False)
    namespace: dict[str, Any] = {}
    for block in code(text):
        exec(block.replace("model = ...", "model = image_model"), {"image_model": base()} | namespace, namespace)
    assert namespace["output"].shape == (1, 7 if "num_classes" in arguments else 5)


@pytest.mark.parametrize(
    ("library", "arguments", "call"),
    [
        ("transformers", {"architecture": "CLIPModel"}, "model.get_image_features(video)"),
        ("transformers", {"architecture": "ViTForImageClassification"}, "model(video)"),
        ("open_clip", {"part": "model"}, "model.encode_image(video)"),
        ("open_clip", {"part": "visual"}, "model(video)"),
        ("transformers", {"architecture": "Siglip2Model"}, "# call it with what its image processor makes"),
    ],
)
def test_code_calls_whole_models_by_the_right_name(library: str, arguments: dict[str, Any], call: str) -> None:
    assert call in code(card(config(base_model_library=library, base_model_arguments=arguments)))[0]
