"""Draw the results, and write the tables of the pages that show them.

python -m benchmarks.report.plots            # draws the pictures in docs/assets
python -m benchmarks.report.plots --write    # also writes the tables between the pages' markers, and the verdicts

All come from ``benchmarks/results``; what is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT
from benchmarks.motion.claims import VERDICTS, verdicts
from benchmarks.motion.results import Results as MotionResults
from benchmarks.motion.results import load as load_motion
from benchmarks.report import motion_pictures, motion_tables, pictures, step_tables, summary
from benchmarks.report.pages import ATTENTION_PEERS, Results, measured, ms, spread, table, target_row, verdict

PAGE = ROOT / "docs" / "benchmarks.md"
PAGES = (PAGE, *(ROOT / name for name in ("README.md", "docs/index.md", "docs/choosing.md", "docs/evidence.md")))
PICTURES = pictures.PICTURES | motion_pictures.PICTURES
MARKED = re.compile(r"(?<=<!-- begin )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
ATTENTION = ("temporal_attention", "temporal_attention_sizes")
WITHOUT_GPU = ("checkpoint_io", "load_video_model", "wrap_time", "import_time")
FILES = (*ATTENTION, *step_tables.STEPS, "data_parallel", "data_parallel_large", "learning", *WITHOUT_GPU, "host_share")


def load(folder: Path = RESULTS) -> Results:
    """Return every result that there is, by name."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    motion = load_motion(folder / "motion")
    return found | ({"motion": motion} if any(motion) else {})


def against(row: dict[str, Any], peer: str) -> str:
    """Return a peer's milliseconds, and as a multiple of ours; nothing where it did not run."""
    if peer not in row["speedup"]:
        return ""
    return f"{ms(row['peers'][peer]['median'])} ({row['speedup'][peer]:.1f}×)"


def ours(row: dict[str, Any]) -> tuple[str, str]:
    """Return our milliseconds, and our bandwidth as a share of that of a copy."""
    entry = row["peers"]["triton"]
    return ms(entry["median"]), f"{100 * entry['share_of_copy']:.0f} %"


def attention(results: Results) -> str:
    """Return the main case: every peer, by frames."""
    rows = []
    others = [peer for peer in ATTENTION_PEERS if peer != "triton"]
    for row in measured(results.get("temporal_attention", {"rows": []}), "main"):
        rows.append((row["case"]["num_frames"], *ours(row), *(against(row, peer) for peer in others)))
    return table("|".join(("T", "Triton", "of copy", *(ATTENTION_PEERS[peer] for peer in others))), rows)


def shapes(results: Results) -> str:
    """Return the other cases: ours, SDPA, and the fastest of the other peers where they ran."""
    rows = []
    for name in ATTENTION:
        for row in measured(results.get(name, {"rows": []}), "swin", "separate", "widths", "dtypes"):
            case, speedup = row["case"], row["speedup"]
            unlike_main = {
                "q, k, v apart": not case["packed"],
                "bias": case["bias"],
                f"{case['tokens']:,} tokens": case["tokens"] != 197,
                case["dtype"]: case["dtype"] != "bfloat16",
            }
            notes = ", ".join(note for note, holds in unlike_main.items() if holds)
            nearest = min(speedup, key=lambda peer: speedup[peer])
            other = f"{ATTENTION_PEERS[nearest]}: {against(row, nearest)}" if len(speedup) > 1 else ""
            shape = f"{case['heads']} × {case['dim']}"
            rows.append((shape, notes, case["num_frames"], *ours(row), against(row, "sdpa"), other))
    return table(" heads × width| otherwise|T|Triton|of copy|SDPA, rearranged|fastest of all others", rows)


def host(results: Results) -> str:
    """Return what a call costs the host, in each run."""
    runs = [results[name]["host_seconds"] for name in ATTENTION if name in results]
    rows = [(what, *(f"{1e6 * run[what]:,.0f}" for run in runs)) for what in (runs[0] if runs else ())]
    return table(" call" + "".join(f"|run {number}, µs" for number, _ in enumerate(runs, 1)), rows)


def start_up(results: Results) -> str:
    """Return the first and the second call of a process, in each run."""
    runs = [results[name]["start_up_seconds"] for name in ATTENTION if name in results]
    rows = [
        (number, cache, f"{first:.1f}", f"{1e3 * second:.1f}")
        for number, run in enumerate(runs, 1)
        for cache, (first, second) in run.items()
    ]
    return table("run| kernels|first call, s|second call, ms", rows)


def targets(results: Results) -> str:
    """Return the targets of attention as a count, all others each."""
    held = [entry for name in ATTENTION if name in results for entry in results[name]["targets"]]
    rows = []
    if held:
        met = sum(entry["met"] for entry in held)
        rows.append(("temporal attention: targets met", str(met), f"{len(held)}", verdict(met == len(held))))
    rows += step_tables.target_rows(results)
    for name, words in (("data_parallel", "several GPUs"), ("learning", "learning"), ("host_share", "host's share")):
        found = results.get(name, {"targets": ()})["targets"]
        rows += [target_row(words, entry, digits=4) for entry in found]
    return table(" what|measured|target| ", rows)


def learning(results: Results) -> str:
    """Return what each way to compute learns, and how that differs from layer by layer with the same seeds."""

    def loss(entry: dict[str, float] | None, spread: str) -> str:
        return "" if entry is None else f"{entry['mean']:.4f} ± {entry[spread]:.4f}"

    def percent(entry: dict[str, float] | None, spread: str) -> str:
        return "" if entry is None else f"{100 * entry['mean']:.1f} ± {100 * entry[spread]:.1f}"

    rows = []
    for way in results.get("learning", {"ways": {}})["ways"].values():
        rows.append((
            way["words"],
            sum("error" not in run for run in way["runs"].values()),
            loss(way["loss"], "sd"),
            percent(way["accuracy"], "sd"),
            loss(way.get("loss_change"), "se"),
            percent(way.get("accuracy_change"), "se"),
            "{mean:.5f} ({least:.5f})".format(**way["cosine"]) if "cosine" in way else "",
        ))  # fmt: skip
    head = " way|seeds|final loss|test accuracy, %|change of loss|change of accuracy, points|cosine, asked in fp8"
    return table(head, rows)


def files(results: Results) -> str:
    """Return the targets of what needs no GPU."""
    rows = []
    for result in (results[name] for name in WITHOUT_GPU if name in results):
        value, limit = (
            f"{ms(x)} ms" if "seconds" in result else f"{x:.2f} ×"
            for x in (result.get("seconds", result.get("ratio")), result["target"])
        )
        rows.append((result["question"], value, limit, verdict(result["met"])))
    return table(" what|measured|target, below| ", rows)


def times(results: Results) -> str:
    """Return the times behind `files`, and those of the host's share of a step."""
    rows = []
    for name in (*WITHOUT_GPU, "host_share"):
        for what, entry in results.get(name, {"timings": {}})["timings"].items():
            rows.append((f"`{name}`", what, ms(entry["median"]), spread(entry)))
    return table(" benchmark| what|ms|first to ninth decile", rows)


def memory(results: Results) -> str:
    """Return the memory of building a model from files."""
    ways = results.get("load_video_model", {}).get("mib", {}).items()
    rows = [(way, f"{entry['peak']:,}") for way, entry in ways if way != "files"]
    return table(" way|peak, MiB", rows)


def ran_on(results: Results) -> str:
    """Return on what each result was measured."""
    runs = [
        (f"`{name}`", results[name]["ran_on"], results[name].get("complete", True))
        for name in FILES
        if name in results and name not in step_tables.STEPS
    ]
    rows = []
    for name, on, complete in (*runs, *step_tables.ran(results)):
        version = on["versions"]
        machine = on["gpus"][0] if on["gpus"] else on["processor"]
        rows.append((
            name, machine, on["cores"], on["load_average"], version["torch"], version.get("triton", ""),
            on["python"], f"`{on['commit'][:7]}{'+changes' * on['commit'].endswith('+changes')}`",
            "yes" if complete else "no",
        ))  # fmt: skip
    return table(" result| machine|cores|load|torch|Triton|Python| commit| complete", rows)


TABLES = {
    **{
        make.__name__: make
        for make in (
            attention, shapes, host, start_up, *step_tables.TABLES, *summary.TABLES, learning, targets, files, times,
            memory, ran_on,
        )
    },
    **motion_tables.TABLES,
}  # fmt: skip


def fill(page: str, results: Results) -> str:
    """Return the page with each table written anew between ``<!-- begin name -->`` and ``<!-- end -->``."""
    return MARKED.sub(lambda match: f"{match[1]}{match[2]}\n{TABLES[match[1]](results)}\n\n", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables of the pages")
    arguments = parser.parse_args(argv)
    results = load()
    for name, (points_of, draw) in PICTURES.items():
        points = points_of(results)
        if points:
            draw(results, points, pictures.ASSETS / name)
            print(f"wrote {pictures.ASSETS / name}")
    if arguments.write:
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")
            print(f"wrote {page}")
        found = verdicts(results.get("motion", MotionResults()))
        VERDICTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {VERDICTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
