from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.cases import CLASSES, run


def test_explain_writes_one_page(videos: Path, trained: Path, tmp_path: Path) -> None:
    file, out = videos / "zoom in" / "0.mp4", tmp_path / "new" / "report.html"
    result = run(
        "explain", file, "--adapters", trained, "-o", out, "--target", "zoom out", "--blocks", "-1,0", "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["target"] == "zoom out" and document["report"] == str(out)
    assert list(document["predictions"]) == ["Frozen", "+ spatial", "+ temporal", "AIM"]
    assert {answer["label"] for answer in document["predictions"]["AIM"]} == set(CLASSES)
    assert "Only blocks 0, 11 of 12 were asked for" in out.read_text(encoding="utf-8")
    result = run("explain", file, "--adapters", trained, "-o", out, "--target", 0, "--no-variants", "--no-checks")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Explanation of 0.mp4 for 'zoom in'\nAIM: ")
    assert result.stdout.endswith(f"The report is in {out}\n")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere.mp4",), 1, "there is no file 'nowhere.mp4'"),
        (("{videos}",), 1, "one video, got a folder of 4"),
        (("{trained}/adapter_config.json",), 1, "adapter_config.json"),
        (("{file}", "--target", "jump"), 1, "--target must be one of the model's classes, 'zoom in', 'zoom out'"),
        (("{file}", "--target", "2"), 1, "--target must be the index of one of 2 classes"),
        (("{file}", "--blocks", "12"), 1, "0 to 11"),
        (("{file}", "--blocks", "last"), 2, "0,6,-1"),
        (("{file}", "--adapters", "{videos}"), 1, "holds no adapter_model.safetensors"),
        (("{file}", "--out", "{videos}"), 1, "is a folder"),
        (("{file}", "--out", "{file}/below.html"), 1, "0.mp4"),
        (("{file}", "--top", "0"), 2, "--top"),
    ],
)
def test_wrong_use_is_said_and_writes_nothing(
    videos: Path, trained: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    names = {"videos": videos, "trained": trained, "file": videos / "zoom in" / "0.mp4"}
    # The last of two is what counts.
    given = ("--adapters", trained, "--out", tmp_path / "report.html", *(part.format(**names) for part in arguments))
    result = run("explain", *given, "--no-variants", "--no-checks")
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
