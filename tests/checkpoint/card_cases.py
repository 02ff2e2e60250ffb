"""Make cards and take them apart."""

from __future__ import annotations

import re
from typing import Any

import yaml
from hypothesis import strategies as st

from aim_adapters.checkpoint.card import make_card, section_marks
from aim_adapters.parameters import ParameterCount

BEGIN, END = section_marks(None)
COUNT = ParameterCount(10_966_672, 96_764_560)
CONFIG: dict[str, Any] = {
    "num_frames": 8,
    "num_classes": 400,
    "input_layout": "auto",
    "base_model_name_or_path": "vit_base_patch16_clip_quickgelu_224.openai",
    "base_model_library": "timm",
    "base_model_arguments": {},
    "clip": {
        "frames": 8, "stride": 16, "size": [224, 224],
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "labels": None,
    },
}  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30)


def config(**changes: Any) -> dict[str, Any]:
    clip = {**CONFIG["clip"], **changes.pop("clip", {})}
    return {**CONFIG, "clip": clip, **changes}


def card(settings: dict[str, Any] | None = None, **arguments: Any) -> str:
    return make_card(CONFIG if settings is None else settings, **{"parameters": COUNT, **arguments})


def metadata(text: str) -> dict[str, Any]:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match.group(1))


def metadata_block(text: str) -> str:
    return text[: text.index("---\n", 4) + 4]


def section(text: str) -> str:
    return text[text.index(BEGIN) : text.index(END)]


def code(text: str) -> list[str]:
    return re.findall(r"^```python\r?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
