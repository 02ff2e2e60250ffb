"""`VideoList`: lists as people write them, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aim_adapters.errors import ConfigError
from aim_adapters.video import VideoList
from tests.video.datasets.cases import fake


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fake(tmp_path, "a.mp4", "my b.mp4", "sub/c,d.webm", "e.mp4")


def listed(root: Path, text: str | bytes, **settings: Any) -> list[tuple[str, str]]:
    file = root / "list.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    dataset = VideoList(file, 8, **settings)
    return [(sample.name, dataset.labels[sample.label]) for sample in dataset.samples]


EXPECTED = [("a.mp4", "zoom in"), ("my b.mp4", "out"), ("sub/c,d.webm", "out")]


@pytest.mark.parametrize(
    "text",
    [
        'a.mp4,zoom in\nmy b.mp4,out\n"sub/c,d.webm",out\n',
        "a.mp4\tzoom in\nmy b.mp4\tout\nsub/c,d.webm\tout",
        "a.mp4 zoom in\nmy b.mp4 out\nsub/c,d.webm out\n",
        '"a.mp4" "zoom in"\n"my b.mp4"  out\nsub/c,d.webm out\n',
        '\ufeffpath,label\r\na.mp4,zoom in\r\n\r\nmy b.mp4 , out\r\n"sub/c,d.webm","out"\r\n',
        "id;Label;Video\n1;zoom in;a.mp4\n2;out;my b.mp4\n3;out;sub/c,d.webm\n",
    ],
    ids=["comma", "tab", "space", "quoted", "header, BOM and CRLF", "columns"],
)
def test_lists_as_people_write_them(root: Path, text: str) -> None:
    assert listed(root, text) == EXPECTED


def test_columns_of_other_names(root: Path) -> None:
    text = "who,where,what\nme,a.mp4,zoom in\n"
    assert listed(root, text, columns=("where", "what")) == EXPECTED[:1]
    with pytest.raises(ConfigError, match=r"line 1: no column of labels among 'who', 'where', 'what'.*columns="):
        listed(root, text, columns=("where", "wat"))
    for header in ("foo,bar", "path,bar", "foo,label"):
        with pytest.raises(ConfigError, match="line 1: no column of"):
            listed(root, f"{header}\na.mp4,in\n")


def test_integers_are_indices(root: Path) -> None:
    assert listed(root, "a.mp4 1\ne.mp4 0\n") == [("a.mp4", "1"), ("e.mp4", "0")]
    assert listed(root, "a.mp4 1\ne.mp4 0\n", labels=["in", "out"]) == [("a.mp4", "out"), ("e.mp4", "in")]
    # Names of classes that are integers are names.
    assert listed(root, "a.mp4 1\ne.mp4 0\n", labels=["1", "0"]) == [("a.mp4", "1"), ("e.mp4", "0")]
    with pytest.raises(ConfigError, match="2 integers from 1 to 2, not 0 to 1"):
        listed(root, "a.mp4 1\ne.mp4 2\n")
    with pytest.raises(ConfigError, match=r"list\.csv', line 2: label '2', but the 2 classes are 0 to 1"):
        listed(root, "a.mp4 1\ne.mp4 2\n", labels=["in", "out"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "a header and no video"),
        ("a.mp4\nmy b.mp4\n", "expected a path and a label in each line.*comma is not in line 1"),
        ("a.mp4,in\nmy b.mp4,in,3\n", "line 2: 3 fields"),
        ("a.mp4,in\n\nmy b.mp4,\n", "line 3: no label"),
        ("a.mp4,in\n,in\n", "line 2: no path"),
        ("a.mp4,in\ne.mp4,out\n./a.mp4,out\n", "line 3: './a.mp4' has label 'out', and 'in' in line 1"),
        ("x.mp4,in\ny.mp4,out\n", "none of its 2 videos exists below .*'x.mp4'.*root="),
        ("a.mp4,in\ne.mp4,In\n", "two classes with one name"),
        ("a.mp4 250 0\ne.mp4 250 1\n", "line 1: 3 fields, expected a path and a label"),
        ("in,a.mp4\nout,e.mp4\n", "line 1: expected a path and then a label, got 'in' and 'a.mp4'; put a header"),
        (b"a.mp4,caf\xe9\n", "is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(root: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(root, text)


def test_label_that_is_not_in_the_map(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 2: label 'zoom im' is not among the 2 labels; near it: 'zoom in'"):
        listed(root, "a.mp4,out\ne.mp4,zoom im\n", labels=["out", "zoom in"])


def test_missing_and_repeated_videos_are_listed(root: Path) -> None:
    (root / "list.csv").write_text("a.mp4,in\nsub/gone.mp4,out\ngone.mp4,in\na.mp4,in\ne.mp4,in\n")
    with pytest.warns(UserWarning, match=r"2 of 4 videos are missing.*sub/gone\.mp4") as caught:
        dataset = VideoList(root / "list.csv", 8)
    assert caught[0].filename == __file__
    # Of the class whose only video is missing, the name is known.
    assert dataset.labels == ("in", "out") and [sample.name for sample in dataset.samples] == ["a.mp4", "e.mp4"]
    assert [tuple(record) for record in dataset.skipped] == [
        ("a.mp4", "line 4 repeats line 1", False),
        ("sub/gone.mp4", "no such file", True),
        ("gone.mp4", "no such file", True),
    ]


def test_paths_are_relative_to_root_or_absolute(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("lists") / "list.csv"
    file.write_text(f"a.mp4,in\n{root / 'e.mp4'},in\n")
    sources = [Path(sample.source) for sample in VideoList(file, 8, root=root).samples]
    assert sources == [root / "a.mp4", root / "e.mp4"]


@pytest.mark.parametrize("wrong", [{"delimiter": "|"}, {"columns": ("a",)}, {"columns": "ab"}, {"labels": 3}])
def test_wrong_settings_are_refused(root: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        listed(root, "a.mp4,in\n", **wrong)
    with pytest.raises(ConfigError, match=r"absent\.csv' cannot be read"):
        VideoList(root / "absent.csv", 8)
