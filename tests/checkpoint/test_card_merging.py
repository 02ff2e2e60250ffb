"""A card is put into a README that exists: every word of it stays, and what is ours is brought up to date."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import aim_adapters as aim
from aim_adapters.checkpoint.card import directory_card, make_card, section_marks
from aim_adapters.errors import ConfigError
from aim_adapters.storage.files import CARD_NAME
from tests.checkpoint.card_cases import (
    BEGIN,
    CONFIG,
    COUNT,
    END,
    WORDS,
    card,
    config,
    metadata,
    metadata_block,
    section,
)
from tests.tiny import trained

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
    assert directory_card(path, CONFIG, parameters=COUNT) == card()
    words = "\r\nWords \u2026\r\n"
    path.write_bytes((card().replace("\n", "\r\n") + words).encode())
    newer = config(num_frames=16, num_classes=9)
    assert directory_card(path, newer, parameters=COUNT) == card(newer).replace("\n", "\r\n") + words


@pytest.mark.parametrize(
    "content", [b"", b"mine\r\n", b"\xff\xfe", BEGIN.encode(), b"\xff" + BEGIN.encode() + END.encode()]
)
def test_readme_without_our_section_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_bytes(content)
    assert directory_card(tmp_path / CARD_NAME, CONFIG, parameters=COUNT) is None


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
        "---\ntags:\n  - x\n\n  # why\n  - y # because\n\n# next\nlicense: mit\n---\nWords.\n",
        "---\ntags: >\n  folded\n  text\n---\nWords.\n",
        "---\ndate: 2024-01-01\nextra: !!set {x, y}\n---\nWords.\n",
        "---\n  license: mit\n  x: .nan\n---\nWords.\n",
        "---\nlicense: mit\n...\n---\nWords.\n",
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
    with pytest.warns(UserWarning, match="metadata is not a plain YAML mapping and was left as it is") as caught:
        text = make_card(CONFIG, parameters=COUNT, existing=existing)
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
