"""The claims of the paper, and some of this project's own, held to the results.

    python -m benchmarks.motion.claims

prints each with its figures and its verdict, which `benchmarks.motion.judging` explains; `docs/evidence.md` tells them
in words. The exit status is 1 where the results are damaged, whatever the verdicts are.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.motion.experiments import EXPERIMENTS, VARIANTS, way_and_rate
from benchmarks.motion.judging import (
    DIRECTED,
    ITSELF,
    MARGIN,
    NOT_RUN,
    Cell,
    Claim,
    Difference,
    Evidence,
    Interval,
    Ratio,
    cell_of,
    judge,
)
from benchmarks.motion.results import FOLDER, Results, ResultsError, load
from benchmarks.motion.ways import rate_of

VERDICTS = Path(__file__).with_name("verdicts.json")
BOUNDS = {
    "order": 100 * 8 / 12,
    "composition": 100 * 14 / 24,
    "appearance": 100 * 24 / 27,
}  # in percent, of models that do not see the order of frames
BLIND = ("frozen", "spatial", "full", "linear", "lora", "probe")
NAMES = {
    "frozen": "frozen image model",
    "spatial": "spatial adapters",
    "temporal": "temporal, spatial adapters",
    "joint": "AIM",
    "input": "AIM with input adapter",
    "full": "full fine-tuning (space)",
    "full-space-time": "full fine-tuning (space-time)",
    "conv": "convolution over time, spatial, joint adapters",
    "conv-alone": "convolution over time alone",
    "both": "AIM and convolution over time",
    "alternate": "AIM (every second block)",
    "third": "AIM (every third block)",
    "top": "AIM (top half)",
    "bottom": "AIM (bottom half)",
    "ratio-0.0625": "AIM (ratio 0.0625)",
    "ratio-0.125": "AIM (ratio 0.125)",
    "ratio-0.5": "AIM (ratio 0.5)",
    "linear": "linear spatial adapters, merged",
    "lora": "LoRA",
    "lora-temporal": "LoRA, temporal adapters",
    "probe": "probe of the mean of frames",
    "attentive": "attentive probe",
    "average": "AIM (mean of two runs' weights)",
    "random": "AIM on random weights",
    "resized": "AIM (8 frames, tested on 16)",
    "balanced": "AIM (balanced memory)",
    "low": "AIM (low memory)",
    "fp8": "AIM (fp8)",
    "modules": "AIM (layer by layer)",
    "graphs": "AIM (aim.graph)",
    "eager": "AIM (not recorded)",
}
MEASURES = {"what": "but for direction", "order": "direction"}  # in the words of the tables

Cells = tuple[Cell, ...]


def above(one: Cell, other: Cell) -> Difference:
    """Ask that one is better than the other."""
    return Difference(((1, one), (-1, other)), low=0)


def reaches(one: Cell, other: Cell) -> Difference:
    """Ask that one is as good as the other, or better."""
    return Difference(((1, one), (-1, other)), low=-MARGIN)


def equals(one: Cell, other: Cell) -> Difference:
    """Ask that both are as good."""
    return Difference(((1, one), (-1, other)), low=-MARGIN, high=MARGIN)


def gains(pair: Cells, *, than: Cells) -> Difference:
    """Ask that the first of a pair is ahead of the second by more than in another pair."""
    return Difference(((1, pair[0]), (-1, pair[1]), (-1, than[0]), (1, than[1])), low=0)


def of(variant: str, *ways: str, **others: Any) -> Cells:
    """Return ways on a variant, with what else a `Cell` has."""
    return tuple(Cell(way, variant, **others) for way in ways)


def each(ask: Callable[[Cell, Cell], Difference], one: str, other: str, **others: Any) -> tuple[Difference, ...]:
    """Ask the same of two ways on every variant."""
    return tuple(ask(*of(variant, one, other, **others)) for variant in VARIANTS)


AIM, SPATIAL, TUNED = of("order", "joint", "spatial", "full-space-time")
OURS = "this project"


def ladder() -> Iterator[Claim]:
    """Yield the claims of Table 1."""
    says = "Spatial adapters are better than the frozen image model (36.7, 15.1)."
    yield Claim("spatial", "Table 1", says, (above(SPATIAL, Cell("frozen")),))
    says = "Spatial adapters do as well as full fine-tuning that sees single frames (36.7, 36.2)."
    yield Claim("spatial-as-full", "Table 1", says, each(reaches, "spatial", "full"))
    says = "It takes temporal adapters to see time (61.2 instead of 36.7)."
    yield Claim("temporal", "Table 1", says, (above(Cell("temporal"), SPATIAL),))
    says = "Joint adapters add a little (62.0 instead of 61.2)."
    yield Claim("joint", "Table 1", says, (above(AIM, Cell("temporal")),))
    says = "AIM is better than full fine-tuning that sees single frames (62.0, 36.2)."
    yield Claim("above-full", "Table 1", says, (above(AIM, Cell("full")),))
    says = "AIM is better than full fine-tuning over space and time (62.0, 59.5)."
    yield Claim("above-space-time", "Table 1", says, (above(AIM, TUNED),))
    says = "Spatial adapters see what is shown as well as AIM does."
    yield Claim("appearance", "Section 3.2", says, (reaches(*of("appearance", "spatial", "joint", measure="what")),))
    says = "Temporal adapters add more where order counts than where appearance does."
    pairs = [of(variant, "temporal", "spatial") for variant in ("order", "appearance")]
    yield Claim("order-counts", "Section 4.1", says, (gains(pairs[0], than=pairs[1]),))
    says = "Ways that do not see the order of frames stay at or below the bound that follows from that."
    blind = [(Cell(way, variant), BOUNDS[variant]) for way in BLIND for variant in VARIANTS]
    figures = tuple(Difference(((1, cell),), high=MARGIN, less=bound) for cell, bound in blind)
    yield Claim("order-blind", OURS, says, figures)


def longer() -> Iterator[Claim]:
    """Yield claims of other tables on more training."""
    ask = functools.partial(of, "order", again="longer")
    aim, temporal, given, tuned, conv = ask("joint", "temporal", "input", "full-space-time", "conv")
    says = "With twice the steps, joint adapters add a little."
    yield Claim("joint-longer", "Table 1", says, (above(aim, temporal),))
    says = "With twice the steps, AIM is better than full fine-tuning over space and time."
    yield Claim("longer", "Table 1", says, (above(aim, tuned),))
    says = "With twice the steps, one more adapter, in front of temporal attention, helps."
    yield Claim("input-longer", "Appendix A.2", says, (above(given, aim),))
    top, alternate, bottom, third = ask("top", "alternate", "bottom", "third")
    says = "With twice the steps, adapters in the bottom half do much worse than in the others."
    yield Claim("bottom-longer", "Table 7", says, (above(top, bottom), above(alternate, bottom)))
    says = "With twice the steps, the top half or every second block does about as well as all."
    yield Claim("half-longer", "Table 7", says, (reaches(top, aim), reaches(alternate, aim)))
    small, large = ask("ratio-0.0625", "ratio-0.5")
    says = "With twice the steps, accuracy grows with the ratio up to 0.25, and not beyond."
    yield Claim("ratio-longer", "Table 8", says, (above(aim, small), equals(large, aim)))
    says = "With twice the steps, convolution over time does at least as well as attention over time."
    yield Claim("conv-longer", OURS, says, (reaches(conv, aim),))
    both, lora, average = ask("both", "lora-temporal", "average")
    says = "With twice the steps, convolution and attention over time together do at least as well as attention alone."
    yield Claim("both-longer", OURS, says, (reaches(both, aim),))
    says = "With twice the steps, AIM does at least as well as LoRA with temporal adapters."
    yield Claim("lora-longer", OURS, says, (reaches(aim, lora),))
    says = "With twice the steps, adapters in every third block do as well as in all."
    yield Claim("third-longer", OURS, says, (reaches(third, aim),))
    says = "With twice the steps, the mean of two runs' weights is better than one run's."
    yield Claim("average-longer", OURS, says, (above(average, aim),))


def composition() -> Iterator[Claim]:
    """Yield the claims on twice as many motions."""
    aim, conv, spatial, tuned = of("composition", "joint", "conv", "spatial", "full-space-time")
    says = "With twice as many motions, too, it takes temporal adapters to see time."
    blind = Difference(((1, spatial),), high=MARGIN, less=BOUNDS["composition"])
    yield Claim("composition", "Table 1", says, (above(aim, spatial), blind))
    says = "With twice as many motions, too, AIM is better than full fine-tuning over space and time."
    yield Claim("composition-above-space-time", "Table 1", says, (above(aim, tuned),))
    says = "With twice as many motions, too, convolution over time does at least as well as attention over time."
    yield Claim("composition-conv", OURS, says, (reaches(conv, aim),))


def layers() -> Iterator[Claim]:
    """Yield the claims of Table 7, which is about Kinetics-400, for both variants."""
    for variant in VARIANTS:
        aim, top, alternate, bottom = of(variant, "joint", "top", "alternate", "bottom")
        says = f"On {variant}, adapters in the bottom half do much worse than in the others (80.7; 83.3, 83.2)."
        yield Claim(f"bottom-{variant}", "Table 7", says, (above(top, bottom), above(alternate, bottom)))
        says = f"On {variant}, the top half or every second block does about as well as all (83.3, 83.2; 83.9)."
        yield Claim(f"half-{variant}", "Table 7", says, (reaches(top, aim), reaches(alternate, aim)))


def ratio() -> Iterator[Claim]:
    """Yield the claims of Table 8, which is about Kinetics-400, for both variants."""
    for variant in VARIANTS:
        aim, small, large = of(variant, "joint", "ratio-0.0625", "ratio-0.5")
        says = f"On {variant}, accuracy grows with the ratio up to 0.25, and not beyond (83.3, 83.9, 83.8)."
        yield Claim(f"ratio-{variant}", "Table 8", says, (above(aim, small), equals(large, aim)))


def data() -> Iterator[Claim]:
    """Yield the claims of Figure 3."""
    numbers = (*sorted({job.clips for job in EXPERIMENTS["data"]}), AIM.clips)
    pairs = [(AIM._replace(clips=clips), TUNED._replace(clips=clips)) for clips in numbers]
    says = "AIM is ahead of full fine-tuning over space and time with any share of the clips."
    yield Claim("few-clips", "Figure 3", says, tuple(above(*pair) for pair in pairs))
    says = "AIM is ahead with 1 % of the clips (8.9 points), and further than with all."
    yield Claim("fewer-clips", "Figure 3", says, (above(*pairs[0]), gains(pairs[0], than=pairs[-1])))


def pretraining() -> Iterator[Claim]:
    """Yield the claim on the image model's weights."""
    says = "What is adapted has to be pre-trained (better weights, better AIM: 83.9, 78.8)."
    yield Claim("pretraining", "Table 6", says, each(above, "joint", "random"))


def input_adapter() -> Iterator[Claim]:
    """Yield the claim on the adapter that the paper adds for Something-Something v2."""
    says = "One more adapter, in front of temporal attention, helps where order counts."
    yield Claim("input", "Appendix A.2", says, (above(Cell("input"), AIM),))


def frames() -> Iterator[Claim]:
    """Yield the claims on frames."""
    longer, longest = AIM._replace(frames=16), AIM._replace(frames=32)
    says = "More frames are better (8, 16, 32: 66.4, 68.1, 69.1)."
    yield Claim("frames", "Table 3", says, (above(longer, AIM), above(longest, longer)))
    says = "Adapters for 8 frames do as well, resized to 16, without training."
    yield Claim("resized", OURS, says, (reaches(Cell("resized"), AIM),))


def classes() -> Iterator[Claim]:
    """Yield the claims on single classes."""

    def pair(other: str, measure: str) -> Cells:
        return of("order", "joint", other, measure=measure)

    says = "Against full fine-tuning, AIM is weaker on classes that differ in direction than on others."
    figure = gains(pair("full-space-time", ITSELF), than=pair("full-space-time", DIRECTED))
    yield Claim("nuances", "Figure 5", says, (figure,))
    says = "Over spatial adapters, AIM gains more on classes that differ in direction than on others."
    yield Claim("directions", OURS, says, (gains(pair("spatial", DIRECTED), than=pair("spatial", ITSELF)),))


def costs() -> Iterator[Claim]:
    """Yield the claims on costs."""
    other = "full-space-time"
    says = (
        "AIM trains few of the parameters (11 of 121 M), in less memory (7, 10 GB) and time (15, 20 hours), and is as "
        "accurate as full fine-tuning over space and time."
    )
    cheaper = [Ratio(column, "joint", other) for column in ("peak_mib", "step_ms")]
    trained = Ratio("trained", "joint", other, high=0.15)
    yield Claim("cheaper", "Tables 6, 9", says, (trained, *cheaper, *each(reaches, "joint", other)))
    says = "Adapters in the top half alone save memory and time."
    yield Claim("top-cheaper", "Section 5", says, (Ratio("peak_mib", "top", "joint"), Ratio("step_ms", "top", "joint")))
    says = "A step with convolution over time takes less time than AIM's."
    yield Claim("conv-faster", OURS, says, (Ratio("step_ms", "conv", "joint"),))
    says = "Linear adapters, merged, answer as fast as the image model, and as well as others."
    merged = Ratio("inference_ms", "linear", "frozen", high=1.05)
    yield Claim("merged", OURS, says, (merged, *each(reaches, "linear", "spatial")))


def execution() -> Iterator[Claim]:
    """Yield the claims on how a model is run."""
    for name, words, ways in (
        ("memory", "With less memory", ("balanced", "low")),
        ("fp8", "With frozen products in fp8", ("fp8",)),
        ("graphs", "By aim.graph, by steps that are not recorded, and layer by layer", ("graphs", "eager", "modules")),
    ):
        figures = tuple(figure for way in ways for figure in each(equals, way, "joint"))
        yield Claim(name, OURS, f"{words} the same is learned.", figures)


def ways() -> Iterator[Claim]:
    """Yield the claims on other ways to adapt."""
    says = "Convolution over time does at least as well as attention over time."
    yield Claim("conv", OURS, says, each(reaches, "conv", "joint"))
    says = "Where order counts, AIM is better than probes and LoRA."
    others = ("probe", "attentive", "lora", "lora-temporal")
    yield Claim("above-others", OURS, says, tuple(above(AIM, Cell(way)) for way in others))
    says = "Adapters in every third block do as well as in all."
    yield Claim("third", OURS, says, each(reaches, "third", "joint"))
    says = "The mean of two runs' weights is better than one run's."
    yield Claim("average", OURS, says, each(above, "average", "joint"))


def backbones() -> Iterator[Claim]:
    """Yield the claims on another image model."""
    clip = "clip-base"
    says = "With CLIP's weights, too, AIM sees time."
    yield Claim("clip-temporal", "Table 1", says, (above(*of("order", "joint", "spatial", backbone=clip)),))
    says = "With CLIP's weights, too, AIM is better than full fine-tuning over space and time (83.9, 82.0)."
    yield Claim("clip-above-space-time", "Table 6", says, each(above, "joint", "full-space-time", backbone=clip))


def defaults() -> Iterator[Claim]:
    """Yield the claim on the learning rate."""
    usual = rate_of("joint", "order")
    swept = {(job.variant, job.learning_rate): cell_of(job) for job in EXPERIMENTS["defaults"] if job.rate}
    says = f"With few clips and small steps no other learning rate is better than {usual:g}."
    yield Claim("rate", OURS, says, tuple(
        reaches(swept[variant, usual], cell) for (variant, rate), cell in swept.items() if rate != usual
    ))  # fmt: skip


# By section of docs/evidence.md.
CLAIMS: dict[str, tuple[Claim, ...]] = {
    section.__name__: tuple(section())
    for section in (
        ladder, longer, composition, layers, ratio, data, pretraining, input_adapter, frames, classes, costs, execution,
        ways, backbones, defaults,
    )
}  # fmt: skip
ALL = tuple(claim for claims in CLAIMS.values() for claim in claims)


def verdicts(results: Results) -> dict[str, str]:
    """Return the verdict on each claim, by its name."""
    evidence = Evidence(results)
    return {claim.name: judge(claim, evidence).verdict for claim in ALL}


def words_of(figure: Difference | Ratio) -> str:
    """Return what a figure is."""
    if isinstance(figure, Ratio):
        return f"{figure.column}: {NAMES[figure.way]} / {NAMES[figure.against]}"
    cells = [cell for _, cell in figure.terms]
    pairs = [f"{' − '.join(map(cell_words, pair))}, {_where(pair[0])}" for pair in (cells[:2], cells[2:]) if pair]
    words = pairs[0] if len(pairs) == 1 else " − ".join(f"({pair})" for pair in pairs)
    return f"{words} − {figure.less:.1f}" if figure.less else words


def cell_words(cell: Cell) -> str:
    """Return which runs a cell is of, but for the variant."""
    usual = Cell("")
    notes = (
        f" at {cell.frames} frames" * (cell.frames != usual.frames),
        f" at {cell.clips:,} clips" * (cell.clips != usual.clips),
        " on CLIP" * (cell.backbone != usual.backbone),
        ", twice the steps" * (cell.again == "longer"),
    )
    way, rate = way_and_rate(cell.way)
    return NAMES.get(way, way) + f" with a rate of {rate}" * bool(rate) + "".join(notes)


def _where(cell: Cell) -> str:
    return cell.variant if cell.measure == "accuracy" else f"{cell.variant}, {MEASURES.get(cell.measure, cell.measure)}"


def found_words(figure: Difference | Ratio, found: Interval | None) -> str:
    """Return a figure with its interval, in points or as a ratio."""
    if found is None:
        return NOT_RUN
    if isinstance(figure, Ratio):
        return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})".replace("-", "−")


def asked_words(figure: Difference | Ratio) -> str:
    """Return the limits of a figure."""
    limits = (f"> {figure.low:g}" * (figure.low > -math.inf), f"< {figure.high:g}" * (figure.high < math.inf))
    return ", ".join(filter(None, limits)).replace("-", "−")


def main(argv: list[str] | None = None) -> int:
    """Print every claim with its figures and its verdict, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.motion.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results")
    try:
        evidence = Evidence(load(parser.parse_args(argv).results))
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for claim in ALL:
        judgment = judge(claim, evidence)
        print(f"{judgment.verdict.upper()}: {claim.says} [{claim.name}; {claim.place}]")
        for figure, found in zip(claim.figures, judgment.intervals, strict=True):
            print(f"    {words_of(figure)}: {found_words(figure, found)}; asked {asked_words(figure)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
