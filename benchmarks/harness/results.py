"""What every benchmark shares: timing, a record of where it ran, and the file it writes."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("aim-adapters", "torch", "torchvision", "timm", "transformers", "open_clip_torch", "triton")


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: the median, and the first and ninth decile to show the spread."""

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise at least two durations, in seconds."""
        deciles = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), deciles[0], deciles[-1], len(seconds))


def measure(run: Callable[[Any], object], *, setup: Callable[[], Any], repeats: int, warmup: int = 2) -> list[float]:
    """Time ``run(setup())`` and return the seconds of each repeat; neither ``setup`` nor the warm-up is counted."""
    seconds = []
    for repeat in range(warmup + repeats):
        subject = setup()
        start = time.perf_counter()
        run(subject)
        elapsed = time.perf_counter() - start
        if repeat >= warmup:
            seconds.append(elapsed)
    return seconds


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the working copy, with ``+changes`` when it is not clean, or ``unknown``.

    What the environment's ``AIM_COMMIT`` says wins: a copy on another machine may lie in a history that is not its own.
    """
    if named := os.environ.get("AIM_COMMIT"):
        return named
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        # Results are written between runs; they do not make the measured code another.
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def record() -> dict[str, Any]:
    """Say on what a benchmark ran: machine, versions, commit."""
    import torch

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit(),
        "cores": os.cpu_count(),
        # Other work on the machine shows here; above the number of cores the times are not to be trusted.
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processor": processor(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "cuda": torch.version.cuda,
    }


@dataclass(frozen=True)
class Target:
    """A number that a benchmark has to reach, or must not pass."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is between its limits."""
        low = -math.inf if self.at_least is None else self.at_least
        return low <= self.value <= (math.inf if self.at_most is None else self.at_most)

    def entry(self) -> dict[str, Any]:
        """Return what stands of it in a result."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "at most": self.at_most}
        words = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
        return f"{self.what}: {self.value:.2f}, target {words}: {'met' if self.met else 'MISSED'}"


def reason(error: Exception) -> str:
    """Say in a line why something could not be measured."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def write(name: str, result: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write ``<name>.json`` into a folder, ``benchmarks/results`` if none is given, and return its path."""
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def report(
    name: str,
    question: str,
    *,
    target: float,
    details: dict[str, Timing],
    seconds: float | None = None,
    ratio: float | None = None,
    also: Mapping[str, Any] | None = None,
) -> int:
    """Write ``benchmarks/results/<name>.json``, print the outcome, and return the exit status.

    Args:
        name: Name of the benchmark, that of its file.
        question: What was measured, in words.
        target: What the number must stay below.
        details: The timings that it comes from.
        seconds: The number that is held against the target, a time.
        ratio: The same, as a multiple of what a peer takes in the same run.
        also: Further entries of the file.

    Returns:
        0 when the target is met, 1 when not.
    """
    value = ratio if seconds is None else seconds
    assert value is not None
    met = value < target
    result = {
        "benchmark": name,
        "command": f"python -m benchmarks.timing.{name}",
        "question": question,
        "seconds" if ratio is None else "ratio": value,
        "target": target,
        "met": met,
        "timings": {key: asdict(timing) for key, timing in details.items()},
        **(also or {}),
        "ran_on": record(),
    }
    write(name, result)
    for key, timing in details.items():
        print(f"  {key:<32} {1e3 * timing.median:9.2f} ms  ({1e3 * timing.p10:.2f}–{1e3 * timing.p90:.2f})")
    number, limit = (f"{1e3 * x:.1f} ms" if ratio is None else f"{x:.2f} ×" for x in (value, target))
    print(f"{question}: {number}, target below {limit}: {'met' if met else 'MISSED'}")
    return 0 if met else 1
