"""The metadata at the top of a README, in YAML: read within limits, whoever wrote it, and added to without a loss."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from aim_adapters.errors import ConfigError, warn

TASK = "video-classification"

# Far beyond the metadata of a model card, and read in a second or two.
_MOST = 2**16
_DEEPEST = 32


def merge_metadata(text: str, fields: dict[str, Any], line: str) -> tuple[str, str]:
    """Return the metadata block of a README with fields added, and the text after it.

    A block that is not a YAML mapping, or that is not read (too long, too deep, with aliases, with a key twice), is
    left as it is, with a warning.

    Args:
        text: The README, without a byte order mark.
        fields: The metadata to add.
        line: The README's line ending.

    Raises:
        ConfigError: ``fields`` has results, and the README's ``model-index`` cannot be extended.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = REGEX_YAML_BLOCK.search(text)
    if match is None or not match.group(2).strip():
        return line.join(("---", _dump(fields, line), "---", "")), text[match.end() :] if match else text
    block, rest = match.group(2), text[match.end() :]
    theirs = _parse(block + line)
    theirs = {} if theirs is None else theirs
    if not isinstance(theirs, dict):
        warn(f"the README's metadata is not a plain YAML mapping and was left as it is: {theirs!s:.300}")
        return match.group(0), rest
    merged = {name: _merged(name, theirs.get(name), value) for name, value in fields.items()}
    changed = {name: value for name, value in merged.items() if value != theirs.get(name)}
    if changed:
        expected = {**theirs, **changed}
        longer = line.join((block, _dump(changed, line)))
        # Lines cannot be added to a block in braces or with indentation, so the result is parsed and compared; by repr,
        # as YAML may contain NaN.
        added = not changed.keys() & theirs.keys() and repr(_parse(longer + line)) == repr(expected)
        block = longer if added else _rewritten(block + line, theirs, changed, line)
    return text[: match.start(2)] + block + text[match.end(2) : match.end()], rest


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The safe loader, without what makes a short text large, or loses a part of it."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, of which a few lines can stand for gigabytes, and lists inside lists inside lists."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write out what it stands for")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"its values lie more than {_DEEPEST} deep inside each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a key that comes twice, of which the safe loader keeps the last value, and merge keys (``<<``)."""
        if isinstance(node, yaml.MappingNode) and any(key.tag.endswith(":merge") for key, _ in node.value):
            raise yaml.YAMLError("it has a merge key (<<); write out what it stands for")
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError(f"a key comes twice among {[key.value for key, _ in node.value]!s:.200}")
        return mapping


def _parse(block: str) -> Any:
    """Return the value of a YAML text, or the error if it is invalid or exceeds the limits."""
    if len(block) > _MOST:
        return ValueError(f"it has {len(block):,} characters, the most that is read is {_MOST:,}")
    try:
        value = _Loader(block).get_single_data()
        repr(value)  # an integer may be too long to be printed
        return value
    # Besides YAML's own errors: an invalid date, number or flag.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return error


def _dump(value: Any, line: str) -> str:
    return _text(_node(value), value, line)


def _node(value: Any) -> Any:
    return yaml.representer.SafeRepresenter(sort_keys=False).represent_data(value)


def _text(node: Any, value: Any, line: str) -> str:
    """Return a node as YAML without its last line ending; some Unicode line separators are lost unless escaped."""
    text: str = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, line_break=line)
    if repr(_parse(text)) != repr(value):
        text = yaml.serialize(node, Dumper=yaml.SafeDumper, line_break=line)
    return text.removesuffix(line)


def _rewritten(block: str, theirs: dict[str, Any], changed: dict[str, Any], line: str) -> str:
    """Return a YAML mapping with changed values. Others stay as they are written, such as ``1.10``; comments do not."""
    whole = _Loader(block).get_single_node() if theirs else _node({})
    names = [key.value if key.tag.endswith(":str") else None for key, _ in whole.value]
    for name, value in changed.items():
        place = names.index(name) if name in theirs else len(whole.value)
        old, node = theirs.get(name), _node(value)
        if isinstance(old, list) and value[: len(old)] == old and whole.value[place][1].tag.endswith(":seq"):
            node.value[: len(old)] = whole.value[place][1].value
        whole.value[place : place + 1] = [(_node(name), node)]
    return _text(whole, {**theirs, **changed}, line)


def _merged(name: str, theirs: Any, value: Any) -> Any:
    """Return one field of the merged metadata: lists are joined, the caller's base model and license replace others."""
    if theirs is None or name in ("base_model", "license"):
        return value
    if name == "model-index":
        return _merged_results(theirs, value)
    if name not in ("datasets", "tags"):
        return theirs
    listed = [theirs] if isinstance(theirs, str) else theirs
    added = [item for item in value if item not in listed] if isinstance(listed, list) else []
    return [*listed, *added] if added else theirs


def _merged_results(theirs: Any, ours: list[dict[str, Any]]) -> list[Any]:
    """Return a ``model-index`` with our result added, which replaces equal metrics of the same task and dataset."""
    (new,), kept = ours[0]["results"], []
    types = [metric["type"] for metric in new["metrics"]]
    try:
        for result in theirs[0]["results"]:
            if (result["task"]["type"], result["dataset"]["type"]) == (TASK, new["dataset"]["type"]):
                result = {**result, "metrics": [metric for metric in result["metrics"] if metric["type"] not in types]}
                if not result["metrics"]:
                    continue
            kept.append(result)
        return [{**theirs[0], "results": [*kept, new]}, *theirs[1:]]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ConfigError(
            "the README's model-index is not one that results can be added to; repair it, or pass no metrics"
        ) from error
