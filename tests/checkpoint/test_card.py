"""A card says what is true, its code runs, and whatever a README held before stays."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.checkpoint.card import make_card, section_marks, write_card
from aim_adapters.checkpoint.snapshot import take_snapshot
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError
from aim_adapters.parameters import ParameterCount
from aim_adapters.storage.files import CARD_NAME
from tests.tiny import base, trained

BEGIN, END = section_marks(None)
COUNT = ParameterCount(10_966_672, 96_764_560)
CONFIG: dict[str, Any] = {
    "num_frames": 8,
    "num_classes": 400,
    "input_layout": "auto",
    "base_model_name_or_path": "vit_base_patch16_clip_224.openai",
    "base_model_library": "timm",
    "base_model_arguments": {},
    "clip": {
        "frames": 8, "stride": 16, "size": [224, 224],
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "labels": None,
    },
}  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30)


def config(**changes: Any) -> dict[str, Any]:
    clip = {**CONFIG["clip"], **changes.pop("clip", {})}
    return {**CONFIG, "clip": clip, **changes}


def card(settings: dict[str, Any] | None = None, **arguments: Any) -> str:
    return make_card(CONFIG if settings is None else settings, **{"parameters": COUNT, **arguments})


def metadata(text: str) -> dict[str, Any]:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match.group(1))


def metadata_block(text: str) -> str:
    return text[: text.index("---\n", 4) + 4]


def section(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END)]


def code(text: str) -> list[str]:
    return re.findall(r"^```python\r?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


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


# Merging


README = """---
# mine
license: apache-2.0  # really
tags: [video, 'aim']
datasets: ucf101
pipeline_tag: other
model-index:
- name: mine
  results:
  - task: {type: video-classification}
    dataset: {type: k400, name: Kinetics 400}
    metrics:
    - {type: accuracy, value: 0.5, name: top 1}
    - {type: f1, value: 0.4}
extra:
  nested: [1, 2]   # stays
---

# My model

Words.
"""


def test_block_that_says_all_stays_to_the_byte() -> None:
    front = README.partition("# My model")[0]
    front = front.replace("[video, 'aim']", "[ 'aim', adapter, video-classification, timm]  # all")
    text = card(existing=front + "Words.\n", datasets=["ucf101"])
    block = text.partition("Words.\n")[0]
    assert block.startswith(front.removesuffix("---\n\n")) and "base_model: timm/" in block
    assert card(existing=text, datasets=["ucf101"]) == text
    odd = block.replace("license: apache", "license:    apache").replace("base_model: ", "base_model:   ")
    assert card(existing=odd + "Words.\n", datasets=["ucf101"]).startswith(odd + "Words.\n")


def test_readers_words_stay_and_what_is_missing_is_added() -> None:
    text = card(existing=README, tags=["action"], datasets=["k400"])
    assert list(metadata(text))[: len(metadata(README))] == list(metadata(README))
    assert text.endswith(f"Words.\n\n{section(text)}{END}\n")
    assert section(text).startswith(f"{BEGIN}\n## AIM adapters for ") and "\n### Use\n" in text
    theirs, both = metadata(README), metadata(text)
    assert {key: both[key] for key in theirs.keys() - {"tags", "datasets"}} == {
        key: theirs[key] for key in theirs.keys() - {"tags", "datasets"}
    }
    assert both["tags"] == ["video", "aim", "adapter", "video-classification", "timm", "action"]
    assert both["datasets"] == ["ucf101", "k400"]
    assert both["library_name"] == "aim-adapters"
    assert both["base_model"] == "timm/vit_base_patch16_clip_224.openai"


def test_what_is_said_today_goes_before_what_the_readme_says() -> None:
    text = card(existing=README, license="mit", datasets=["k400"], metrics={"accuracy": 0.8, "recall": 0.7})
    fields = metadata(text)
    assert fields["license"] == "mit" and "apache" not in text and fields["extra"] == {"nested": [1, 2]}
    theirs, ours = fields["model-index"][0]["results"]
    assert theirs["dataset"] == {"type": "k400", "name": "Kinetics 400"}
    assert theirs["metrics"] == [{"type": "f1", "value": 0.4}]
    assert ours["metrics"] == [{"type": "accuracy", "value": 0.8}, {"type": "recall", "value": 0.7}]
    again = metadata(card(existing=text, datasets=["k400"], metrics={"accuracy": 0.9, "recall": 0.7}))["model-index"]
    assert again[0]["results"] == [
        theirs,
        {**ours, "metrics": [{"type": "accuracy", "value": 0.9}, ours["metrics"][1]]},
    ]
    other = metadata(card(existing=README, datasets=["ssv2"], metrics={"accuracy": 0.6}))["model-index"]
    assert [result["dataset"]["type"] for result in other[0]["results"]] == ["k400", "ssv2"]


@pytest.mark.parametrize("index", ["3", "{}", "[]", "[{name: x}]", "[3]", "[{results: [{task: 1}]}]"])
def test_model_index_that_cannot_be_added_to_is_refused_only_with_metrics(index: str) -> None:
    readme = f"---\nmodel-index: {index}\n---\n"
    assert metadata(card(existing=readme))["model-index"] == yaml.safe_load(index)
    with pytest.raises(ConfigError, match="the README's model-index is not one that results can be added to"):
        card(existing=readme, metrics={"accuracy": 0.5}, datasets=["k400"])


def test_section_is_replaced_where_it_stands() -> None:
    first = card(existing=README.replace("Words.\n", f"Words.\n\n{BEGIN}\nold\n{END}\n\nMore words.\n"))
    assert "old" not in first and first.endswith(f"{END}\n\nMore words.\n")
    second = card(config(num_frames=16), existing=first)
    assert "| frames | 16, 16 apart |" in second and "| frames | 8, 16 apart |" not in second
    assert second.count(BEGIN) == 1


def test_each_subfolder_has_its_section() -> None:
    text = ""
    for folder in (None, "a", "runs/b"):
        text = card(existing=text, subfolder=folder)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for folder in ("a", None, "runs/b"):
        begin, end = section_marks(folder)
        assert text.count(begin) == text.count(end) == 1
        before, after = text.split(begin)[0], text.split(end)[1]
        newer = card(config(num_frames=16), existing=text, subfolder=folder)
        assert newer.startswith(before + begin) and newer.endswith(end + after) and newer != text
        assert newer.count("| frames | 16, 16 apart |") == 1


def test_marks_of_folders_differ_and_are_comments() -> None:
    folders = ["a", "a b", "a%20b", "a--b", "a-%2Db", "----", "-->", "--!>", "é", "a\nb", None]
    marks = [mark for folder in folders for mark in section_marks(folder)]
    assert len(set(marks)) == 2 * len(folders)
    assert all(re.fullmatch(r"<!-- aim-adapters:(begin|end) (?!.*--.*-->)[!-~]* ?-->", mark) for mark in marks)
    assert section_marks("runs/best")[0] == "<!-- aim-adapters:begin runs/best -->"


def test_section_of_another_folder_is_never_part_of_ours() -> None:
    begin, end = section_marks("a")
    existing = f"{BEGIN}\n{begin}\ntheirs\n{end}\n{END}\n"
    assert card(existing=existing).startswith(metadata_block(card()) + existing)


def test_comment_in_code_is_no_title() -> None:
    patched = config(base_model_library="transformers", base_model_arguments={"architecture": "Siglip2Model"})
    text = card(existing=card(patched, subfolder="a"), subfolder="b")
    text = card(patched, existing=text, subfolder="b")
    assert card(patched, existing=text, subfolder="a") == text
    assert "\n# AIM adapters" in card(existing="```sh\n# a comment\n```\n")


# Files


def test_card_of_a_directory_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / CARD_NAME
    write_card(path, CONFIG, parameters=COUNT)
    assert path.read_bytes().decode() == card()
    words = "\r\nWords \u2026\r\n"
    path.write_bytes((card().replace("\n", "\r\n") + words).encode())
    newer = config(num_frames=16, num_classes=9)
    write_card(path, newer, parameters=COUNT)
    assert path.read_bytes().decode() == card(newer).replace("\n", "\r\n") + words


@pytest.mark.parametrize(
    "content", [b"", b"mine\r\n", b"\xff\xfe", BEGIN.encode(), b"\xff" + BEGIN.encode() + END.encode()]
)
def test_readme_without_our_section_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_bytes(content)
    write_card(tmp_path / CARD_NAME, CONFIG, parameters=COUNT)
    assert (tmp_path / CARD_NAME).read_bytes() == content


def test_directory_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).mkdir()
    write_card(tmp_path / CARD_NAME, CONFIG, parameters=COUNT)
    assert not list((tmp_path / CARD_NAME).iterdir())


def test_saving_again_says_what_is_saved_now(tmp_path: Path) -> None:
    for frames, classes in ((4, 5), (8, 9)):
        aim.save_adapters(trained(num_frames=frames, num_classes=classes), tmp_path)
        text = (tmp_path / CARD_NAME).read_text(encoding="utf-8")
        assert f"| frames | {frames} |" in text and f"| classes | {classes} |" in text
        assert text.count(BEGIN) == 1


def test_new_card_keeps_its_title_when_words_are_added() -> None:
    text = card(existing=card() + "\nMore words.\n")
    assert section(text).startswith(f"{BEGIN}\n# AIM adapters for ")


@pytest.mark.parametrize(
    "existing",
    [
        "Words.",
        "Words.\n\n\n",
        f"Words {BEGIN} and no end\n",
        f"Words {END} and no beginning\n",
        f"{END} turned round {BEGIN}\n",
        f"{BEGIN} twice {BEGIN} old {END}\n",
        "---\n---\nWords.\n",
        "---\nnever closed\n",
        "\n\n---\nlicense: mit\n---\nWords.\n",
        "\ufeff---\nlicense: mit\n---\nWords.\n",
        "\ufeffWords.\n",
        "---\nlicense:\n---\nWords.\n",
        "---\n{license: mit, tags: [x]}\n---\nWords.\n",
        "---\ntags: &t\n- x\ndatasets: *t\n---\nWords.\n",
        "---\ntags:\n  - x\n\n  # why\n  - y # because\n\n# next\nlicense: mit\n---\nWords.\n",
        "---\ntags: >\n  folded\n  text\n---\nWords.\n",
        "---\ndate: 2024-01-01\nextra: !!set {x, y}\n---\nWords.\n",
        "---\n  license: mit\n  x: .nan\n---\nWords.\n",
        "---\nlicense: mit\n...\n---\nWords.\n",
        "---\nx: &x\n- *x\n---\nWords.\n",
        "---\n# only a comment\n---\nWords.\n",
        README,
    ],
)
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_nothing_of_the_readers_is_lost(existing: str, line: str) -> None:
    existing = existing.replace("\n", line)
    arguments: dict[str, Any] = {"tags": ["z"], "datasets": ["k400"]}
    text = card(existing=existing, **arguments)
    assert card(existing=text, **arguments) == text
    assert text.count("\ufeff") == existing.count("\ufeff") and text.startswith("\ufeff") == existing.startswith(
        "\ufeff"
    )
    assert ("\r\n" in text) == ("\n" in existing and line == "\r\n")
    assert text.replace("\r\n", "").count("\n") == (0 if "\r\n" in text else text.count("\n"))
    body = existing.removeprefix("\ufeff")
    body = body if "closed" in body else body.rpartition(f"---{line}")[2]
    assert (
        body.replace(BEGIN, "").replace(END, "").strip() in text.replace(BEGIN, "").replace(END, "") or "twice" in body
    )
    assert {"aim", "adapter", "z"} <= set(metadata(text.removeprefix("\ufeff"))["tags"])
    assert all(word in text for word in re.findall(r"\w+", re.sub("#.*", "", existing)) if word != "old")


@pytest.mark.parametrize(
    "block",
    [
        "license: [",
        "a: b: c",
        "- a\n- b",
        "words",
        "0",
        "[]",
        "date: 2024-99-99",
        "x: !!python/none 1",
        "\tx: 1",
        "x: !!bool y",
        "x: !!int ''",
        "x: !!timestamp x",
        "x: " + "[" * 5000,
    ],
)
def test_metadata_that_is_no_mapping_is_left_alone(block: str) -> None:
    existing = f"---\n{block}\n---\nWords.\n"
    with pytest.warns(UserWarning, match="metadata is not a YAML mapping and was left as it is") as caught:
        text = card(existing=existing)
    assert caught[0].filename == __file__
    assert text.startswith(existing) and BEGIN in text
    with pytest.warns(UserWarning, match="left as it is"):
        assert card(existing=text) == text


FIELDS = st.dictionaries(
    st.sampled_from(["tags", "datasets", "license", "library_name", "pipeline_tag", "x", "y z", "1"]) | WORDS,
    st.recursive(
        st.none() | st.booleans() | st.integers() | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
)


@given(fields=FIELDS, body=WORDS, flow=st.booleans(), crlf=st.booleans(), license=st.none() | st.just("mit"))
def test_merging_keeps_everything_and_settles(
    fields: dict[str, Any], body: str, flow: bool, crlf: bool, license: str | None
) -> None:
    front = yaml.safe_dump(fields, allow_unicode=True, default_flow_style=flow)
    existing = f"---\n{front}---\n{body}\n"
    existing = existing.replace("\n", "\r\n") if crlf else existing
    fields = yaml.safe_load(front)
    arguments: dict[str, Any] = {"datasets": ["k400"], "license": license}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = card(existing=existing, **arguments)
        assert card(existing=text, **arguments) == text
    after = metadata(text)
    for key, value in fields.items():
        if key in ("tags", "datasets") and (value is None or isinstance(value, (str, list))):
            value = value if isinstance(value, list) else [] if value is None else [value]
            assert after[key][: len(value)] == value
        elif key == "license" and license is not None:
            assert after[key] == license
        elif value is None and key in ("library_name", "pipeline_tag", "base_model", "base_model_relation"):
            assert after[key]
        else:
            assert after[key] == value
    if isinstance(fields.get("tags", ""), (str, list)):
        assert "aim" in after["tags"] and "adapter" in after["tags"]
    assert (body.replace("\n", "\r\n") if crlf else body) in text
