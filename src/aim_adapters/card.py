"""Write a model card: metadata for the Hub, facts, and code that runs as written; or put them into one that exists."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aim_adapters.errors import CheckpointError, ConfigError, warn
from aim_adapters.parameters import ParameterCount
from aim_adapters.sources import file_mode, require_repo_id

BEGIN, END = "<!-- aim-adapters:begin -->", "<!-- aim-adapters:end -->"
_SECTION = re.compile(f"{BEGIN}(?:(?!{BEGIN}).)*?{END}", re.DOTALL)
_TASK = "video-classification"
_PAPER = "https://arxiv.org/abs/2302.03024"
# Whole image-text models are not called by their own name; some image towers read patches cut beforehand.
_CALLS = {
    "CLIPModel": "model.get_image_features",
    "SiglipModel": "model.get_image_features",
    "model": "model.encode_image",
}
_PATCHED = ("Siglip2Model", "Siglip2VisionModel", "Siglip2ForImageClassification")
_CITATION = """```bibtex
@inproceedings{yang2023aim,
  title = {{AIM}: Adapting Image Models for Efficient Video Action Recognition},
  author = {Yang, Taojiannan and Zhu, Yi and Xie, Yusheng and Zhang, Aston and Chen, Chen and Li, Mu},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
}
```"""


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

    Of an existing one, every word stays. Metadata that it lacks is added; lists are united; the base model, and
    ``license`` and ``metrics`` given here, replace its own. Our section, between two comments that Markdown does not
    show, is replaced where there is one, else added at the end.

    Args:
        config: Content of ``adapter_config.json``.
        parameters: Trained and all parameters of the video model.
        gmacs: Multiply-accumulates of one clip, in 10⁹.
        repo_id: Repository on the Hub that the code loads from; by default the directory it is run in.
        subfolder: Folder of the checkpoint in the repository.
        revision: Branch of the repository, if not the main one.
        existing: Text of the README so far, with its line ends as they are.
        license: Identifier of the license, such as ``"mit"``.
        datasets: What was trained on, as identifiers on the Hub.
        metrics: Results on the first of ``datasets``, such as ``{"accuracy": 0.847}``.
        tags: Further tags.

    Raises:
        ConfigError: ``datasets`` or ``tags`` is a string or holds something else, ``metrics`` lack a data set or a
            finite value, or the README's own ``model-index`` cannot be added to.
    """
    datasets, tags = _strings("datasets", datasets), _strings("tags", tags)
    results = _results(metrics or {}, datasets)
    metadata = _metadata(config, repo_id, license=license, datasets=datasets, results=results, tags=tags)
    text = existing or ""
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    line = "\r\n" if "\r\n" in text else "\n"
    front, rest = _merge_metadata(text[len(mark) :], metadata, line=line, ours=("base_model", "license", "model-index"))
    titled = re.search(r"^# ", _SECTION.sub("", rest), re.MULTILINE)
    where = {"subfolder": subfolder, "revision": revision}
    source = [json.dumps(repo_id or "."), *(f"{name}={json.dumps(value)}" for name, value in where.items() if value)]
    facts = _facts(config, parameters, gmacs) | {f"{name} on {datasets[0]}": f"{x:g}" for name, x in results.items()}
    body = _body(config, facts, ", ".join(source), level="##" if titled else "#")
    section = "\n".join((BEGIN, body, END)).replace("\n", line)
    if _SECTION.search(rest):
        return mark + front + _SECTION.sub(lambda match: section, rest, count=1)
    gap = line * (not rest.endswith("\n")) * bool(rest) + line * (not rest.endswith(line * 2))
    return mark + front + rest + gap + section + line


def _strings(what: str, values: Sequence[str]) -> list[str]:
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{what} must be a list of strings, got {values!r}")
    return list(values)


def _results(metrics: Mapping[str, float], datasets: Sequence[str]) -> dict[str, float]:
    if metrics and not datasets:
        raise ConfigError("metrics say nothing without the data they were measured on; pass datasets=['...'] as well")
    try:
        results = {name: float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError):
        results = {"": math.nan}
    if not all(isinstance(name, str) and math.isfinite(value) for name, value in results.items()):
        raise ConfigError(f"metrics must be finite numbers by name, got {metrics!r}")
    return results


# Metadata


def _metadata(
    config: Mapping[str, Any],
    repo_id: str | None,
    *,
    license: str | None,
    datasets: list[str],
    results: Mapping[str, float],
    tags: list[str],
) -> dict[str, Any]:
    from huggingface_hub import EvalResult, ModelCardData

    library, base = config.get("base_model_library"), _hub_id(config)
    evaluated = [
        EvalResult(
            task_type=_TASK, dataset_type=datasets[0], dataset_name=datasets[0], metric_type=name, metric_value=value
        )
        for name, value in results.items()
    ]
    data = ModelCardData(
        base_model=base,
        datasets=datasets or None,
        eval_results=evaluated or None,
        library_name="aim-adapters",
        license=license,
        model_name=(repo_id or "aim-adapters") if evaluated else None,
        pipeline_tag=_TASK,
        tags=["aim", "adapter", _TASK, *([library] if library else []), *tags],
        base_model_relation="adapter" if base else None,
    )
    fields: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return fields


def _merge_metadata(text: str, fields: dict[str, Any], *, line: str, ours: Sequence[str]) -> tuple[str, str]:
    """Return the metadata block of a README with fields added, and what follows it."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = REGEX_YAML_BLOCK.search(text)
    if match is None or not match.group(2).strip():
        return line.join(("---", _dump(fields, line), "---", "")), text[match.end() :] if match else text
    block, rest = match.group(2), text[match.end() :]
    try:
        theirs = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        theirs = error
    theirs = {} if theirs is None else theirs
    if not isinstance(theirs, dict):
        warn(f"the README's metadata is not a YAML mapping and was left as it is: {theirs}")
        return match.group(0), rest
    merged = {name: _merged(theirs.get(name), value, ours=name in ours) for name, value in fields.items()}
    changed = {name: value for name, value in merged.items() if value != theirs.get(name)}
    edited, expected = _edited(block, theirs, changed, line), {**theirs, **changed}
    if not _reads_as(edited, expected):
        edited = _dump(expected, line)  # anchors and the like cannot be edited in place
    return text[: match.start(2)] + edited + text[match.end(2) : match.end()], rest


def _edited(block: str, theirs: Mapping[str, Any], changed: Mapping[str, Any], line: str) -> str:
    """Return YAML with some values changed and added, and every other character as it is."""
    import yaml

    root = yaml.compose(block, Loader=yaml.SafeLoader)
    edited = block
    for key, value in reversed(root.value if root else []):  # from the end, so that positions stay right
        if key.value not in changed:
            continue
        old, new = theirs[key.value], changed[key.value]
        start, end, written = key.start_mark.index, _end(value, block), _dump({key.value: new}, line)
        if isinstance(old, list) and old and new[: len(old)] == old and not value.flow_style:
            indent = line + " " * value.start_mark.column
            start = end = end + len(re.split(r"[\r\n]", block[end:])[0])  # behind a comment on the last item
            written = "".join(indent + _dump([item], line) for item in new[len(old) :])
        edited = edited[:start] + written + edited[end:]
    added = {name: value for name, value in changed.items() if name not in theirs}
    return line.join((edited, _dump(added, line))) if added else edited


def _dump(value: Any, line: str) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, line_break=line)
    if yaml.safe_load(text) != value:  # some line ends of Unicode do not survive unescaped
        text = yaml.safe_dump(value, sort_keys=False, line_break=line)
    return text.rstrip("\r\n")


def _merged(theirs: Any, value: Any, *, ours: bool) -> Any:
    """Return one field of both: lists united; else theirs if there is one, except what the caller says today."""
    if theirs is None:
        return value
    if isinstance(value, list):
        if ours:
            return _merged_results(theirs, value)
        listed = [theirs] if isinstance(theirs, str) else theirs
        added = [each for each in value if each not in listed] if isinstance(listed, list) else []
        return [*listed, *added] if added else theirs
    return value if ours else theirs


def _merged_results(theirs: Any, value: list[dict[str, Any]]) -> Any:
    """Return a ``model-index`` with the metrics of one task and data set replaced or added."""
    merged, new = copy.deepcopy(theirs), value[0]["results"][0]
    try:
        results = merged[0]["results"]
        same = [r for r in results if r["task"]["type"] == _TASK and r["dataset"]["type"] == new["dataset"]["type"]]
        if not same:
            results.append(new)
            return merged
        types = [metric["type"] for metric in new["metrics"]]
        for result in same:
            kept = [metric for metric in result["metrics"] if metric["type"] not in types]
            result["metrics"] = kept + (new["metrics"] if result is same[0] else [])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ConfigError(
            "the README's model-index is not one that results can be added to; mend it, or pass no metrics"
        ) from error
    return merged


def _end(node: Any, block: str) -> int:
    """Return where a value's own text ends; a list or mapping reaches up to the next key, with the comments there."""
    if node.value and isinstance(node.value, list) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last, block)
    end: int = node.end_mark.index
    return len(block[:end].rstrip("\r\n"))


def _reads_as(block: str, expected: Mapping[str, Any]) -> bool:
    import yaml

    try:
        return bool(yaml.safe_load(block) == expected)
    except (yaml.YAMLError, ValueError):
        return False


def _hub_id(config: Mapping[str, Any]) -> str | None:
    """Return the repository of the base model, where its name says which one that is."""
    library, name = config.get("base_model_library"), _base_name(config) or ""
    scheme, _, rest = name.partition(":")
    if scheme in ("hf-hub", "hf_hub"):
        name = rest.partition("@")[0]
    elif library == "timm" and "." in name and "/" not in name:
        name = f"timm/{name}"
    elif library not in ("timm", "transformers") or (library == "timm" and "/" not in name):
        return None
    try:
        require_repo_id(name)
    except CheckpointError:
        return None
    return name


def _base_name(config: Mapping[str, Any]) -> str | None:
    """Return the name of the base model, unless it is a path, which is nobody else's business."""
    name = config.get("base_model_name_or_path") or ""
    path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or file_mode(name)
    return str(name) if name and not path else None


# Text


def _plain(text: object) -> str:
    """Return text without the characters that Markdown, HTML or a line end could give a meaning."""
    return re.sub(r"[^\w./:@+(),×% -]", "?", str(text))


def _facts(config: Mapping[str, Any], parameters: ParameterCount, gmacs: float | None) -> dict[str, str]:
    clip, classes = config["clip"], _classes(config)
    share = 100 * parameters.trainable / parameters.total
    facts = {
        "frames": f"{config['num_frames']}, {clip['stride']} apart" if clip["stride"] else config["num_frames"],
        "size": clip["size"] and " × ".join(map(str, clip["size"])) + " pixels",
        "mean": clip["mean"] and ", ".join(map(str, clip["mean"])),
        "std": clip["std"] and ", ".join(map(str, clip["std"])),
        "classes": classes,
        "parameters": f"{parameters.trainable:,} trained of {parameters.total:,} ({share:.1f} %)",
        "cost": gmacs and f"{gmacs:{',.1f' if gmacs >= 1 else '.2g'}} GMACs for one clip",
    }
    return {name: str(value) for name, value in facts.items() if value}


def _classes(config: Mapping[str, Any]) -> int | None:
    labels = config["clip"]["labels"]
    return len(labels) if labels else config["num_classes"]


def _body(config: Mapping[str, Any], facts: Mapping[str, str], source: str, *, level: str) -> str:
    name, hub_id = _base_name(config), _hub_id(config)
    shown = f"`{_plain(name.removeprefix('hf-hub:'))}`" if name else "an image model"
    linked = f"[{shown}](https://huggingface.co/{hub_id})" if hub_id else shown
    purpose = "a video classifier" if _classes(config) else "a video model"
    rows = "\n".join(f"| {_plain(fact)} | {_plain(value)} |" for fact, value in facts.items())
    return f"""{level} AIM adapters for {shown}

[AIM]({_PAPER}) adapters that make {linked} {purpose}.

| | |
|---|---|
{rows}

{level}# Use

{_usage(config, source, named=name is not None)}

{level}# Citation

{_CITATION}"""


def _usage(config: Mapping[str, Any], source: str, *, named: bool) -> str:
    load = f"model = aim.load_video_model({source})"
    if not named:
        load = f"""model = ...  # the image model these adapters were trained on; its name was not recorded: build it
aim.load_adapters(model, {source})
model.eval()"""
    first = f"""`pip install aim-adapters`, then:

```python
import aim_adapters as aim
import torch

{load}
{_call(config)}
```"""
    own = f"""Or put them on a copy of the image model that you have already:

```python
aim.load_adapters(model, {source})
```"""
    return f"{first}\n\n{own}" if named else first


def _call(config: Mapping[str, Any]) -> str:
    """Return the lines of code that make a clip and run the model."""
    clip, layout, arguments = config["clip"], config["input_layout"], config.get("base_model_arguments", {})
    part = arguments.get("architecture") or arguments.get("part")
    if part in _PATCHED:
        return "# call it with what its image processor makes of the frames of all clips"
    sizes = {"frames": config["num_frames"], "channels": len(clip["mean"] or "RGB")}
    if layout == "BCTHW":
        sizes = dict(reversed(sizes.items()))
    height, width = clip["size"] or (224, 224)
    sizes |= {"height": height, "width": width}
    if layout != "auto" or config["num_frames"] != sizes["channels"]:  # else the two layouts cannot be told apart
        sizes = {"clips": 1, **sizes}
    shape, names = ", ".join(map(str, sizes.values())), ", ".join(sizes)
    return f"""video = torch.rand({shape})  # [{names}]; normalise yours
with torch.no_grad():
    output = {_CALLS.get(part, "model")}(video)"""
