from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

import photographs
from photographs import PhotographsError, find_photographs


def save(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def test_own_photographs_are_copied_small_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    for name in ("b.png", "a.jpg", "trip/a.jpg"):
        save(own / name)
    save(own / "large.png", (3000, 1000))
    (own / "broken.jpg").write_bytes(b"no picture")
    (own / "notes.txt").write_text("no picture")
    found = find_photographs(tmp_path / "cache", photos=own)
    assert [path.stem for path in found] == ["a", "b", "large", "trip-a"]
    with Image.open(found[2]) as image:
        assert image.size == (2048, 683)
    assert "Skipped" in (printed := capsys.readouterr().out)
    assert f"Photographs: 4 from your folder {own}" in printed
    assert find_photographs(tmp_path / "cache", photos=own) == found
    assert "Skipped" not in capsys.readouterr().out
    save(own / "new.png")
    assert len(find_photographs(tmp_path / "cache", photos=own)) == 5


def test_too_few_photographs_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    save(tmp_path / "own" / "only.png")
    with pytest.raises(PhotographsError, match=r"1 photographs in .*at least 4 needed.*--photos"):
        find_photographs(tmp_path / "cache", photos=tmp_path / "own")


def test_without_apt_installed_packages_give_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(photographs.shutil, "which", lambda name: None)
    found = find_photographs(tmp_path)
    assert {"astronaut", "china", "coffee"} <= {path.stem for path in found}
    assert "from the packages scikit-image and scikit-learn" in capsys.readouterr().out


def test_debian_packages_are_fetched_privately_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], *, cwd: Path | None = None, **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if command[0] == "apt-get" and "download" in command:
            if command[-1] == "plasma-workspace-wallpapers":
                return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")
            assert cwd is not None
            (cwd / f"{command[-1]}_1.deb").touch()
        elif command[0] == "dpkg-deb" and command[-1].endswith("mate-backgrounds"):
            for name in ("Aqua", "Dune", "Garden", "Storm", "Waves"):
                save(Path(command[-1]) / "usr" / f"{name}.jpg")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(photographs.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(photographs.subprocess, "run", run)
    found = find_photographs(tmp_path)
    assert [path.stem for path in found] == ["Aqua", "Dune", "Garden", "Storm"]  # Waves is a drawing
    for command in calls:
        if command[0] == "apt-get":
            assert any(option.startswith("Dir::State::Lists=") for option in command)
            assert any(option.startswith("Dir::Cache=") for option in command)
            assert "install" not in command
    assert "plasma-workspace-wallpapers could not be fetched: E: Unable to locate package" in capsys.readouterr().out
    calls.clear()
    assert find_photographs(tmp_path) == found
    assert not calls


def test_of_one_photograph_the_largest_version_counts(tmp_path: Path) -> None:
    small = save(tmp_path / "Kite" / "contents" / "images" / "440x247.jpg", (44, 25))
    large = save(tmp_path / "Kite" / "contents" / "images" / "2560x1600.jpg", (256, 160))
    shot = save(tmp_path / "Kite" / "contents" / "screenshot.jpg", (512, 320))
    other = save(tmp_path / "Cluster" / "contents" / "images" / "3840x2160.jpg")
    assert photographs._named([small, large, shot, other], ("Kite",)) == {"Kite": large}
