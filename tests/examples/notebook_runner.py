"""Runs notebooks' sources on tiny data: ``python -m tests.examples.notebook_runner FOLDER SOURCE ...``.

All in one process, against a Hub of its own; prints what each notebook said as JSON. Warnings are errors.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import jupytext

# What takes the place of the settings: four photographs' worth of noise, a small random model, a few steps, no network.
PHOTOGRAPHS = """
from pathlib import Path
import timm
cache = out = Path({folder!r})
num_frames, size = 4, 32
train_clips, test_clips = 12, 12
epochs, batch_size = 1, 4
workers = 0

def load_backbone():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=size, depth=2, num_classes=0)
"""
TINY = {
    "quickstart": PHOTOGRAPHS + "photos = Path({photos!r})\nlr = 1e-3\ndevice = 'cpu'\n",
    "own_videos": PHOTOGRAPHS + "photographs = sorted(Path({photos!r}).glob('*.png'))\n",
    "many_tasks": "image_epochs, video_epochs, num_clips = 2, 1, 100\n",
    "look_inside": """
import timm
import torch
from motion_videos import make_videos
out = Path({folder!r})
videos = make_videos(sorted(Path({photos!r}).glob("*.png")), out / "videos", clips=6, progress=False)

def load_model():
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    return aim.wrap_image_model(small, num_frames=4, labels=("fade in", "fade out")).eval()
""",
    "own_backbone": "image_epochs, video_epochs, num_clips = 2, 1, 100\n",
    "zero_shot_clip": "num_frames, train_clips, test_clips = 4, 8, 8\nepochs, batch_size = 1, 4\nwhy = 'not asked'\n",
}


def write_photographs(folder: Path) -> None:
    """Write pictures with something to see at every scale."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{index}.png")


def run(source: Path, folder: Path, photos: Path) -> str:
    """Run the cells of one notebook, and return what it said, with the traceback of what it raised."""
    space = {"__name__": "__main__"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            for number, cell in enumerate(jupytext.read(source).cells):
                if cell.cell_type != "code":
                    continue
                code = cell.source
                if "parameters" in cell.metadata.get("tags", ()):
                    code = TINY[source.stem].format(folder=str(folder), photos=str(photos))
                exec(compile(code, f"{source.name}[{number}]", "exec"), space)
        except Exception:  # of any kind: a notebook may do anything
            said.write(traceback.format_exc())
    return said.getvalue()


def main(root: Path, sources: list[Path]) -> None:
    """Run all of them."""
    sys.path.insert(0, str(sources[0].parents[1]))  # the examples' own modules
    from local_hub import start_hub

    start_hub()
    import matplotlib
    import torch
    from matplotlib import pyplot

    matplotlib.use("agg")
    pyplot.show = pyplot.close  # as a notebook shows a figure, and forgets it
    torch.set_num_threads(1)
    write_photographs(root / "photographs")
    said = {}
    for source in sources:
        os.chdir(source.parent)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "the image model looks untrained")
            said[source.stem] = run(source, root / source.stem, root / "photographs")
        print(f"{source.stem}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
