"""Check the built wheel: what is in it, and that it works where nothing else is.

Usage: ``python scripts/check_wheel.py dist``

An environment is made that holds the wheel and the distributions it declares it needs, with what they need in turn,
and no others. They are linked from the environment that runs this script, so nothing is downloaded twice. A module
that the package imports without declaring it is therefore missing there, as it would be for a user. In another, with
the extra that `make quickstart` installs, the quickstart runs on videos of noise.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "aim_adapters"
SUFFIXES = (".py", ".html", ".css", ".js")
LARGEST = 10**6

USE = """
import pathlib, sys, tempfile
import aim_adapters as aim

assert pathlib.Path(aim.__file__).is_relative_to(sys.prefix), f"imported from {aim.__file__}, not from the wheel"
assert aim.__version__ == sys.argv[1], f"__version__ is {aim.__version__}, the wheel's is {sys.argv[1]}"
missing = [name for name in aim.__all__ if not hasattr(aim, name)]
assert not missing, f"in __all__ but not there: {missing}"
loaded = {"open_clip", "timm", "transformers"} & set(sys.modules)
assert not loaded, f"importing aim_adapters imported {loaded}"

import timm, torch

def tiny():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)

video = torch.randn(2, 4, 3, 32, 32)
model = aim.wrap_image_model(tiny(), num_frames=4, num_classes=3).eval()
with torch.no_grad():
    for parameter in aim.trainable_parameters(model):
        parameter.add_(0.01)
with tempfile.TemporaryDirectory() as folder:
    aim.save_adapters(model, folder)
    again = tiny().eval()
    aim.load_adapters(again, folder)
assert torch.equal(model(video), again.eval()(video))
"""

QUICKSTART = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import numpy as np, quickstart, timm, torch
from PIL import Image

def tiny(size):
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=size, patch_size=14, embed_dim=32, depth=2, num_heads=2, init_values=1.0, num_classes=0
    )
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return model.eval()

photographs = [Path(f"{seed}.png") for seed in range(4)]
for seed, path in enumerate(photographs):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(path)
argv = "--epochs 1 --clips 12 --test-clips 12 --size 28 --frames 4 --cache cache --out out"
quickstart.main(argv.split(), photographs=photographs, load_backbone=tiny)
"""


def source_version() -> str:
    """Read ``__version__`` from the source without importing it."""
    tree = ast.parse((PACKAGE / "version.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__version__" for t in node.targets
        ):
            return str(ast.literal_eval(node.value))
    raise SystemExit("src/aim_adapters/version.py has no `__version__ = ...`")


def check_contents(wheel: Path, version: str) -> None:
    """Compare the wheel's files with the source tree, and its metadata with the version."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"aim_adapters/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES
    }
    expected.add("aim_adapters/py.typed")
    info = f"aim_adapters-{version}.dist-info/"
    expected |= {info + name for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    if missing := sorted(expected - names):
        raise SystemExit(f"{wheel.name} lacks {missing}")
    if strangers := sorted(names - expected - {info + "entry_points.txt"}):
        raise SystemExit(f"{wheel.name} holds files that are not the package's: {strangers}")


def check_source(sdist: Path) -> None:
    """Refuse a source distribution with tests or pictures in it."""
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    pictures = (".png", ".webp", ".svg", ".ipynb", ".gif", ".jpg")
    if strangers := [name for name in names if name.startswith(("tests", "docs")) or name.endswith(pictures)]:
        raise SystemExit(f"{sdist.name} holds what building and reading the package does not need: {strangers}")


def needed(name: str, *extras: str) -> set[str]:
    """Return the installed distributions that ``name`` needs, directly or not, without ``name`` itself."""
    found: set[str] = set()
    todo = [(name, frozenset(extras))]
    seen = set(todo)
    while todo:
        current, extras = todo.pop()
        for text in metadata.requires(current) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            dependency = canonicalize_name(requirement.name)
            installed = metadata.version(dependency)
            if not requirement.specifier.contains(installed, prereleases=True):
                raise SystemExit(f"{current} needs {requirement}, but {installed} is installed")
            found.add(dependency)
            entry = (dependency, frozenset(requirement.extras))
            if entry not in seen:
                seen.add(entry)
                todo.append(entry)
    return found - {canonicalize_name(name)}


def link(distribution: str, site_packages: Path) -> None:
    """Link the top-level files and folders of an installed distribution into ``site_packages``."""
    for file in metadata.distribution(distribution).files or ():
        top = file.parts[0]
        if top in ("..", "__pycache__"):  # scripts and the byte code of single-file modules
            continue
        target = site_packages / top
        if not target.exists():
            target.symlink_to(Path(str(metadata.distribution(distribution).locate_file(top))).resolve())


def check_use(wheel: Path, code: str, *argv: str | Path, extras: tuple[str, ...] = ()) -> None:
    """Install the wheel beside its declared dependencies only, those of extras included, and run code there."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder).resolve() / "environment"
        venv.create(environment, with_pip=False, symlinks=True)
        python = environment / "bin" / "python"
        query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site_packages = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
        distributions = sorted(needed("aim-adapters", *extras))
        for distribution in distributions:
            link(distribution, site_packages)
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
        subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
        found = subprocess.run(
            [python, "-I", "-c", code, *argv], check=False, cwd=folder, capture_output=True, text=True
        )
        if found.returncode:
            print(found.stdout, found.stderr, file=sys.stderr)
            raise SystemExit(f"{wheel.name} does not work beside its declared dependencies alone; the error is above")
    words = f" with {', '.join(extras)}" if extras else ""
    print(f"{wheel.name}{words}: installs and works beside its {len(distributions)} declared dependencies alone")


def main() -> None:
    """Check the one wheel in the folder named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    wheels = sorted(Path(sys.argv[1]).resolve().glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"expected one wheel in {sys.argv[1]}, found {[wheel.name for wheel in wheels]}")
    version = source_version()
    (sdist,) = Path(sys.argv[1]).resolve().glob("*.tar.gz")
    check_source(sdist)
    for file in (wheels[0], sdist):
        if file.stat().st_size > LARGEST:
            raise SystemExit(f"{file.name} has {file.stat().st_size:,} bytes, expected at most {LARGEST:,}")
    check_contents(wheels[0], version)
    check_use(wheels[0], USE, version)
    check_use(wheels[0], QUICKSTART, ROOT / "examples", extras=("examples",))


if __name__ == "__main__":
    main()
