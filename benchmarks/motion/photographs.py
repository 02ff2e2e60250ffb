"""The photographs of the benchmark: a manifest, fetching with a check of hashes, one bundle file, and pyramids.

``photographs.json`` names files of Debian packages and of the Python packages scikit-image and scikit-learn, with
their hashes and licenses. Usage, to write them into one file, no root needed::

    python -m benchmarks.motion.photographs --out FILE
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness import ROOT

__all__ = ["Entry", "Photographs", "PhotographsError", "build_photographs", "fetch", "load_photographs", "manifest"]

MANIFEST = Path(__file__).with_name("photographs.json")
PYTHON_PACKAGES = ("skimage", "sklearn")
SHORT_SIDE, QUALITY = 1000, 90
LEVELS = 6


class PhotographsError(RuntimeError):
    """Tells that photographs are missing, or other than the manifest says."""


class _Required(TypedDict):
    name: str
    package: str
    version: str
    file: str
    sha256: str
    license: str
    split: str


class Entry(_Required, total=False):
    """A photograph of the manifest; ``version`` is the package's from which it was taken, others may do."""

    author: str
    appearance: bool  # whether it is a class of the variant "appearance"


class Photographs(NamedTuple):
    """Photographs as pyramids: each level halves the one before by means of two by two pixels."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[int, ...]  # photographs that are classes of the variant "appearance"
    sizes: NDArray[np.int64]  # [P, 2]: height, width
    table: NDArray[np.int64]  # [P, levels, 3]: height, width, where in texels the level starts
    texels: Tensor  # int32 [all texels of all levels]: red + 256 green + 65536 blue

    @property
    def levels(self) -> int:
        """Number of levels of each pyramid."""
        return self.table.shape[1]

    def of_split(self, split: str) -> tuple[int, ...]:
        """Return the photographs of a split."""
        return tuple(index for index, own in enumerate(self.splits) if own == split)


def manifest() -> list[Entry]:
    """Read the manifest."""
    entries: list[Entry] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return entries


def fetch(work: Path) -> dict[str, Path]:
    """Fetch the packages of the manifest into a folder, and find its files by name.

    Raises:
        PhotographsError: A package cannot be had, or a file is missing or another.
    """
    sys.path.insert(0, str(ROOT / "examples"))
    from photographs import fetch_packages

    entries = manifest()
    debian = sorted({entry["package"] for entry in entries} - set(PYTHON_PACKAGES))
    folders = fetch_packages(debian, work)
    for package in PYTHON_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders[package] = Path(spec.origin).parent
    found, wrong = {}, []
    for entry in entries:
        folder = folders.get(entry["package"])
        path = folder / entry["file"] if folder else None
        if path is None or not path.is_file():
            wrong.append(f"{entry['name']}: no file {entry['file']} in the package {entry['package']}")
        elif (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != entry["sha256"]:
            wrong.append(f"{entry['name']}: sha256 {digest}, expected {entry['sha256']}")
        else:
            found[entry["name"]] = path
    if wrong:
        lines = "\n  ".join(wrong)
        raise PhotographsError(
            f"{len(wrong)} of {len(entries)} photographs could not be had as the manifest names them "
            f"(from Debian 12 and python -m pip install scikit-image==0.26.0 scikit-learn==1.9.1):\n  {lines}"
        )
    return found


def write_bundle(paths: Mapping[str, Path], out: Path) -> None:
    """Write the photographs of the manifest into one file, as JPEG with a short side of at most 1,000 pixels."""
    tensors = {}
    for name, path in paths.items():
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        factor = SHORT_SIDE / min(image.size)
        if factor < 1:
            width, height = (round(side * factor) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        tensors[name] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    save_file(tensors, out, metadata={"benchmark": "motion"})


def load_photographs(path: Path | str, device: torch.device | str = "cpu") -> Photographs:
    """Read what ``python -m benchmarks.motion.photographs --out FILE`` wrote.

    Raises:
        PhotographsError: There is no such file, or it holds other photographs than the manifest.
    """
    how = "write one by python -m benchmarks.motion.photographs --out FILE"
    try:
        with safe_open(path, "pt") as file:
            encoded = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise PhotographsError(f"{path} cannot be read as a bundle of photographs ({error}); {how}") from error
    entries = manifest()
    if missing := {entry["name"] for entry in entries} - set(encoded):
        raise PhotographsError(f"{path} lacks {', '.join(sorted(missing))}; {how}")
    images = {}
    for entry in entries:
        with Image.open(io.BytesIO(encoded[entry["name"]].numpy().tobytes())) as image:
            images[entry["name"]] = torch.from_numpy(np.array(image.convert("RGB")))
    splits = {entry["name"]: entry["split"] for entry in entries}
    return build_photographs(images, splits, [e["name"] for e in entries if e.get("appearance")], device=device)


def build_photographs(
    images: Mapping[str, Tensor], splits: Mapping[str, str], classes: list[str], *, device: torch.device | str = "cpu"
) -> Photographs:
    """Build the pyramids of photographs.

    Args:
        images: uint8 [H, W, 3] by name, RGB, both sides at least 64.
        splits: "train" or "test" by name.
        classes: names of those that are classes of the variant "appearance".
        device: where the pyramids lie.
    """
    names = tuple(images)
    table = np.zeros((len(names), LEVELS, 3), np.int64)
    texels, end = [], 0
    for index, image in enumerate(images.values()):
        level = image.to(device, torch.int32)
        for number in range(LEVELS):
            if number:
                height, width = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
                even = level[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
                level = even.sum((1, 3), dtype=torch.int32) + 2 >> 2
            table[index, number] = (*level.shape[:2], end)
            texels.append((level[..., 0] + (level[..., 1] << 8) + (level[..., 2] << 16)).reshape(-1))
            end += texels[-1].numel()
    order = tuple(names.index(name) for name in classes)
    return Photographs(names, tuple(splits[name] for name in names), order, table[:, 0, :2], table, torch.cat(texels))


def main(arguments: list[str] | None = None) -> None:
    """Fetch the photographs and write the bundle."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.motion.photographs", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    out: Path = parser.parse_args(arguments).out
    with tempfile.TemporaryDirectory() as work:
        paths = fetch(Path(work))
        write_bundle(paths, out)
    print(f"{len(paths)} photographs, {out.stat().st_size / 2**20:.1f} MiB: {out}")


if __name__ == "__main__":
    main()
