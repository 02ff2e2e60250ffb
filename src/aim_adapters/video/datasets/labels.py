"""Names of classes: found, compared, looked up, and mirrored."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from aim_adapters.arguments import shown
from aim_adapters.clip_spec import named_classes
from aim_adapters.errors import ConfigError


class Labeled(Protocol):
    """What has names of classes."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names, in the order of the classes."""


def normalized(name: str) -> str:
    """Return a name as it is compared: macOS stores "é" as two characters, others as one.

    Args:
        name: Name of a class.
    """
    return unicodedata.normalize("NFC", name)


def class_names(found: Iterable[str], what: str) -> tuple[str, ...]:
    """Return the names of classes in order.

    Args:
        found: The names as they were found, in any order and number.
        what: What they are, for the message.

    Raises:
        ConfigError: Two differ in case, surrounding spaces or Unicode normalization only.
    """
    names: dict[str, str] = {}
    for name in sorted(set(found)):
        other = names.setdefault(normalized(name).strip().casefold(), name)
        if other != name:
            raise ConfigError(
                f"{what} {other!r} and {name!r} would be two classes with one name; give them one name, or two that "
                "differ in more than case, spaces and Unicode normalization"
            )
    return tuple(sorted(map(normalized, names.values())))


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes that the caller has given.

    Args:
        labels: The names, in the order of the classes.

    Raises:
        ConfigError: They are no sequence of different texts.
    """
    names = tuple(named_classes(labels, None)[0] or ())
    if len(set(map(normalized, names))) < len(names):
        raise ConfigError(f"two of the labels differ in Unicode normalization only: {shown(names)}")
    return names


def class_indices(
    entries: Sequence[str | int], labels: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes, and the index of the class of each entry.

    Args:
        entries: Label of each video: its class's name or index.
        labels: Names of the classes in their order, or None: the names found, sorted.
        where: Returns where an entry stands, for messages.

    Raises:
        ConfigError: A label is not in the map, or the integers found leave out a class.
    """
    texts = {entry: normalized(str(entry)) for entry in set(entries)}
    numbers = {entry: int(text) for entry, text in texts.items() if re.fullmatch(r"[+-]?\d{1,9}", text)}
    if labels is None and len(numbers) < len(texts):
        labels = class_names(map(str, texts), "the labels")
    elif labels is None:
        labels = tuple(map(str, range(len(texts))))
        if set(numbers.values()) != set(range(len(texts))):
            low, high = min(numbers.values()), max(numbers.values())
            raise ConfigError(
                f"the labels are {len(texts)} integers from {low} to {high}, not 0 to {len(texts) - 1}; pass "
                "labels=[…], the name of each class, 0 first"
            )
    else:
        labels = checked_labels(labels)
    known = {normalized(name): index for index, name in enumerate(labels)}
    if all(text in known for text in texts.values()):
        table = {entry: known[text] for entry, text in texts.items()}
    elif len(numbers) == len(texts):
        table = numbers
    else:
        entry = next(entry for entry in entries if texts[entry] not in known)
        near = difflib.get_close_matches(texts[entry], known, n=3)
        raise ConfigError(
            f"{where(entries.index(entry))}: label {entry!r} is not among the {len(labels)} labels"
            + (f"; near it: {', '.join(map(repr, near))}" if near else f": {shown(list(labels))}")
        )
    for entry, index in table.items():
        if not 0 <= index < len(labels):
            raise ConfigError(
                f"{where(entries.index(entry))}: label {entry!r}, but the {len(labels)} classes are 0 to "
                f"{len(labels) - 1}"
            )
    return tuple(labels), [table[entry] for entry in entries]


def require_same_labels(train: Labeled, test: Labeled) -> None:
    """Refuse two datasets whose classes differ in name or order.

    Args:
        train: One dataset.
        test: Another one.

    Raises:
        ConfigError: They differ; the message names the classes that only one has.
    """
    if train.labels == test.labels:
        return
    only_train = [name for name in train.labels if name not in set(test.labels)]
    only_test = [name for name in test.labels if name not in set(train.labels)]
    differ = (
        f"classes only in train: {shown(only_train)}, only in test: {shown(only_test)}"
        if only_train or only_test
        else "they have the same classes in another order"
    )
    raise ConfigError(f"the labels of train and test differ: {differ}; make test with labels=train.labels")


_DIRECTION = re.compile(
    r"(?<![a-z])(?:left|right)(?=ward|hand|most|[^a-z]|$)|(?<![a-z])(?:counter|anti)?-?\s?clockwise(?![a-z])", re.I
)


def mirrored_classes(labels: Sequence[str]) -> dict[int, int | None]:
    """Return which classes a horizontal flip turns into one another, by their names.

    "Pushing something from left to right" is seen in a mirror as "Pushing something from right to left"; "clockwise" as
    "counterclockwise". The value is for ``swapped_labels`` of `Augmentation`.

    Args:
        labels: Names of the classes.

    Returns:
        For each class whose name tells a direction, the index of the mirrored class, or None if there is none.

    Raises:
        ConfigError: ``labels`` are no sequence of different texts.
    """
    labels = checked_labels(labels)
    index = {_plain(name): position for position, name in enumerate(labels)}
    plain = [(_plain(name), _plain(_DIRECTION.sub(_opposite, name))) for name in labels]
    mirrored = {position: index.get(other) for position, (name, other) in enumerate(plain) if other != name}
    # Both ways only: of two classes whose names differ in case alone, one stays without.
    return {one: None if other is None or mirrored.get(other) != one else other for one, other in mirrored.items()}


def _plain(name: str) -> str:
    """Return a name with one spelling of its directions."""
    return re.sub(r"(?:counter|anti)-?\s?clockwise", "counterclockwise", name.casefold())


def _opposite(found: re.Match[str]) -> str:
    word = found.group().casefold()
    if "clockwise" in word:
        return word.replace("clockwise", "counterclockwise") if word.strip() == "clockwise" else "clockwise"
    return "right" if word == "left" else "left"
