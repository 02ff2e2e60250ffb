"""One HTML file of a clip, its attention and what the model answers; scripts and styles are inside."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from aim_adapters.analysis.viewer.packing import PackedMaps, fit_budget, round_to
from aim_adapters.version import __version__

LIMIT = 9_500_000  # bytes of a page; what does not fit is left out, and the page says so
_QUALITY = 92  # of JPEG
_SCRIPTS = ("data.js", "drawing.js", "viewer.js", "panels.js")


@dataclass(frozen=True)
class Variant:
    """What one set of adapters answers, and where it looks.

    Attributes:
        name: Its name.
        answers: Its most probable classes, with their probabilities.
        maps: Its maps, packed.
        blocks: Index and number of heads of each block that is shown.
        temporal_blocks: Those that attend over time.
        instead: What is true of the frames if there are none.
    """

    name: str
    answers: tuple[tuple[str, float], ...]
    maps: tuple[PackedMaps, ...]
    blocks: tuple[tuple[int, int], ...]
    temporal_blocks: tuple[int, ...]
    instead: str = "each frame is looked at alone"


def build_page(
    title: str, frames: Tensor, variants: Sequence[Variant], scene: Mapping[str, Any], *, limit: int = LIMIT
) -> str:
    """Return the page.

    Args:
        title: Name of the clip.
        frames: What the model saw, before normalization: uint8 ``[T, 3, H, W]``.
        variants: The variants, the one that is shown first last.
        scene: What else the page says, as JSON-ready values; ``notes`` is completed.
        limit: Bytes of the page.
    """
    pictures = [_jpeg(frame) for frame in frames]
    text = {name: _asset(name) for name in ("viewer.html", "viewer.css")}
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    fixed = sum(map(len, pictures)) + len(script) + sum(map(len, text.values())) + 100_000
    kept, missing = fit_budget([list(variant.maps) for variant in variants], max(limit - fixed, 0) * 3 // 4)
    notes = [*scene["notes"], *(f"Left out to keep this file small: {what}." for what in missing)]
    parts = [packed for maps in kept for packed in maps]
    document = {
        **scene,
        "notes": notes,
        "frames": pictures,
        "size": list(frames.shape[-2:]),
        "kinds": ["attention", *(kind for kind in ("rollout", "relevance") if any(p.kind == kind for p in parts))],
        "parts": [packed.kind for packed in parts],
        "variants": [_described(variant, maps, parts) for variant, maps in zip(variants, kept, strict=True)],
    }
    style = text["viewer.css"]
    values = {
        "title": html.escape(title),
        "version": html.escape(__version__),
        "policy": f"default-src 'none'; img-src data:; script-src {_digest(script)}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "scene": _inside_script(document),
        "parts": "\n".join(
            f'<script type="text/plain" id="part-{index}">{base64.b64encode(packed.content).decode()}</script>'
            for index, packed in enumerate(parts)
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text["viewer.html"])


def _described(variant: Variant, maps: Sequence[PackedMaps], parts: Sequence[PackedMaps]) -> dict[str, Any]:
    places = {id(packed): index for index, packed in enumerate(parts)}
    return {
        "name": variant.name,
        "blocks": [{"index": index, "heads": heads} for index, heads in variant.blocks],
        "temporal": list(variant.temporal_blocks),
        "instead": variant.instead,
        "maps": [
            {"kind": packed.kind, "part": places[id(packed)], **entry} for packed in maps for entry in packed.index
        ],
        "answers": [{"name": name, "probability": round_to(value)} for name, value in variant.answers],
    }


def _jpeg(frame: Tensor) -> str:
    """Return a frame ``[3, H, W]`` as a data URI."""
    picture = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()))
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the source expression that allows exactly this text (Content Security Policy)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inside_script(value: object) -> str:
    """Return JSON that no HTML parser can take for the end of a script, or for markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
