"""Model cards: metadata for the Hub, facts, and code that runs as written, in a new README or an existing one."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from aim_adapters.arguments import optional_text, require_text, require_texts, shown
from aim_adapters.backbones import BaseFacts, base_facts
from aim_adapters.checkpoint.front_matter import TASK, merge_metadata
from aim_adapters.errors import CheckpointError, ConfigError, warn
from aim_adapters.parameters import ParameterCount
from aim_adapters.storage import file_mode, read_bytes, require_repo_id

_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_MOST = 2**23  # characters of a README
_PAPER = "https://arxiv.org/abs/2302.03024"
_CITATION = """```bibtex
@inproceedings{yang2023aim,
  title = {{AIM}: Adapting Image Models for Efficient Video Action Recognition},
  author = {Yang, Taojiannan and Zhu, Yi and Xie, Yusheng and Zhang, Aston and Chen, Chen and Li, Mu},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
}
```"""


class CardFacts(NamedTuple):
    """What a caller says about a model for its card; the arguments of `make_card`, checked."""

    license: str | None
    datasets: list[str]
    metrics: dict[str, float]
    tags: list[str]


def card_facts(
    *, license: str | None, datasets: Sequence[str], metrics: Mapping[str, float] | None, tags: Sequence[str]
) -> CardFacts:
    """Check what a caller says about a model for its card.

    Args:
        license: Identifier of the license.
        datasets: Training data, as identifiers on the Hub.
        metrics: Results on the first of ``datasets``.
        tags: Further tags.

    Raises:
        ConfigError: As `make_card`.
    """
    license = optional_text("license", license)
    datasets = require_texts("datasets", datasets, expected="a list of strings")
    tags = require_texts("tags", tags, expected="a list of strings")
    metrics = {} if metrics is None else metrics
    refusal = f"metrics must be finite numbers by name, got {shown(metrics)}"
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise ConfigError(refusal)
    if metrics and not datasets:
        raise ConfigError("metrics say nothing without the data they were measured on; pass datasets=['...'] as well")
    names = [require_text("each name in metrics", name) for name in metrics]
    try:
        results = {name: float(metrics[name]) for name in names}
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(refusal) from error
    if not all(map(math.isfinite, results.values())):
        raise ConfigError(refusal)
    return CardFacts(license, datasets, results, tags)


def make_card(
    config: Mapping[str, Any],
    *,
    parameters: ParameterCount,
    gmacs: float | None = None,
    repo_id: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    existing: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Return the text of a README.

    The text of an existing README is kept. Missing metadata is added below its own, and lists are merged; the base
    model, and ``license`` and ``metrics`` if given, replace existing values. If a value changes, all metadata is
    written again, and YAML comments in it are lost. This package's section, between two comments that Markdown does not
    show, is replaced, or added at the end. Each ``subfolder`` has its own section. A README of more than 8 million
    characters, and metadata that is not a plain YAML mapping, are left as they are, with a warning.

    Args:
        config: Content of ``adapter_config.json``.
        parameters: Numbers of trained and all parameters of the video model.
        gmacs: Multiply-accumulates of one clip, in 10⁹.
        repo_id: Repository on the Hub that the code loads from; by default the working directory.
        subfolder: Folder of the checkpoint in the repository.
        revision: Branch of the repository, if not the main one.
        existing: Text of the existing README, with its original line endings.
        license: Identifier of the license, such as ``"mit"``.
        datasets: Training data, as identifiers on the Hub.
        metrics: Results on the first of ``datasets``, such as ``{"accuracy": 0.847}``.
        tags: Further tags.

    Raises:
        ConfigError: ``datasets`` or ``tags`` is not a list of strings, ``license`` not a string, ``metrics`` has no
            dataset or a value that is not a finite number, or the README's own ``model-index`` cannot be extended.
    """
    license, datasets, results, tags = card_facts(license=license, datasets=datasets, metrics=metrics, tags=tags)
    base = _base_facts(config)
    metadata = _metadata(config, base, license=license, datasets=datasets, tags=tags)
    if results:
        metadata["model-index"] = _model_index(repo_id or "aim-adapters", datasets[0], results)
    text = existing or ""
    if len(text) > _MOST:
        warn(f"the README has {len(text):,} characters, more than {_MOST:,}, and was left as it is; shorten it")
        return text
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    line = "\r\n" if "\r\n" in text else "\n"
    front, rest = merge_metadata(text[len(mark) :], metadata, line)
    place = _find_section(rest, subfolder)
    before, after = (rest[: place.start], rest[place.stop :]) if place else (rest, "")
    titled = re.search(r"^# ", _FENCED.sub("", before + after), re.MULTILINE)
    options = {"subfolder": subfolder, "revision": revision}
    source = [json.dumps(repo_id or "."), *(f"{name}={json.dumps(value)}" for name, value in options.items() if value)]
    facts = _facts(config, parameters, gmacs) | {f"{name} on {datasets[0]}": f"{x:g}" for name, x in results.items()}
    begin, end = section_marks(subfolder)
    body = _body(config, base, facts, ", ".join(source), level="##" if titled else "#")
    section = "\n".join((begin, body, end)).replace("\n", line)
    if place:
        return mark + front + before + section + after
    gap = line * (not rest.endswith("\n")) * bool(rest) + line * (not rest.endswith(line * 2))
    return mark + front + rest + gap + section + line


def directory_card(path: Path, config: Mapping[str, Any], *, parameters: ParameterCount) -> str | None:
    """Return the text of a directory's README, new or brought up to date; None to leave an existing one alone.

    One without this package's section is left alone. So is one that cannot be read, with a warning.

    Args:
        path: The README.
        config: Content of ``adapter_config.json``.
        parameters: Numbers of trained and all parameters of the video model.
    """
    existing = None
    if os.path.lexists(path):
        try:
            existing = read_bytes(path).decode()  # bytes keep the line endings
        except CheckpointError as error:
            warn(f"{error}; it is left as it is, and no model card is written")
            return None
        except UnicodeDecodeError:  # it has no section of this package
            return None
    if existing is not None and not _find_section(existing, None):
        return None
    return make_card(config, parameters=parameters, existing=existing)


def section_marks(subfolder: str | None) -> tuple[str, str]:
    """Return the HTML comments before and after the section of a checkpoint.

    Args:
        subfolder: Folder of the checkpoint in the repository, or None for its root. It is escaped, so that its name
            cannot close the comment.
    """
    folder = quote(subfolder).replace("--", "-%2D") + " " if subfolder else ""
    return f"<!-- aim-adapters:begin {folder}-->", f"<!-- aim-adapters:end {folder}-->"


def _find_section(text: str, subfolder: str | None) -> slice | None:
    """Return where the section of a checkpoint stands in a README: from its mark to its end, with no other between."""
    begin, end = section_marks(subfolder)
    any_begin = section_marks(None)[0].removesuffix("-->")
    since, stop = 0, text.find(end)
    while stop >= 0:  # text is searched once only, however many marks it has
        start = text.rfind(any_begin, since, stop)
        if start >= 0 and text.startswith(begin, start):
            return slice(start, stop + len(end))
        since, stop = stop, text.find(end, stop + 1)
    return None


# Metadata


def _metadata(
    config: Mapping[str, Any], base: BaseFacts, *, license: str | None, datasets: list[str], tags: list[str]
) -> dict[str, Any]:
    library = config.get("base_model_library")
    fields = {
        "base_model": base.hub_id,
        "base_model_relation": "adapter" if base.hub_id else None,
        "datasets": datasets or None,
        "library_name": "aim-adapters",
        "license": license,
        "pipeline_tag": TASK,
        "tags": list(dict.fromkeys(["aim", "adapter", TASK, *([library] if library else []), *tags])),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _model_index(model: str, dataset: str, results: Mapping[str, float]) -> list[dict[str, Any]]:
    metrics = [{"type": name, "value": value} for name, value in results.items()]
    result = {"task": {"type": TASK}, "dataset": {"name": dataset, "type": dataset}, "metrics": metrics}
    return [{"name": model, "results": [result]}]


def _base_facts(config: Mapping[str, Any]) -> BaseFacts:
    """Return what is known about the base model; its repository only if that is a valid id."""
    library, arguments = config.get("base_model_library") or "", config.get("base_model_arguments", {})
    facts = base_facts(library, _base_name(config) or "", arguments)
    try:
        require_repo_id(facts.hub_id or "")
    except CheckpointError:
        return facts._replace(hub_id=None)
    return facts


def _base_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the base model, or None if it is a local path, which is private."""
    name = config.get("base_model_name_or_path") or ""
    path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or file_mode(name)
    return str(name) if name and not path else None


# Text


def _plain(text: object) -> str:
    """Return text with ``?`` for line endings and for characters that have a meaning in Markdown or HTML."""
    return re.sub(r"[^\w./:@+(),×% -]", "?", str(text))


def _facts(config: Mapping[str, Any], parameters: ParameterCount, gmacs: float | None) -> dict[str, str]:
    clip, classes = config["clip"], _classes(config)
    share = 100 * parameters.trainable / parameters.total
    facts = {
        "frames": f"{config['num_frames']}, {clip['stride']} apart" if clip["stride"] else config["num_frames"],
        "size": clip["size"] and " × ".join(map(str, clip["size"])) + " pixels",
        "mean": clip["mean"] and ", ".join(map(str, clip["mean"])),
        "std": clip["std"] and ", ".join(map(str, clip["std"])),
        "time": _time(config),
        "classes": classes,
        "adapters": config.get("adapter_activation") == "none" and "linear",
        "parameters": f"{parameters.trainable:,} trained of {parameters.total:,} ({share:.1f} %)",
        "cost": gmacs and f"{gmacs:{',.1f' if gmacs >= 1 else '.2g'}} GMACs for one clip",
    }
    return {name: str(value) for name, value in facts.items() if value}


def _time(config: Mapping[str, Any]) -> str | None:
    """Return by what the model sees time, if not by attention alone."""
    convolution = f"a convolution over {config.get('conv_kernel')} frames"
    return {"conv": convolution, "both": f"{convolution}, and attention"}.get(config.get("temporal", ""))


def _classes(config: Mapping[str, Any]) -> int | None:
    labels = config["clip"]["labels"]
    return len(labels) if labels else config["num_classes"]


def _body(config: Mapping[str, Any], base: BaseFacts, facts: Mapping[str, str], source: str, *, level: str) -> str:
    name = _base_name(config)
    shown = f"`{_plain(name.removeprefix('hf-hub:'))}`" if name else "an image model"
    linked = f"[{shown}](https://huggingface.co/{base.hub_id})" if base.hub_id else shown
    purpose = "a video classifier" if _classes(config) else "a video model"
    rows = "\n".join(f"| {_plain(fact)} | {_plain(value)} |" for fact, value in facts.items())
    load, onto_own = f"model = aim.load_video_model({source})", f"aim.load_adapters(model, {source})"
    if name:
        other = f"\n\nOr put them on a copy of the image model that you have already:\n\n```python\n{onto_own}\n```"
    else:
        image_model = "...  # the image model these adapters were trained on; its name was not recorded: build it"
        load, other = f"model = {image_model}\n{onto_own}\nmodel.eval()", ""
    return f"""{level} AIM adapters for {shown}

[AIM]({_PAPER}) adapters that make {linked} {purpose}.

| | |
|---|---|
{rows}

{level}# Use

`pip install aim-adapters`, then:

```python
import aim_adapters as aim
import torch

{load}
{_call(config, base)}
```{other}

{level}# Citation

{_CITATION}"""


def _call(config: Mapping[str, Any], base: BaseFacts) -> str:
    """Return the code that makes a clip and runs the model on it."""
    clip, layout = config["clip"], config["input_layout"]
    if base.call is None:
        return "# call it with what its image processor makes of the frames of all clips"
    sizes = {"frames": config["num_frames"], "channels": len(clip["mean"] or "RGB")}
    if layout == "BCTHW":
        sizes = dict(reversed(sizes.items()))
    height, width = clip["size"] or (224, 224)
    sizes |= {"height": height, "width": width}
    if (
        layout != "auto" or config["num_frames"] != sizes["channels"]
    ):  # a batch of 5-D input; else its layout is ambiguous, so flat frames
        sizes = {"clips": 1, **sizes}
    shape, names = ", ".join(map(str, sizes.values())), ", ".join(sizes)
    return f"""video = torch.randn({shape})  # [{names}]; normalize yours
with torch.no_grad():
    output = {base.call}(video)"""
