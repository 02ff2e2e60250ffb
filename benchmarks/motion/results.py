"""The results of runs, one row each."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "results" / "motion"
RUNS, CLASSES = FOLDER / "runs.csv", FOLDER / "classes.csv"
COLUMNS = (
    "experiment,variant,way,backbone,seed,frames,clips,steps,batch,lr,accuracy,what,order,trained,total,step_ms,"
    "peak_mib,inference_ms,file_kib,seconds,gpu,commit"
).split(",")
COST_COLUMNS = "way,backbone,trained,total,step_ms,peak_mib,inference_ms,file_kib,gpu,commit".split(",")
CLASS_COLUMNS = ("variant", "way", "seed", "class", "accuracy")


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    new = not path.is_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
