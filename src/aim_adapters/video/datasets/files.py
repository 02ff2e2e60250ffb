"""Video files in folders: found by extension, without a look at any file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aim_adapters.arguments import require_path
from aim_adapters.video.decoding import PICTURE_EXTENSIONS

# What FFmpeg and Pillow read, by the extensions that people use.
VIDEO_EXTENSIONS = frozenset(
    ".3g2 .3gp .264 .265 .apng .asf .avi .divx .f4v .flv .gif .h264 .h265 .hevc .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv "
    ".mov .mp4 .mpe .mpeg .mpg .mts .mxf .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m".split()
)


def user_path(name: str, value: object, *, expected: str = "a path") -> Path:
    """Return an argument that is a path, with ``~`` as the user's home.

    Args:
        name: Name of the argument.
        value: Its value.
        expected: What it should be, for the message.

    Raises:
        TypeError: It is not a path.
    """
    return Path(os.path.expanduser(require_path(name, value, expected=expected)))  # noqa: PTH111 (Path's own may raise)


def extension(name: str) -> str:
    """Return the extension of a file's name, in lower case.

    Args:
        name: Name of a file.
    """
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each of many files takes several times as long)


@dataclass
class FolderContent:
    """What a folder holds, with names relative to it and in order.

    Args:
        videos: Videos in the folder itself: files, and folders that hold frames and nothing else.
        nested: Videos in sub-folders.
        others: Files that are no videos, and links to nothing.
    """

    videos: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def content_of(folder: str | os.PathLike[str], extensions: frozenset[str] = VIDEO_EXTENSIONS) -> FolderContent:
    """Return the videos in a folder and below it. Hidden folders are not entered.

    Args:
        folder: The folder.
        extensions: Extensions of videos, in lower case.

    Raises:
        OSError: The folder cannot be read.
    """
    content = FolderContent()
    _collect(content, os.fspath(folder), "", extensions, ())
    content.nested.sort()
    return content


def _collect(
    content: FolderContent, folder: str, prefix: str, extensions: frozenset[str], above: tuple[str, ...]
) -> None:
    """Add what a folder holds. ``above`` has the real paths of the folders entered, as links may lead back to one."""
    files, folders = entries_of(folder)
    real = os.path.realpath(folder)
    if real in above:
        content.others.append(prefix.rstrip("/"))
        return
    images = [name for name in files if extension(name) in PICTURE_EXTENSIONS]
    if prefix and images and not folders and not any(extension(name) in extensions for name in files):
        # Frames of one video. In a sub-folder of a class it is one of the class's own videos.
        (content.nested if "/" in prefix.rstrip("/") else content.videos).append(prefix.rstrip("/"))
        return
    for name in files:
        is_video = extension(name) in extensions and not name.startswith(".")
        (content.others if not is_video else content.nested if prefix else content.videos).append(prefix + name)
    for name in folders:
        if name.startswith("."):
            content.others.append(prefix + name)
        else:
            _collect(content, f"{folder}/{name}", f"{prefix}{name}/", extensions, (*above, real))


def entries_of(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Return the names of the files and of the folders in a folder, sorted; links are followed.

    Args:
        folder: The folder.

    Raises:
        OSError: The folder cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:  # knows the kind of each entry without asking for each
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(folders)


def missing(root: str, names: Sequence[str]) -> set[int]:
    """Return the positions of names that do not exist, by one look into each folder instead of one at each file.

    Args:
        root: Folder that names are relative to.
        names: Paths of files or folders.
    """
    folders: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        folders[os.path.dirname(name)].append(position)  # noqa: PTH120 (as above)
    return set(_missing(root, names, folders))


def _missing(root: str, names: Sequence[str], folders: dict[str, list[int]]) -> Iterator[int]:
    for folder, positions in folders.items():
        try:
            with os.scandir(Path(root, folder)) as entries:
                there = {entry.name for entry in entries}
        except (OSError, ValueError):  # ValueError: a NUL in the path
            there = set()
        for position in positions:
            name = names[position]
            # The second look is for what a listing does not show: other case or normalization, "..", a link to nothing.
            if os.path.basename(name) not in there and not os.path.exists(Path(root, name)):  # noqa: PTH110, PTH119
                yield position
