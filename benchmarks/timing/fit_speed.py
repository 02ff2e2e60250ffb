"""How fast does `aim.fit` train, on one GPU and on several, and does it train the same?

``python -m benchmarks.timing.fit_speed`` starts ``torchrun`` with one process and with all GPUs, under
DistributedDataParallel and FSDP2, and compares clips a second (the goal is 95 % of linear) and the losses of the same
total batch. Clips are random and on the device (``dummy_data=True``), so decoding is not part of it. With ``--videos``
one process also trains on video files that it writes, which says how much of the time it waits for them.
``--device cpu`` tries it out with two processes and a small model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Target, command, record, write

NAME = "fit_speed"
LINEAR = 0.95
FRAMES, CLASSES = 8, tuple(f"class {index:02}" for index in range(16))
# Name of a run: processes (0: all), arguments of fit.
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "one, graphs": (1, {"execution": "graphs"}),
    "all, ddp, graphs": (0, {"execution": "graphs"}),
    "one, eager": (1, {"execution": "eager"}),
    "all, ddp, eager": (0, {"execution": "eager"}),
    "all, fsdp2, eager": (0, {"execution": "eager", "sharding": "fsdp2"}),
}
PAIRS = (("all, ddp, graphs", "one, graphs"), ("all, ddp, eager", "one, eager"), ("all, fsdp2, eager", "one, eager"))


def work(plan: dict[str, Any], out: Path) -> None:
    """Train as one of the processes that torchrun has started, and write what came out."""
    import dataclasses

    import timm
    import torch

    import aim_adapters as aim
    from aim_adapters.recipes import get_recipe
    from aim_adapters.video import VideoFolder

    torch.manual_seed(0)
    size = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32} if plan["device"] == "cpu" else {}
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224.openai", pretrained=False, **size)
    aim.wrap_image_model(model, FRAMES, labels=CLASSES)
    still = dataclasses.replace(get_recipe("small-data"), drop_path=0.0, head_dropout=0.0)
    data = VideoFolder(plan["videos"], num_frames=FRAMES)
    result = aim.fit(
        model,
        data,
        out=out / "run",
        recipe=still,
        epochs=plan["epochs"],
        batch_size=plan["clips"],
        precision="fp32" if plan["device"] == "cpu" else "bf16",
        learning_rate=1e-4,
        save_every=10**6,
        dummy_data=plan["dummy"],
        resume=False,
        progress=bool(plan.get("progress")),
        workers=plan["workers"],
        **plan["settings"],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        fields = ("steps", "losses", "clips_per_second", "waiting", "gradient_bytes", "execution")
        (out / "result.json").write_text(json.dumps({field: getattr(result, field) for field in fields}))


def launch(processes: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Start a run and return what came out, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        plan_file = Path(folder) / "plan.json"
        plan_file.write_text(json.dumps(plan))
        words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        words += ["-m", "benchmarks.timing.fit_speed", "--work", str(plan_file)]
        environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if plan["device"] == "cpu" else {})}
        run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        found = Path(folder) / "result.json"
        if run.returncode or not found.exists():
            lines = [line for line in run.stderr.splitlines() if "Error" in line and "elastic" not in line]
            return {"error": lines[:3] or run.stderr[-500:]}
        return {"processes": processes, **json.loads(found.read_text())}


def make_videos(folder: Path, count: int, *, height: int, width: int, frames: int) -> Path:
    """Write H.264 videos of noise that moves, with a key frame in every 12 frames."""
    import av
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    scene = np.kron(noise, np.ones((8, 8, 1), np.uint8))

    def make(index: int) -> None:
        path = folder / CLASSES[index % len(CLASSES)] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25, options={"g": "12", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in range(frames):
                shifted = np.roll(scene, (index + 2 * frame, 3 * frame), axis=(0, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
            container.mux(stream.encode(None))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--processes", type=int, help="by default as many as there are GPUs")
    parser.add_argument("--clips", type=int, default=32, help="clips of one process in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--videos", action="store_true", help="also train on video files (needs PyAV)")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work is not None:
        work(json.loads(args.work.read_text()), args.work.parent)
        return 0
    import torch

    processes = args.processes or max(torch.cuda.device_count(), 1 if args.device == "cuda" else 2)
    result: dict[str, Any] = {
        "question": "clips a second of aim.fit, as a share of linear",
        **record(),
        "command": command(NAME, sys.argv[1:] if argv is None else argv),
        "clips": args.clips,
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        placeholders = Path(folder, "dummy")
        for label in CLASSES:
            (placeholders / label).mkdir(parents=True)
            for index in range(args.clips * processes * args.steps // len(CLASSES) // 4 + 1):
                (placeholders / label / f"{index}.mp4").touch()
        runs = {
            name: (count or processes, settings)
            for name, (count, settings) in RUNS.items()
            if args.device == "cuda" or settings["execution"] == "eager"
        }
        for name, (count, settings) in runs.items():
            plan = {
                "device": args.device, "videos": str(placeholders), "dummy": True, "settings": settings,
                "epochs": 4 * (processes // count), "clips": args.clips, "workers": 0,
            }  # fmt: skip
            result["runs"][name] = launch(count, plan)
            print(name, {k: v for k, v in result["runs"][name].items() if k != "losses"}, flush=True)
        # The same clips in the same steps, on one process and on all: half of the batch each.
        real = make_videos(Path(folder, "real"), 256, height=256, width=320, frames=64) if args.videos else None
        if real is not None:
            for name, count, sharding in (
                ("curve, one", 1, "ddp"), ("curve, ddp", processes, "ddp"), ("curve, fsdp2", processes, "fsdp2"),
            ):  # fmt: skip
                plan = {
                    "device": args.device, "videos": str(real), "dummy": False, "epochs": 5,
                    "clips": args.clips // count, "workers": None,
                    "settings": {"execution": "eager", "sharding": sharding},
                }  # fmt: skip
                result["runs"][name] = launch(count, plan)
                print(name, {k: v for k, v in result["runs"][name].items() if k != "losses"}, flush=True)
    targets = summarize(result, processes, cuda=args.device == "cuda")
    for run in result["runs"].values():
        if "losses" in run:
            run["losses"] = [round(loss, 5) for loss in run["losses"][:40]] if run.get("keep") else run["losses"][-1:]
    result["targets"] = [target.entry() for target in targets]
    result["met"] = all(target.met for target in targets)
    print(f"wrote {write(NAME, result, args.out)}")
    for target in targets:
        print(target)
    return 0 if result["met"] else 1


def summarize(result: dict[str, Any], processes: int, *, cuda: bool) -> list[Target]:
    """Compare runs: shares of linear, and how far the losses are apart."""
    runs, targets = result["runs"], []
    for several, one in PAIRS:
        if {"clips_per_second"} <= runs.get(several, {}).keys() & runs.get(one, {}).keys():
            share = runs[several]["clips_per_second"] / runs[one]["clips_per_second"] / processes
            runs[several]["efficiency"] = share
            if cuda and several == "all, ddp, graphs":
                targets.append(Target("fit under DDP: share of linear", share, at_least=LINEAR))
    base = runs.get("curve, one", {}).get("losses")
    for name in ("curve, ddp", "curve, fsdp2"):
        other = runs.get(name, {}).get("losses")
        if base and other:
            runs[name]["largest_difference"] = max(abs(a - b) / a for a, b in zip(base, other, strict=True))
    return targets


if __name__ == "__main__":
    raise SystemExit(main())
