"""What does building a ViT-L/14 video model from files cost beyond reading them?

``python -m benchmarks.timing.load_video_model`` (Linux). The base model and the adapter (8 frames, 400 classes) lie in
a directory. Each run is a process of its own, which imports everything, then builds the model in one of three ways, and
then reads every byte of it, as pages of a mapped file are read when they are first used:

- ``load_video_model``: this library;
- ``library's way``: ``timm.create_model(pretrained=True)`` and ``load_adapters``;
- ``files alone``: safetensors' ``load_file`` of both files, no model: the least there is to do.

Memory is what the process holds more than before. Bytes that went through ``read`` are counted, and pages of the files
that it mapped; each tensor is read once if both together are the size of the files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import aim_adapters as aim
from benchmarks.harness import ROOT, Timing, report

TARGET = 1.2
NAME = "vit_large_patch14_clip_224"
WAYS = ("load_video_model", "library's way", "files alone")
MIB = 2**20


def prepare(folder: Path) -> int:
    """Write base model and adapter with random values; return the size of both, in bytes."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    model = timm.create_model(NAME)
    save_file(model.state_dict(), base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"architecture": NAME, "pretrained_cfg": model.pretrained_cfg}))
    aim.wrap_image_model(model, num_frames=8, num_classes=400)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):
            parameter.normal_()
    aim.save_adapters(model, adapter)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def build(way: str, folder: Path) -> Iterable[Tensor]:
    """Build the model, or read the files; return every tensor."""
    base, adapter = folder / "base", folder / "adapter"
    if way == "files alone":
        files = (base / "model.safetensors", adapter / "adapter_model.safetensors")
        return [tensor for file in files for tensor in load_file(file).values()]
    if way == "library's way":
        model = timm.create_model(f"local-dir:{base}", pretrained=True)
        aim.load_adapters(model, adapter)
    else:
        model = aim.load_video_model(adapter, base_model=base)
    return [*model.parameters(), *model.buffers()]


def memory() -> dict[str, int]:
    """Return what the process holds and held, and what it has read, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    reads = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    sizes = {name: 1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}
    return {**sizes, "rchar": int(reads["rchar"])}


def measure_once(way: str, folder: Path) -> None:
    """Build in one way and print what it took; this is what each process runs."""
    before = memory()
    start = time.perf_counter()
    tensors = build(way, folder)
    built = time.perf_counter()
    with torch.no_grad():
        for tensor in tensors:
            tensor.sum()
    done = time.perf_counter()
    after = memory()
    took = {
        "build": built - start,
        "seconds": done - start,
        "peak": after["VmHWM"] - before["VmRSS"],
        "copied": after["RssAnon"] - before["RssAnon"],
        "mapped": after["RssFile"] - before["RssFile"],
        "read": after["rchar"] - before["rchar"],
    }
    print(json.dumps(took))


def measure(way: str, folder: Path) -> dict[str, Any]:
    """Run `measure_once` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.timing.load_video_model", "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    took: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return took


def main() -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure_once(arguments.way, arguments.folder)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        size = prepare(Path(folder))
        # In turn, so that drift of the machine meets all alike; the first round warms the file cache.
        runs = [{way: measure(way, Path(folder)) for way in WAYS} for _ in range(arguments.repeats + 1)][1:]
    print(f"  {size / MIB:.0f} MiB of files")
    mib = {
        way: {
            what: round(statistics.median(run[way][what] for run in runs) / MIB)
            for what in runs[0][way]
            if what not in ("build", "seconds")
        }
        for way in WAYS
    }
    for way, took in mib.items():
        print(f"  {way:<20}" + ", ".join(f"{what} {value} MiB" for what, value in took.items()))
    seconds = {f"{way}, {what}": [run[way][what] for run in runs] for way in WAYS for what in ("build", "seconds")}
    return report(
        "load_video_model",
        f"peak memory of load_video_model of {NAME} from a local base, as a multiple of that of its files alone",
        ratio=mib["load_video_model"]["peak"] / mib["files alone"]["peak"],
        target=TARGET,
        details={name: Timing.of(times) for name, times in seconds.items()},
        also={"mib": {"files": round(size / MIB), **mib}},
    )


if __name__ == "__main__":
    sys.exit(main())
