"""Videos in a table of paths and labels."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from aim_adapters.arguments import read_items, require_choice, require_string, shown
from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets.dataset import Listing, VideoDataset
from aim_adapters.video.datasets.files import VIDEO_EXTENSIONS, extension, user_path
from aim_adapters.video.datasets.samples import SkippedVideo
from aim_adapters.video.decoding import Backend

_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " "}
_PATHS = ("path", "video", "video_path", "file", "filename", "file_name", "filepath", "file_path", "video_name", "clip")
_LABELS = ("label", "labels", "class", "class_name", "label_name", "category", "action", "target")
# A path ends with the first extension of a video that a space follows, so that both sides may have spaces.
_UNQUOTED = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, sorted(VIDEO_EXTENSIONS)))}))\s+(.+)", re.I)

Row = tuple[int, list[str]]  # number of a line, and its fields


class VideoList(VideoDataset):
    """Videos listed in a text file: ``path label`` in each line, separated by tab, comma, semicolon or space.

    Labels are names of classes or, if all are integers, indices. A first line that names columns, such as
    ``path,label``, is a header, and other columns are not read. Fields with a separator in them are quoted; but ``my
    video.mp4 zoom in`` is understood. Videos that do not exist and lines that repeat another one are listed in
    ``skipped``.

    Args:
        file: The list, UTF-8.
        num_frames: Frames of a clip.
        root: Folder that paths are relative to; by default the folder of the list.
        labels: Names of the classes in their order, such as ``train.labels`` for a test set; by default the names
            found, sorted.
        columns: Names of the columns with paths and with labels, if the header has others than the usual ones.
        delimiter: ``"tab"``, ``"comma"``, ``"semicolon"`` or ``"space"``; by default the first of them that is in every
            line.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.

    Raises:
        TypeError: What should be a path is none.
        ConfigError: A setting is invalid; or the list cannot be read, has no column of paths or of labels, a label that
            is not among ``labels``, or two labels for one video, or lists no video that exists.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        num_frames: int,
        *,
        root: str | os.PathLike[str] | None = None,
        labels: Sequence[str] | None = None,
        columns: tuple[str, str] | None = None,
        delimiter: str | None = None,
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        backend: Backend = "auto",
    ) -> None:
        path = user_path("file", file)
        if delimiter is not None:
            require_choice("delimiter", delimiter, tuple(_DELIMITERS))
        rows = _rows(path, delimiter)
        path_column, label_column, rows = _columns(path, rows, columns)
        super().__init__(
            listing_of(
                f"VideoList({str(path)!r})",
                path.parent if root is None else user_path("root", root),
                [(line, fields[path_column], fields[label_column]) for line, fields in rows],
                path,
            ),
            num_frames,
            labels=labels,
            stride=stride,
            transform=transform,
            train=train,
            backend=backend,
        )


def read_text(path: Path) -> str:
    """Return the content of a text file of the user's, without a byte order mark.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{str(path)!r} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def listing_of(what: str, root: Path, rows: Sequence[tuple[int, str, str]], file: Path) -> Listing:
    """Return the videos that a text file lists, each once.

    Args:
        what: What lists them, for messages.
        root: Folder that paths are relative to.
        rows: Line, path and label of each.
        file: The text file.

    Raises:
        ConfigError: A path or label is empty, or two lines give one video different labels.
    """
    first: dict[str, tuple[int, str]] = {}
    skipped: list[SkippedVideo] = []
    for line, name, label in rows:
        if not name or not label:
            raise ConfigError(f"{str(file)!r}, line {line}: no {'label' if name else 'path'}")
        before, other = first.setdefault(os.path.normpath(name), (line, label))
        if other != label:
            raise ConfigError(
                f"{str(file)!r}, line {line}: {name!r} has label {label!r}, and {other!r} in line {before}"
            )
        if before != line:
            skipped.append(SkippedVideo(name, f"line {line} repeats line {before}", False))
    kept = [(line, name, label) for line, name, label in rows if first[os.path.normpath(name)][0] == line]
    return Listing(
        what,
        str(root),
        [name for _, name, _ in kept],
        [label for _, _, label in kept],
        skipped,
        where=lambda position: f"{str(file)!r}, line {kept[position][0]}",
    )


def _rows(path: Path, delimiter: str | None) -> list[Row]:
    """Return the fields of each line that is not empty."""
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{str(path)!r} is empty; expected a path and a label in each line")
    problems = []
    for name in _DELIMITERS if delimiter is None else [delimiter]:
        rows = []
        for number, line in lines:
            if len(fields := _fields(line, _DELIMITERS[name])) < 2:
                problems.append(f"{name} is not in line {number}")
                break
            rows.append((number, fields))
        else:
            return rows
    raise ConfigError(
        f"{str(path)!r}: expected a path and a label in each line, separated by tab, comma, semicolon or space; "
        + "; ".join(problems)
    )


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line, without quotes and surrounding spaces."""
    if delimiter == " " and '"' not in line:
        if found := _UNQUOTED.fullmatch(line.strip()):
            path, rest = found.groups()
            # "a.mp4 250 3", with a number of frames, has three fields; "a.mp4 zoom in" has two.
            return [path, *(rest.split() if re.fullmatch(r"[\d\s]+", rest) else [rest])]
        return [field.strip() for field in line.strip().rsplit(None, 1)]
    try:
        fields = next(csv.reader([line.strip(" ")], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:  # NUL characters, or one field of more than 100 kB
        return [line]
    return [field.strip() for field in fields if field or delimiter != " "]


def _columns(path: Path, rows: list[Row], columns: tuple[str, str] | None) -> tuple[int, int, list[Row]]:
    """Return which columns hold paths and labels, and the rows below the header."""
    header = [field.casefold() for field in rows[0][1]]
    if columns is not None:
        names = [require_string("each of columns", name) for name in read_items(columns, "columns must be two names")]
        if len(names) != 2:
            raise ConfigError(f"columns must be two names, of the paths and of the labels, got {shown(columns)}")
        wanted: list[tuple[str, ...]] = [(name.casefold(),) for name in names]
    else:
        wanted = [_PATHS, _LABELS]
    places = [next((header.index(name) for name in names if name in header), None) for names in wanted]
    has_header = columns is not None or any(place is not None for place in places)
    if not has_header:
        # Names of columns that nobody knows would pass as a video, and as a class.
        has_header = extension(rows[0][1][0]) not in VIDEO_EXTENSIONS and any(
            extension(fields[0]) in VIDEO_EXTENSIONS for _, fields in rows[1:]
        )
    if not has_header:
        path_place, label_place, widest = 0, 1, 2
        first, second = rows[0][1][:2]
        if extension(second) in VIDEO_EXTENSIONS and extension(first) not in VIDEO_EXTENSIONS:
            raise ConfigError(
                f"{str(path)!r}, line {rows[0][0]}: expected a path and then a label, got {first!r} and {second!r}; "
                "put a header 'label,path' above them"
            )
    elif places[0] is None or places[1] is None:
        lacking = "paths" if places[0] is None else "labels"
        raise ConfigError(
            f"{str(path)!r}, line {rows[0][0]}: no column of {lacking} among {', '.join(map(repr, rows[0][1]))}; name "
            f"them {_PATHS[0]!r} and {_LABELS[0]!r}, or pass columns=(…, …)"
        )
    else:
        path_place, label_place, widest = places[0], places[1], len(header)
        rows = rows[1:]
    if not rows:
        raise ConfigError(f"{str(path)!r} has a header and no video")
    for number, fields in rows:
        if len(fields) != widest:
            expected = f"the header's {widest}" if has_header else "a path and a label"
            raise ConfigError(
                f"{str(path)!r}, line {number}: {len(fields)} fields, expected {expected}; quote a field that has a "
                "separator in it"
            )
    return path_place, label_place, rows
