"""Tables of training steps, on one GPU and on several, and of inference, for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report.pages import MODELS, MODES, NOTHING, Results, gib, ms, spread, table, target_row

FEW = 8  # clips: up to so many, the host is what counts
STEPS = ("train_step", "inference")
FRAMES = " frames in all"
BACKBONES = "today's backbones"


def tables(results: Results, name: str, kind: str = "tables") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of a result with their names, small models and short clips first."""
    found = results.get(name, {}).get(kind, {})

    def order(item: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
        size = item[1]["size"]
        return size["name"], size["frames"], size["clips"]

    return ((key, found[key]) for key, _ in sorted(found.items(), key=order))


def of_gpu(results: Results, name: str, *, few: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tables of a GPU in which all peers have one size, those with few clips or the others."""
    for key, each in tables(results, name):
        size = each["size"]
        if each["device"] == "cuda" and not key.endswith(FRAMES) and not key.startswith(BACKBONES):
            if few == (size["clips"] <= FEW and size["frames"] == 8):
                yield key, each


def timed(each: dict[str, Any], by: str = "median") -> list[tuple[str, dict[str, Any]]]:
    """Return the peers that were timed, the fastest first."""
    found = [(label, entry) for label, entry in each["peers"].items() if by in entry]
    return sorted(found, key=lambda item: item[1][by])


def peer_words(label: str) -> tuple[str, str]:
    """Return a model and how it was compiled, in words."""
    model, mode = label.split("/")
    return MODELS[model], MODES[mode]


def main_tables(results: Results, name: str) -> str:
    """Return a table for every size, under its name."""
    made = []
    for key, each in of_gpu(results, name, few=False):
        rows = []
        for label, entry in timed(each):
            share, joules = entry.get("share_of_ceiling"), entry.get("joules_per_clip")
            rows.append((
                *peer_words(label),
                ms(entry["median"]),
                f"{entry['clips_per_second']:,.0f}",
                gib(entry["peak_bytes"]),
                f"{entry['flop_per_second'] / 1e12:.0f}" if "flop_per_second" in entry else "",
                "" if share is None else f"{100 * share:.0f} %",
                "" if joules is None else f"{joules:.2f}",
                ms(entry["host_seconds"]),
                f"{entry['seconds_until_ready']:.0f}",
            ))  # fmt: skip
        head = " model| compiled|ms|clips/s|GiB|TFLOP/s|of products|J per clip|host, ms|ready, s"
        made.append(f"{key}:\n\n{table(head, rows)}")
    return "\n\n".join(made) or NOTHING


def few_clips(results: Results, name: str, by: str) -> str:
    """Return the milliseconds of each peer by the number of clips."""
    found = {each["size"]["clips"]: dict(timed(each, by)) for _, each in of_gpu(results, name, few=True)}
    labels = dict.fromkeys(label for peers in found.values() for label in peers)
    rows = [
        (*peer_words(label), *(ms(peers[label][by]) if label in peers else "" for peers in found.values()))
        for label in labels
    ]
    titles = "".join(f"|{clips} clip{'s' * (clips != 1)}, ms" for clips in found)
    return table(f" model| compiled{titles}", rows)


def steps(results: Results) -> str:
    """Return the peers of training steps."""
    return main_tables(results, "train_step")


def steps_of_few(results: Results) -> str:
    """Return training steps with few clips."""
    return few_clips(results, "train_step", "median")


def inference(results: Results) -> str:
    """Return the peers of inference."""
    return main_tables(results, "inference")


def latency(results: Results) -> str:
    """Return the time of one call of inference with few clips."""
    return few_clips(results, "inference", "latency_seconds")


def frames(results: Results) -> str:
    """Return steps with the same number of frames in all."""
    rows = []
    for key, each in tables(results, "train_step"):
        if key.endswith(FRAMES):
            shortest: dict[str, float] = {}
            for label, entry in each["peers"].items():
                if "median" in entry:
                    peer = label.split(",")[0]
                    first = shortest.setdefault(peer, entry["median"])
                    ratio = f"{entry['median'] / first:.3f}"
                    rows.append((*peer_words(peer), entry["frames"], entry["clips"], ms(entry["median"]), ratio))
    return table(" model| compiled|T|clips|ms|time, shortest clips = 1", rows)


def backbones(results: Results) -> str:
    """Return steps with several image models."""
    made = []
    for key, each in tables(results, "train_step"):
        if key.startswith(BACKBONES):
            rows = []
            for label, entry in each["peers"].items():
                if "median" in entry:
                    peer, backbone = label.split(", ", 1)
                    rows.append((backbone, *peer_words(peer), ms(entry["median"]), gib(entry["peak_bytes"])))
            made.append(f"{key}:\n\n{table(' image model| model| compiled|ms|GiB', rows)}")
    return "\n\n".join(made) or NOTHING


def sweep(results: Results) -> str:
    """Return throughput and memory by the number of clips."""
    made = []
    for key, each in tables(results, "train_step", "sweeps"):
        peers = {peer: {row["clips"]: row for row in rows if "median" in row} for peer, rows in each["peers"].items()}
        rows = []
        for clips in sorted({clips for found in peers.values() for clips in found}):
            entries = [found.get(clips) for found in peers.values()]
            cells = [f"{e['clips_per_second']:,.0f}, {gib(e['peak_bytes'])}" if e else "" for e in entries]
            rows.append((clips, *cells))
        titles = "".join(f"|{MODELS[peer.split('/')[0]]}" for peer in peers)
        made.append(f"{key.rsplit(',', 1)[0]}:\n\n{table(f'clips{titles}', rows)}")
    return "\n\n".join(made) or NOTHING


def profiles(results: Results) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield the tables that hold parts of steps, with the parts by peer."""
    for key, each in of_gpu(results, "train_step", few=False):
        found = {
            label: entry["profile"]
            for label, entry in each["peers"].items()
            if "seconds" in entry.get("profile", {})
        }  # fmt: skip
        if found:
            yield key, found


def breakdown(results: Results) -> str:
    """Return the parts of a step."""
    made = []
    for key, found in profiles(results):
        totals = [sum(each["seconds"].values()) for each in found.values()]
        rows: list[tuple[str, ...]] = [
            (part, *(f"{ms(each['seconds'][part])} ({100 * each['seconds'][part] / total:.0f} %)"
                     for each, total in zip(found.values(), totals, strict=True)))
            for part in next(iter(found.values()))["seconds"]
        ]  # fmt: skip
        rows.append(("all kernels", *map(ms, totals)))
        rows.append(("launches", *(f"{each['launches']:,}" for each in found.values())))
        titles = "".join("|{}, compiled: {}".format(*peer_words(label)) for label in found)
        made.append(f"{key}, ms:\n\n{table(f' part{titles}', rows)}")
    return "\n\n".join(made) or NOTHING


def data_parallel(results: Results) -> str:
    """Return how training scales over processes."""
    made = []
    for name in ("data_parallel", "data_parallel_large"):
        if name in results:
            size = results[name]["size"]
            key = f"{size['name']}, {size['frames']} frames, {size['clips']} clips a process"
            made.append(f"{key}:\n\n{_data_parallel(results[name])}")
    return "\n\n".join(made) or NOTHING


def _data_parallel(result: dict[str, Any]) -> str:
    rows = []
    for label, entry in result["peers"].items():
        if "together" in entry:
            peer, _, way = label.partition("+")
            ways = {"flat": "one message", "fsdp2": "FSDP2"}
            rows.append((
                *peer_words(peer),
                ways.get(way, "DDP, one bucket" if peer.endswith("/graph") else "DDP"),
                entry["processes"],
                *(ms(entry[which]["median"]) for which in ("alone", "apart", "together")),
                f"{100 * entry['efficiency']:.1f} %",
                f"{entry['clips_per_second']:,.0f}",
                f"{entry['gradient_bytes'] / 1e6:,.0f}",
                "" if entry["peak_bytes"] is None else gib(entry["peak_bytes"]),
            ))  # fmt: skip
    head = " model| compiled| gradients go by|processes|one alone, ms|apart, ms|together, ms|of linear|clips/s|MB|GiB"
    return table(head, rows)


def cpu(results: Results) -> str:
    """Return what a processor needs."""
    rows = []
    for name in STEPS:
        for key, each in tables(results, name):
            if each["device"] == "cpu":
                for label, entry in timed(each):
                    what = key.removesuffix(", cpu")
                    rows.append((f"`{name}`", what, peer_words(label)[0], ms(entry["median"]), spread(entry)))
    return table(" benchmark| what| model|ms|first to ninth decile", rows)


def target_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """Return the targets, in words."""
    return [
        target_row(words, entry, digits=2)
        for name, words in (("train_step", "training step"), ("inference", "inference"))
        for _, each in tables(results, name)
        for entry in each.get("targets", ())
    ]


def ran(results: Results) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield the name of each table, where it ran, and whether it is complete."""
    for name in STEPS:
        for kind in ("tables", "sweeps"):
            for key, each in tables(results, name, kind):
                yield f"`{name}`, {'sweep, ' * (kind == 'sweeps')}{key}", each["ran_on"], each["complete"]


TABLES = (steps, steps_of_few, backbones, frames, sweep, breakdown, inference, latency, data_parallel, cpu)
