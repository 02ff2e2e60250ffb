"""The file that a benchmark writes, and the command that it names."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.clocks import Timing
from benchmarks.harness.environment import ROOT, record

RESULTS = ROOT / "benchmarks" / "results"


def reason(error: Exception) -> str:
    """Say in a line why something could not be measured."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def command(name: str, argv: Sequence[str] = ()) -> str:
    """Return what anyone can run to measure again; where the result went was the caller's own affair."""
    words = list(argv)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(["python", "-m", f"benchmarks.timing.{name}", *words])


def path_of(name: str, folder: Path | None = None) -> Path:
    """Return where a benchmark's result lies in a folder, ``benchmarks/results`` if none is given."""
    return (RESULTS if folder is None else folder) / f"{name}.json"


def dumps(value: Any, indent: str = "") -> str:
    """Return JSON in which a list or an object of plain values is one line, so that a record is one."""
    inner = indent + "  "
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not any(isinstance(item, (dict, list, tuple)) and item for item in items):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(key))}: {dumps(item, inner)}" for key, item in value.items()]
    else:
        lines = [inner + dumps(item, inner) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return "\n".join((start, ",\n".join(lines), indent + end))


def write(name: str, result: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Write ``<name>.json`` into a folder, ``benchmarks/results`` if none is given, and return its path."""
    path = path_of(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result) + "\n", encoding="utf-8")
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
        "command": command(name),
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
