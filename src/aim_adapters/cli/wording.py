"""Errors and warnings of the library in the terms of the command line: options where it names arguments."""

from __future__ import annotations

import re

# Arguments of the library that are options here.
OPTIONS = {
    name: "--" + name.removeprefix("num_").replace("_", "-")
    for name in (
        "accumulate", "adapter_activation", "allow_empty", "base_model", "batch_size", "bottleneck", "cache_gib",
        "conv_kernel", "conv_layers", "device", "dummy_data", "ema", "epochs", "image_size", "layers", "learning_rate",
        "log_with", "max_skipped", "memory", "nested", "num_frames", "out", "precision", "pretrained", "recipe",
        "resume", "seed", "sharding", "target", "temporal", "top", "views", "workers",
    )
}  # fmt: skip

# What the library advises where the command line has another way.
_ADVICE = (
    ("pass resume='auto' to begin", "leave out --resume to begin"),
    ("pass resume='auto'", "leave out --no-resume"),
    ("choose another out", "choose another --out"),
    (
        "build and wrap the model as it was built for this run",
        "take the --model, --frames, --bottleneck, --layers and --temporal of that run, or choose another --out",
    ),
    (r"aim\.list_recipes\(\) shows all", "`aim-adapters recipes` lists all"),
    (r"Wrap the model that it is for with aim\.\w+\(model[^)]*\)", "Choose the --model that it is for"),
    (r"aim\.set_execution\(model, ([^()]*)\)", r"\1"),
    (r", or pass columns=\(…, …\)", ""),
    (r", or call aim\.set_num_frames\(model, [^)]*\)", ""),
    (
        r"Or build it yourself and call aim\.load_adapters\(model, [^)]*\)",
        "--base-model takes a directory that holds it",
    ),
    (
        r"build an aim\.ClipSpec\([^)]*\) and pass it as spec=",
        "take a --model that says it, or a directory of it with a preprocessor_config.json that does",
    ),
    (r"[;,] \.skipped lists them", ""),
    (", then with force_download=True", ""),
)

# Not in a path, nor in what somebody else named so.
_BEFORE, _AFTER = r"(?<![\w/.'\"=-])", r"(?![\w/'\"=)-]|\.\w)"
_GIVEN = re.compile(rf"{_BEFORE}({'|'.join(OPTIONS)})=('[^']*'|[\w.+-]*\w)")
_NAMED = re.compile(rf"{_BEFORE}({'|'.join(name for name in OPTIONS if '_' in name)}){_AFTER}")
_REFUSED = re.compile(rf"^({'|'.join(OPTIONS)})(?= must be )")


def in_options(text: str) -> str:
    """Return a message with options in place of arguments: ``--batch-size 4`` for ``batch_size=4``.

    Args:
        text: A message of the library.
    """
    for pattern, words in _ADVICE:
        text = re.sub(pattern, words, text)
    text = _GIVEN.sub(_given, text)
    text = _REFUSED.sub(lambda found: OPTIONS[found[1]], text)
    return _NAMED.sub(lambda found: OPTIONS[found[1]], text)


def _given(found: re.Match[str]) -> str:
    option, value = OPTIONS[found[1]], found[2].strip("'")
    if value == "False":
        return "--no-" + option.removeprefix("--")
    return option if value == "True" else f"{option} {value}"
