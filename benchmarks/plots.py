"""Draw the result of temporal attention, and write the tables of docs/benchmarks.md.

python -m benchmarks.plots            # draws docs/assets/temporal-attention.svg
python -m benchmarks.plots --write    # also writes the tables between the page's markers

Both come from ``benchmarks/results``; what is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "assets" / "temporal-attention.svg"
MARKED = re.compile(r"(?<=<!-- begin )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
PASS = "forward+backward"
ATTENTION = ("temporal_attention", "temporal_attention_sizes")
WITHOUT_GPU = ("checkpoint_io", "load_video_model", "wrap_time", "import_time")
FILES = (*ATTENTION, "train_step", *WITHOUT_GPU)
PEERS = {
    "triton": "Triton",
    "sdpa": "SDPA, rearranged",
    "sdpa compiled": "SDPA, compiled",
    "eager": "eager",
    "flex": "FlexAttention",
}
FLOOR = "copy of the same bytes"
# Colour, marker, and by how many points the name at the end of a line is moved to keep clear of its neighbour.
STYLES = {
    "triton": ("#c2410c", "o", 0),
    "sdpa": ("#1d4ed8", "s", 0),
    "sdpa compiled": ("#0284c7", "D", -5),
    "eager": ("#6b7280", "^", 0),
    "flex": ("#047857", "v", 5),
}
MODELS = {
    "triton": "AIM, `triton`",
    "sdpa": "AIM, `sdpa`",
    "triton-bf16": "AIM, `triton`, frozen weights in bf16",
    "sdpa-bf16": "AIM, `sdpa`, frozen weights in bf16",
    "full": "ViT on single frames, fully fine-tuned",
    "timesformer": "TimeSformer, fully fine-tuned",
}
Results = dict[str, dict[str, Any]]


def load(folder: Path = RESULTS) -> Results:
    """Return every result that there is, by name."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


# The picture


def lines(result: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Return frames and milliseconds of each peer in the main case, and of a copy of the bytes."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in (*PEERS, "copy")}
    for row in measured(result, "main"):
        frames = row["case"]["num_frames"]
        found["copy"].append((frames, 1e3 * row["bytes"] / result["ceilings"]["copy_bytes_per_second"]))
        for peer, entry in row["peers"].items():
            if "median" in entry:
                found[peer].append((frames, 1e3 * entry["median"]))
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw time against frames as an SVG, which holds the numbers as its description too."""
    import matplotlib
    from matplotlib.figure import Figure

    points = lines(result)
    style = {"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "aim", "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 4.6), layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        for peer, (colour, marker, offset) in STYLES.items():
            frames, times = zip(*points[peer], strict=True)
            width = 2.4 if peer == "triton" else 1.5
            axes.plot(frames, times, color=colour, marker=marker, markersize=5, linewidth=width)
            _name(axes, PEERS[peer], (frames[-1], times[-1]), colour=colour, offset=offset)
        frames, floor = zip(*points["copy"], strict=True)
        axes.plot(frames, floor, color="black", linestyle="--", linewidth=1.2)
        _name(axes, FLOOR, (frames[-1], floor[-1]), colour="black", offset=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(frames, [str(number) for number in frames])
        axes.set_yticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"))
        axes.set_yticks((), minor=True)
        axes.set_ylim(0.15, 6)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("frames in a clip, T (256 frames in all)")
        axes.set_ylabel("milliseconds")
        axes.set_title(f"Attention over time in one layer, forward and backward, {result['ran_on']['gpus'][0]}")
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": json.dumps(points)})


def _name(axes: Any, text: str, end: tuple[int, float], *, colour: str, offset: int) -> None:
    axes.annotate(text, end, (8, offset), textcoords="offset points", color=colour, va="center", annotation_clip=False)


# The tables


def measured(result: dict[str, Any], *tables: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of both passes together."""
    return (row for row in result["rows"] if row["case"]["table"] in tables and row["pass"] == PASS)


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; a title that begins with a space is that of a column of words."""
    titles = head.split("|")
    lines = ["|".join(("", *(f" {title.strip()} " for title in titles), ""))]
    lines.append("|".join(("", *("---" if title.startswith(" ") else "---:" for title in titles), "")))
    body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines + body) if body else "Not measured."


def ms(seconds: float) -> str:
    """Return milliseconds to three digits, or whole ones."""
    return f"{1e3 * seconds:#.3g}".rstrip(".") if abs(seconds) < 0.9995 else f"{1e3 * seconds:,.0f}"


def spread(entry: dict[str, Any]) -> str:
    """Return the first and the ninth decile in milliseconds."""
    return f"{ms(entry['p10'])} to {ms(entry['p90'])}"


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
    others = [peer for peer in PEERS if peer != "triton"]
    for row in measured(results.get("temporal_attention", {"rows": []}), "main"):
        rows.append((row["case"]["num_frames"], *ours(row), *(against(row, peer) for peer in others)))
    return table("|".join(("T", "Triton", "of copy", *(PEERS[peer] for peer in others))), rows)


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
            other = f"{PEERS[nearest]}: {against(row, nearest)}" if len(speedup) > 1 else ""
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


def steps(results: Results) -> str:
    """Return the peers of the training step, the fastest first."""
    rows = []
    for size in results.get("train_step", {"tables": []})["tables"]:
        peers = {name: entry for name, entry in size["peers"].items() if "median" in entry}
        for name, entry in sorted(peers.items(), key=lambda item: item[1]["median"]):
            model, mode = name.split("/")
            rows.append((
                MODELS[model],
                {"eager": "no", "blocks": "each block", "whole": "whole model"}[mode],
                ms(entry["median"]),
                f"{entry['clips_per_second']:.0f}",
                f"{entry['peak_bytes'] / 2**30:.1f}",
                f"{entry['median'] / peers['triton/blocks']['median']:.2f}",
            ))  # fmt: skip
    return table(" model| compiled|ms|clips/s|GiB|time, ours = 1", rows)


def targets(results: Results) -> str:
    """Return the targets of attention as a count, those of the step each."""
    held = [entry for name in ATTENTION if name in results for entry in results[name]["targets"]]
    rows: list[tuple[str, str, str, str]] = []
    if held:
        met = sum(entry["met"] for entry in held)
        rows.append(("temporal attention: targets met", str(met), str(len(held)), verdict(met == len(held))))
    for entry in results.get("train_step", {"targets": []})["targets"]:
        what = f"training step, {entry['what']}"
        rows.append((what, f"{entry['value']:.2f}", f"{entry['at_least']:g}", verdict(entry["met"])))
    return table(" what|measured|at least| ", rows)


def verdict(met: bool) -> str:
    """Say how a target came out."""
    return "met" if met else "MISSED"


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
    """Return the times behind `files`."""
    rows = []
    for name in WITHOUT_GPU:
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
    rows = []
    for name, result in results.items():
        on = result["ran_on"]
        version = on["versions"]
        machine = on["gpus"][0] if on["gpus"] else on["processor"]
        rows.append((
            f"`{name}`", machine, on["cores"], on["load_average"], version["torch"], version.get("triton", ""),
            on["python"], f"`{on['commit'][:7]}{'+changes' * on['commit'].endswith('+changes')}`",
            "yes" if result.get("complete", True) else "no",
        ))  # fmt: skip
    return table(" result| machine|cores|load|torch|Triton|Python| commit| complete", rows)


TABLES = (attention, shapes, host, start_up, steps, targets, files, times, memory, ran_on)


def fill(page: str, results: Results) -> str:
    """Return the page with each table written anew between ``<!-- begin name -->`` and ``<!-- end -->``."""
    made = {make.__name__: make(results) for make in TABLES}
    return MARKED.sub(lambda match: f"{match[1]}{match[2]}\n{made[match[1]]}\n\n", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the tables of {PAGE.name}")
    arguments = parser.parse_args(argv)
    results = load()
    if "temporal_attention" in results:
        draw(results["temporal_attention"], PICTURE)
        print(f"wrote {PICTURE}")
    if arguments.write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
