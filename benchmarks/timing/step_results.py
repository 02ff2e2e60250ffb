"""The file of training steps, and that of inference, which hold the results of several runs.

A run adds its tables and replaces those of the same name, and each table says where it ran.
``python -m benchmarks.timing.step_results FILE ...`` adds the tables of files that lie elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import path_of, write

NAMES = ("train_step", "inference")
KINDS = ("tables", "sweeps")
Table = dict[str, Any]


def merge(name: str, question: str, parts: Mapping[str, Mapping[str, Table]], folder: Path | None) -> None:
    """Add tables to those that the file of a benchmark holds, in the place of older ones.

    Args:
        name: Of the benchmark.
        question: What it measures, in words.
        parts: Tables by kind and by name.
        folder: Of the result.
    """
    path = path_of(name, folder)
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tables = {kind: {**held.get(kind, {}), **parts.get(kind, {})} for kind in KINDS}
    write(name, {"benchmark": name, "question": question, **tables}, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Add the tables of files that lie elsewhere to the results."""
    made = argparse.ArgumentParser(description=main.__doc__)
    made.add_argument("files", nargs="+", type=Path)
    made.add_argument("--out", type=Path, help="folder of the result")
    arguments = made.parse_args(argv)
    for path in arguments.files:
        result = json.loads(path.read_text(encoding="utf-8"))
        if (name := result.get("benchmark")) not in NAMES:
            made.error(f"{path} is a result of {name}, expected one of {' or '.join(NAMES)}")
        merge(name, result["question"], {kind: result[kind] for kind in KINDS}, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
