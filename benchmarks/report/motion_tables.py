"""Tables of the benchmark of motion, and what they say of each claim: for docs/evidence.md and docs/choosing.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks.motion.claims import CLAIMS, NAMES, asked_words, cell_words, found_words, words_of
from benchmarks.motion.experiments import COSTS_AS, EXPERIMENTS, LADDER, SHARES, VARIANTS, WAYS, Job, way_and_rate
from benchmarks.motion.judging import Cell, Evidence, cell_of, judge
from benchmarks.motion.results import Costs, Results, Run, spread
from benchmarks.report import motion_pictures
from benchmarks.report.pages import Results as AllResults
from benchmarks.report.pages import table

RUN = "python -m benchmarks.motion.run {} --photographs FILE --weights FOLDER"
COMPARED = (*LADDER, "top", "alternate", "bottom", *WAYS)
PLANNED = {cell_of(job): len(job.seeds) for jobs in EXPERIMENTS.values() for job in jobs}
PER_CLASS = ("spatial", "full", "full-space-time", "joint", "conv")


def percent(evidence: Evidence, cell: Cell) -> str:
    """Return mean and standard deviation, and how many seeds there are where they are fewer; nothing of none."""
    values = [*evidence.values(cell).values()]
    if not values:
        return ""
    mean, sd = spread(values)
    seeds = PLANNED[cell._replace(measure="accuracy")]
    return (
        f"{mean:.1f}" + ("" if sd is None else f" ± {sd:.1f}") + f" ({len(values)} of {seeds})" * (len(values) < seeds)
    )


def costs_of(evidence: Evidence, way: str, backbone: str = "dinov2-small") -> Costs | None:
    """Return what a way costs, where it is measured."""
    way, _ = way_and_rate(way)
    return evidence.costs.get((COSTS_AS.get(way, way), backbone))


def _trained(evidence: Evidence, way: str, backbone: str = "dinov2-small") -> str:
    found = costs_of(evidence, way, backbone)
    return "" if found is None else f"{found.trained / 1e6:.2f}"


def _filled(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the rows that have a number."""
    return [row for row in rows if any(row[1:])]


def by_way(evidence: Evidence, cells: Iterable[Cell]) -> str:
    """Return accuracy on both variants, and which of its parts are right."""
    rows = [
        (
            cell_words(cell),
            percent(evidence, cell),
            percent(evidence, cell._replace(variant="appearance")),
            _trained(evidence, cell.way, cell.backbone),
            *(percent(evidence, cell._replace(measure=measure)) for measure in ("what", "order")),
            percent(evidence, cell._replace(variant="appearance", measure="what")),
        )
        for cell in cells
    ]
    head = "order, %|appearance, %|trains, M|order, but for direction, %|direction, %|appearance, but for direction, %"
    return table(f" way|{head}", _filled(rows))


def _rates(evidence: Evidence) -> str:
    rows = []
    for job in EXPERIMENTS["rates"]:
        if job.variant == VARIANTS[0]:
            found = [percent(evidence, cell_of(job)._replace(variant=variant)) for variant in VARIANTS]
            name = cell_words(Cell(job.way, backbone=job.backbone))
            rows.append((name, f"{job.learning_rate:g}", *found))
    return table(" way|learning rate|order, %|appearance, %", [row for row in rows if any(row[2:])])


def _ladder(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, LADDER))


def _longer(evidence: Evidence) -> str:
    rows = []
    for job in EXPERIMENTS["longer"]:
        both = (cell_of(job)._replace(again=""), cell_of(job))
        rows.append((NAMES[job.way], *(percent(evidence, cell) for cell in both)))
    return table(" way|order, %|twice the steps, %", _filled(rows))


def _composition(evidence: Evidence) -> str:
    cells = [cell_of(job) for job in EXPERIMENTS["composition"]]
    rows = [
        (cell_words(cell), *(percent(evidence, cell._replace(measure=of)) for of in ("accuracy", "what", "order")))
        for cell in cells
    ]
    return table(" way|right, %|but for direction, %|direction, %", _filled(rows))


def _layers(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, ("joint", "top", "alternate", "bottom")))


def _ratio(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, ("ratio-0.0625", "ratio-0.125", "joint", "ratio-0.5")))


def _data(evidence: Evidence) -> str:
    ways = ("joint", "conv", "full-space-time")
    numbers = {job.clips: share for job, share in zip(EXPERIMENTS["data"][:: len(ways)], SHARES, strict=True)}
    rows = [
        (f"{clips:,}", f"{100 * share:g} %", *(percent(evidence, Cell(way, clips=clips)) for way in ways))
        for clips, share in (numbers | {Cell("").clips: 1}).items()
    ]
    rows = [row for row in rows if any(row[2:])]
    return table("clips|share|" + "|".join(f"{NAMES[way]}, %" for way in ways), rows)


def _pretraining(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, ("joint", "random")))


def _input_adapter(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, ("joint", "input")))


def _frames(evidence: Evidence) -> str:
    cells = [Cell("joint"), Cell("resized"), Cell("joint", frames=16), Cell("joint", frames=32)]
    return table(" way|order, %", _filled((cell_words(cell), percent(evidence, cell)) for cell in cells))


def _backbones(evidence: Evidence) -> str:
    return by_way(evidence, dict.fromkeys(cell_of(job)._replace(variant="order") for job in EXPERIMENTS["backbones"]))


def _execution(evidence: Evidence) -> str:
    rows = []
    for way in ("joint", "balanced", "low", "fp8", "modules", "graphs", "eager"):
        accuracy = [percent(evidence, Cell(way, variant)) for variant in VARIANTS]
        rows.append((NAMES[way], *accuracy, *_step(evidence.costs.get((way, "dinov2-small")))))
    return table(" way|order, %|appearance, %|step, ms|peak, GiB", _filled(rows))


def _step(found: Costs | None) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found.step_ms:.1f}", f"{found.peak_mib / 1024:.2f}")


def _answer(found: Costs | None) -> tuple[str, str]:
    return ("", "") if found is None else (f"{found.inference_ms:.1f}", f"{found.file_kib / 1024:.1f}")


def _ways(evidence: Evidence) -> str:
    return by_way(evidence, map(Cell, ("joint", *WAYS)))


def _defaults(evidence: Evidence) -> str:
    rows = []
    for job in dict.fromkeys(job._replace(variant=VARIANTS[0]) for job in EXPERIMENTS["defaults"]):
        found = [percent(evidence, cell_of(job)._replace(variant=variant)) for variant in VARIANTS]
        rows.append((job.name.replace("-", " "), f"{job.steps:,}", *found))
    return table(" setting|steps|order, %|appearance, %", [row for row in rows if any(row[2:])])


def _costs(evidence: Evidence) -> str:
    rows = []
    for way, name in NAMES.items():
        found = evidence.costs.get((way, "dinov2-small"))
        if found is not None:
            share = f"{100 * found.trained / found.total:.1f} %"
            rows.append((name, f"{found.trained / 1e6:.2f}", share, *_step(found), *_answer(found)))
    return table(" way|trains, M|of all|step, ms|peak, GiB|inference, ms|file, MiB", rows)


def _classes(evidence: Evidence) -> str:
    """Return accuracy of each class of "order", first those in which AIM gains most over spatial adapters."""
    means: dict[str, dict[str, float]] = {}
    for way in PER_CLASS:
        scores: dict[str, list[float]] = {}
        for seed in evidence.classes.get(("order", way), {}).values():
            for name, score in seed.items():
                scores.setdefault(name, []).append(score)
        for name, values in scores.items():
            means.setdefault(name, {})[way] = spread(values).mean

    def gain(name: str, other: str) -> float | None:
        found = means[name]
        return found["joint"] - found[other] if {"joint", other} <= found.keys() else None

    rows = [
        (
            name,
            *(f"{means[name][way]:.1f}" if way in means[name] else "" for way in PER_CLASS),
            *("" if (points := gain(name, other)) is None else f"{points:+.1f}".replace("-", "−")
              for other in ("spatial", "full-space-time")),
        )
        for name in sorted(means, key=lambda name: -(gain(name, "spatial") or 0))
    ]  # fmt: skip
    ways = "|".join(f"{NAMES[way]}, %" for way in PER_CLASS)
    return table(f" class|{ways}|AIM − spatial|AIM − full (space-time)", rows)


class Section(NamedTuple):
    """What a section of the page shows.

    Attributes:
        experiments: Those whose runs it is about.
        make: Makes its table.
        picture: File of its picture.
        flags: Further options of the command.
    """

    experiments: tuple[str, ...]
    make: Callable[[Evidence], str]
    picture: str = ""
    flags: str = ""


SECTIONS = {
    "rates": Section(("rates",), _rates),
    "ladder": Section(("ladder",), _ladder, "motion-ladder.svg"),
    "longer": Section(("longer",), _longer),
    "composition": Section(("composition",), _composition),
    "layers": Section(("layers",), _layers),
    "ratio": Section(("ratio",), _ratio),
    "data": Section(("data",), _data, "motion-data.svg"),
    "pretraining": Section(("pretraining",), _pretraining),
    "input_adapter": Section(("ladder",), _input_adapter),
    "frames": Section(("frames",), _frames),
    "classes": Section(("ladder", "ways"), _classes),
    "costs": Section((), _costs, flags=" --costs --workers 0"),
    "execution": Section(("execution",), _execution),
    "ways": Section(("ways",), _ways),
    "backbones": Section(("backbones",), _backbones),
    "defaults": Section(("defaults",), _defaults),
}


def _command(section: Section) -> str:
    return f"`{RUN.format(' '.join(section.experiments) or 'all')}{section.flags}`"


def _minutes(runs: Iterable[Run]) -> str:
    return f"{sum(run.seconds for run in runs) / 60:.1f}"


def _seeds(evidence: Evidence, job: Job) -> int:
    return len(evidence.values(cell_of(job)).keys() & set(job.seeds))


def missing(evidence: Evidence, experiments: Iterable[str]) -> str:
    """Name the runs of experiments that are missing."""
    found = []
    for job in (job for name in experiments for job in EXPERIMENTS[name]):
        seeds = _seeds(evidence, job)
        if seeds < len(job.seeds):
            some = f" ({seeds} of {len(job.seeds)} seeds)" if seeds else ""
            found.append(f"{cell_words(cell_of(job))}, {job.variant}{some}")
    return f"Not run yet: {'; '.join(found)}." if found else ""


def judged(evidence: Evidence, section: str) -> str:
    """Return the verdict on each claim of a section, with its figures."""
    lines = []
    for claim in CLAIMS.get(section, ()):
        judgment = judge(claim, evidence)
        lines.append(f"- **{judgment.verdict.capitalize()}** ({claim.place}): {claim.says}")
        lines += [
            f"    - {words_of(figure)}: {found_words(figure, found)}; asked {asked_words(figure)}"
            for figure, found in zip(claim.figures, judgment.intervals, strict=True)
        ]
    return "\n".join(lines)


def section(name: str, results: AllResults) -> str:
    """Return the table of a section, how it was made, its picture, what is missing, and the verdicts."""
    parts = SECTIONS[name]
    found: Results = results.get("motion", Results())
    evidence = Evidence(found)
    ran = [run for run in found.runs if run.experiment in parts.experiments]
    if not (ran if parts.experiments else found.costs) or (name == "classes" and not found.classes):
        return f"Not measured yet: run {_command(parts)}."
    picture = motion_pictures.shown(parts.picture, results)
    time = f": {_minutes(ran)} GPU-minutes" if ran else ""
    made = (parts.make(evidence), f"{_command(parts)}{time}.", picture)
    blocks = (*made, missing(evidence, parts.experiments), judged(evidence, name))
    return "\n\n".join(filter(None, blocks))


def ways(results: AllResults) -> str:
    """Return accuracy and costs of each way to adapt, for those who choose."""
    found: Results = results.get("motion", Results())
    evidence = Evidence(found)
    rows = []
    for way in COMPARED:
        cost = costs_of(evidence, way)
        cells = (Cell(way), Cell(way, again="longer"), Cell(way, "appearance"))
        accuracy = (percent(evidence, cell) for cell in cells)
        rows.append((NAMES[way], *accuracy, _trained(evidence, way), *_step(cost), *_answer(cost)))
    rows = _filled(rows)
    if not rows:
        return f"Not measured yet: run `{RUN.format('ladder longer layers ways')} --costs`."
    made = table(
        " way|order, %|twice the steps, %|appearance, %|trains, M|step, ms|peak, GiB|inference, ms|file, MiB", rows
    )
    absent = [NAMES[way] for way in COMPARED if costs_of(evidence, way) is None]
    costs = f"Costs not measured yet: {'; '.join(absent)}." if absent else ""
    picture = motion_pictures.shown("motion-ways.svg", results)
    return "\n\n".join(filter(None, (made, picture, missing(evidence, ("ladder", "longer", "layers", "ways")), costs)))


def motion_verdicts(results: AllResults) -> str:
    """Return all claims with their verdicts."""
    found: Results = results.get("motion", Results())
    if not found.runs:
        return f"Not measured yet: run `{RUN.format('all')} --costs`."
    evidence = Evidence(found)
    rows = [(claim.says, claim.place, judge(claim, evidence).verdict) for claims in CLAIMS.values() for claim in claims]
    counts = {verdict: sum(row[2] == verdict for row in rows) for verdict in dict.fromkeys(row[2] for row in rows)}
    words = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items())
    return f"{len(rows)} claims; {words}.\n\n{table(' claim| said in| verdict', rows)}"


def motion_runs(results: AllResults) -> str:
    """Return how each experiment was run, and how long it took."""
    found: Results = results.get("motion", Results())
    if not found.runs:
        return f"Not measured yet: run `{RUN.format('all')} --costs`."
    return table(" experiment|runs|GPU-minutes| GPU| commit", _ran(found))


def _ran(found: Results) -> Iterator[tuple[str, ...]]:
    for name, jobs in EXPERIMENTS.items():
        runs = [run for run in found.runs if run.experiment == name]
        if runs:
            planned = sum(len(job.seeds) for job in jobs)
            gpus, commits = (", ".join(dict.fromkeys(values)) for values in (
                (run.gpu for run in runs), (f"`{run.commit[:7]}`" for run in runs)))  # fmt: skip
            yield f"`{name}`", f"{len(runs)} of {planned}", _minutes(runs), gpus, commits


TABLES: dict[str, Callable[[AllResults], str]] = {
    "ways": ways,
    "motion_verdicts": motion_verdicts,
    "motion_runs": motion_runs,
    **{f"motion_{name}": functools.partial(section, name) for name in SECTIONS},
}
