"""What the runs of all ways come to, and what they are held to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.harness import Target
from benchmarks.timing.learning_run import PEER

COSINE = 0.999
LEARNED = 0.5  # all that can be known from frames alone: what moves, not which way
DIGITS = 1e-4  # of a loss in the result


def summary(numbers: Sequence[float]) -> dict[str, float] | None:
    """Return mean and standard deviation, None of fewer than two numbers."""
    return {"mean": statistics.fmean(numbers), "sd": statistics.stdev(numbers)} if len(numbers) > 1 else None


def change(pairs: Iterable[tuple[float, float]]) -> dict[str, float | None] | None:
    """Return the mean difference of pairs, its standard error and their ratio, None of fewer than two pairs."""
    differences = [ours - other for ours, other in pairs]
    found = summary(differences)
    if found is None:
        return None
    error = found["sd"] / math.sqrt(len(differences))
    return {"mean": found["mean"], "se": error, "t": found["mean"] / error if error else None}


def summarize(ways: Mapping[str, dict[str, Any]]) -> None:
    """Write into each way what its runs come to, and how they differ from those of `PEER` with the same seeds."""
    ended = {
        name: {seed: run for seed, run in way["runs"].items() if "error" not in run} for name, way in ways.items()
    }  # fmt: skip
    for name, way in ways.items():
        ours, peers = ended[name], ended[PEER]
        both = [seed for seed in ours if seed in peers]
        for what in ("loss", "accuracy"):
            way[what] = summary([run[what] for run in ours.values()])
            if name != PEER:
                way[f"{what}_change"] = change((ours[seed][what], peers[seed][what]) for seed in both)
        cosines = [run["cosine"] for run in ours.values() if "cosine" in run]
        if cosines:
            means, least = ([each[key] for each in cosines] for key in ("mean", "least"))
            way["cosine"] = {"mean": statistics.fmean(means), "least": min(least)}


def targets(result: Mapping[str, Any]) -> list[Target]:
    """Hold the ways against `PEER`: see `benchmarks.timing.learning`."""
    ways, peer = result["ways"], result["ways"][PEER]
    runs = [run for way in ways.values() for run in way["runs"].values()]
    ended = sum("error" not in run for run in runs)
    found = [Target("share of runs that ended", ended / max(1, len(runs)), at_least=1)]
    if peer["accuracy"] is not None:
        found.append(Target(f"{PEER}: test accuracy", peer["accuracy"]["mean"], at_least=LEARNED))
    floors = {"loss": DIGITS, "accuracy": 1 / int(result["task"]["test_clips"])}  # what the result can tell apart
    for name, way in ways.items():
        for what, floor in floors.items():
            if peer[what] is not None and way.get(f"{what}_change") is not None:
                limit = math.sqrt(2) * max(peer[what]["sd"], floor)
                words = f"{name}: mean change of the {'final loss' if what == 'loss' else 'test accuracy'}"
                share = abs(way[f"{what}_change"]["mean"]) / limit
                found.append(Target(f"{words}, as a share of what two seeds differ by", share, at_most=1))
        if "cosine" in way:
            words = f"{name}: mean cosine of test logits with products in fp8 to those without"
            found.append(Target(words, way["cosine"]["mean"], at_least=COSINE))
    return found
