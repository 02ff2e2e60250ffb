"""Finds real photographs on this machine or in packages anybody may fetch, and keeps small working copies of them.

The sources, in this order:

1. a folder of your own;
2. Debian's and Ubuntu's wallpaper packages, fetched and unpacked without root: ``lomiri-wallpapers`` (CC BY 4.0,
   CC BY-SA 3.0 and 4.0, CC0), ``mate-backgrounds`` (GPL-2+) and ``plasma-workspace-wallpapers`` (GPL-2+). Only the
   photographs named below are taken: the other wallpapers are drawings and renders;
3. what scikit-image (mostly public domain or CC0, see its ``data/README.txt``) and scikit-learn (CC BY) ship.

Nothing of them is stored outside the cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["PhotographsError", "fetch_packages", "find_photographs"]

LONG_SIDE = 2048
FEWEST = 4
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}

DEBIAN_PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": (
        "Bridge_by_Sander_Klootwijk",
        "Dragonfly_by_Bolly",
        "Picture_0B_by_freespace",
        "Picture_1A_by_freespace",
        "Wine_by_Jakkub_Mede",
        "aitzgorri_by_Aitzol_Berasategi",
        "free_by_Peter_Nerlich",
        "friends_by_Aitzol_Berasategi",
        "greentock_by_Peter_Nerlich",
        "life_by_Aitzol_Berasategi",
        "picosdeeuropa_by_Aitzol_Berasategi",
        "seeding_by_Clements_Engelhardt",
        "sunset_by_Aitzol_Berasategi",
    ),
    "lomiri-wallpapers-20.04": ("Kleiber_by_Lukas_Baubkus",),
    "mate-backgrounds": (
        "Aqua",
        "Blinds",
        "Dune",
        "FreshFlower",
        "Garden",
        "GreenMeadow",
        "LadyBird",
        "RainDrops",
        "Storm",
        "TwoWings",
        "Wood",
        "YellowFlower",
    ),
    "plasma-workspace-wallpapers": (
        "BytheWater",
        "ColdRipple",
        "ColorfulCups",
        "EveningGlow",
        "FallenLeaf",
        "Grey",
        "Kite",
        "OneStandsOut",
        "Path",
        "Volna",
        "summer_1am",
    ),
}
PYPI_PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}


class PhotographsError(RuntimeError):
    """Tells that no source gave enough photographs, and what was tried."""


def find_photographs(cache: Path, *, photos: Path | None = None) -> list[Path]:
    """Find photographs, keep working copies of at most 2048 pixels in the cache, and print where they come from.

    Args:
        cache: folder for working copies, made when missing; a second call starts from it.
        photos: folder searched, with its subfolders, instead of the public sources.

    Returns:
        Paths of JPEG files, sorted by name.

    Raises:
        PhotographsError: fewer than four photographs were found.
    """
    if photos is not None:
        files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES)
        originals = {"-".join(path.relative_to(photos).with_suffix("").parts): path for path in files}
        state = "".join(f"{path.resolve()} {path.stat().st_mtime_ns}\n" for path in files)
        folder = cache / "photographs" / f"own-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
        return _report(_kept(folder) or _keep(originals, folder), f"your folder {photos}")

    debian, pypi = cache / "photographs" / "debian", cache / "photographs" / "pypi"
    found, packages = _kept(debian), ", ".join(DEBIAN_PHOTOGRAPHS)
    if len(found) < FEWEST and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        print(f"Fetching photographs: {packages} (about 170 MB, once) ...")
        with tempfile.TemporaryDirectory() as work:
            found = _keep(_from_debian(Path(work)), debian)
    if len(found) >= FEWEST:
        return _report(found, f"Debian's wallpaper packages {packages}")
    return _report(_kept(pypi) or _keep(_from_pypi(), pypi), "the packages scikit-image and scikit-learn")


def _report(found: list[Path], source: str) -> list[Path]:
    if len(found) < FEWEST:
        raise PhotographsError(
            f"{len(found)} photographs in {source}, at least {FEWEST} needed. "
            "Name a folder of your own with --photos, or install scikit-image and scikit-learn."
        )
    print(f"Photographs: {len(found)} from {source}.")
    return found


def _kept(folder: Path) -> list[Path]:
    """List an earlier call's working copies, none when that call did not finish."""
    return sorted(folder.glob("*.jpg")) if folder.is_dir() else []


def _keep(originals: dict[str, Path], folder: Path) -> list[Path]:
    """Write downscaled copies into a folder that appears only once it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name) / "work"
        work.mkdir()
        for stem, path in originals.items():
            try:
                with Image.open(path) as opened:
                    opened.draft("RGB", (LONG_SIDE, LONG_SIDE))
                    image = ImageOps.exif_transpose(opened).convert("RGB")
            except (UnidentifiedImageError, OSError) as error:
                print(f"Skipped {path}: {error}")
                continue
            image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
            image.save(work / f"{stem}.jpg", quality=92)
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    return _kept(folder)


def fetch_packages(packages: Iterable[str], work: Path) -> dict[str, Path]:
    """Fetch and unpack Debian packages with private state folders, so that no root and no installation is needed.

    Returns:
        A folder for each package that could be fetched; of the others, standard output says why not.
    """
    lists, archives = work / "lists", work / "cache"
    (lists / "partial").mkdir(parents=True)
    (archives / "archives" / "partial").mkdir(parents=True)
    private = ["-q", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}", "-o", "APT::Sandbox::User="]
    # A third-party source that fails makes `update` fail as a whole: whether the packages come is what counts.
    subprocess.run(["apt-get", *private, "update"], capture_output=True, check=False)
    folders: dict[str, Path] = {}
    for package in packages:
        command = ["apt-get", *private, "download", package]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        archive = next(work.glob(f"{package}_*.deb"), None)
        if done.returncode or archive is None:
            print(f"  {package} could not be fetched: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
            continue
        folders[package] = work / package
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folders[package])], check=True)
    return folders


def _from_debian(work: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package, folder in fetch_packages(DEBIAN_PHOTOGRAPHS, work).items():
        found |= _named(folder.rglob("*"), DEBIAN_PHOTOGRAPHS[package])
    return found


def _named(files: Iterable[Path], names: tuple[str, ...]) -> dict[str, Path]:
    """Take of each named photograph its largest file; KDE keeps `NAME/contents/images/WIDTHxHEIGHT.jpg`."""
    best: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() not in SUFFIXES or path.is_symlink() or path.stem == "screenshot":
            continue
        name = next((name for name in names if name == path.stem or name in path.parts), None)
        if name and (name not in best or path.stat().st_size > best[name].stat().st_size):
            best[name] = path
    return best


def _from_pypi() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package, files in PYPI_PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            found |= {Path(file).stem: folder / file for file in files if (folder / file).is_file()}
    return found
