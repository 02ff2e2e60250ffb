"""What tables and pictures of results share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Results = dict[str, Any]  # of each file, by its name; of the benchmark of motion, its records
PASS = "forward+backward"
NOTHING = "Not measured."
ATTENTION_PEERS = {
    "triton": "Triton",
    "sdpa": "SDPA, rearranged",
    "sdpa compiled": "SDPA, compiled",
    "eager": "eager",
    "flex": "FlexAttention",
}
MODELS = {
    "aim": "AIM",
    "aim-balanced": "AIM, `balanced`",
    "aim-low": "AIM, `low`",
    "aim-fp32": "AIM, frozen weights in float32",
    "aim-fp8": "AIM, frozen products in fp8",
    "plain": "AIM, layer by layer, SDPA",
    "reference": "AIM, layer by layer, attention over frames written out, frozen weights in float32",
    "full": "ViT on single frames, fully fine-tuned",
    "timesformer": "TimeSformer, fully fine-tuned",
    "swin3d": "Video Swin, fully fine-tuned",
}
MODES = {
    "eager": "no", "recorded": "no, CUDA graphs", "blocks": "each block", "whole": "whole model",
    "graph": "whole model, CUDA graphs",
}  # fmt: skip


def measured(result: dict[str, Any], *tables: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of temporal attention, both passes together."""
    return (row for row in result["rows"] if row["case"]["table"] in tables and row["pass"] == PASS)


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; a title that begins with a space is that of a column of words."""
    titles = head.split("|")
    lines = ["|".join(("", *(f" {title.strip()} " for title in titles), ""))]
    lines.append("|".join(("", *("---" if title.startswith(" ") else "---:" for title in titles), "")))
    body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines + body) if body else NOTHING


def ms(seconds: float) -> str:
    """Return milliseconds to three digits, or whole ones."""
    return f"{1e3 * seconds:#.3g}".rstrip(".") if abs(seconds) < 0.9995 else f"{1e3 * seconds:,.0f}"


def spread(entry: dict[str, Any]) -> str:
    """Return the first and the ninth decile in milliseconds."""
    return f"{ms(entry['p10'])} to {ms(entry['p90'])}"


def verdict(met: bool) -> str:
    """Say how a target came out."""
    return "met" if met else "MISSED"


def target_row(words: str, entry: dict[str, Any], digits: int) -> tuple[str, str, str, str]:
    """Return what is held against a limit, the number to some digits, the limit, and how it came out."""
    limit = f"≥ {entry['at_least']:g}" if entry["at_most"] is None else f"≤ {entry['at_most']:g}"
    return f"{words}, {entry['what']}", f"{entry['value']:.{digits}f}", limit, verdict(entry["met"])


def gib(size: float) -> str:
    """Return bytes in GiB."""
    return f"{size / 2**30:.1f}"
