"""Videos in a folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from aim_adapters.arguments import require_flags, require_texts, shown
from aim_adapters.errors import ConfigError, warn
from aim_adapters.video.datasets.dataset import Listing, VideoDataset
from aim_adapters.video.datasets.files import (
    VIDEO_EXTENSIONS,
    FolderContent,
    content_of,
    entries_of,
    extension,
    user_path,
)
from aim_adapters.video.datasets.labels import checked_labels, class_names, normalized
from aim_adapters.video.datasets.samples import SkippedVideo
from aim_adapters.video.decoding import PICTURE_EXTENSIONS, Backend

_LAYOUT = "VideoFolder reads <root>/<class>/<video>"


class VideoFolder(VideoDataset):
    """Videos in a sub-folder for each class: ``root/zoom in/clip 7.mp4``.

    Videos are files with a known extension, and folders that hold the frames of one video as images. What else lies
    beside them is listed in ``skipped``.

    Args:
        root: The folder.
        num_frames: Frames of a clip.
        labels: Names of the classes in their order, such as ``train.labels`` for a test set; by default the names of
            the sub-folders, sorted.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule; by default, if the transform is one for training.
        nested: Take videos from folders below the folders of the classes, too.
        allow_empty: Accept classes without a video.
        extensions: Extensions of video files, such as ``[".mp4"]``; by default all that are known.
        backend: Decoder, as in `open_video`.

    Raises:
        TypeError: What should be a path is none.
        ConfigError: A setting is invalid, or the folder is not laid out so: it has no sub-folders, a class has no
            video, videos lie deeper, two classes have one name, or classes differ from ``labels``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_frames: int,
        *,
        labels: Sequence[str] | None = None,
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        nested: bool = False,
        allow_empty: bool = False,
        extensions: Iterable[str] | None = None,
        backend: Backend = "auto",
    ) -> None:
        require_flags(nested=nested, allow_empty=allow_empty)
        kinds = VIDEO_EXTENSIONS if extensions is None else _checked_extensions(extensions)
        path = user_path("root", root)
        found = _content(path, kinds)
        labels = _names(path, list(found), labels, allow_empty)
        super().__init__(
            _listing(path, found, nested=nested, allow_empty=allow_empty),
            num_frames,
            labels=labels,
            stride=stride,
            transform=transform,
            train=train,
            backend=backend,
        )


def _checked_extensions(extensions: Iterable[str]) -> frozenset[str]:
    expected = "a list of extensions such as '.mp4'"
    names = require_texts("extensions", extensions, expected=expected)
    if not names or not all(name.startswith(".") for name in names):
        raise ConfigError(f"extensions must be {expected}, got {shown(names)}")
    return frozenset(map(str.lower, names))


def _content(root: Path, extensions: frozenset[str]) -> dict[str, FolderContent]:
    """Return what the folder of each class holds. Stray files at the root are under the name ``""``."""
    try:
        files, folders = entries_of(root)
        found = {name: content_of(root / name, extensions) for name in folders if not name.startswith(".")}
    except OSError as error:
        raise ConfigError(f"{str(root)!r} cannot be read as a folder of videos: {error.strerror or error}") from error
    if not found:
        videos = sum(extension(name) in extensions for name in files)
        beside = f"has videos directly in it ({videos})" if videos else "has no sub-folders"
        raise ConfigError(
            f"{_LAYOUT}, but {str(root)!r} {beside}; make a folder for each class, or list them in a CSV for VideoList"
        )
    found[""] = FolderContent(others=files)
    return found


def _names(root: Path, folders: list[str], labels: Sequence[str] | None, allow_empty: bool) -> tuple[str, ...]:
    """Return the names of the classes."""
    names = class_names((name for name in folders if name), f"the folders in {str(root)!r}:")
    if labels is None:
        return names
    labels = checked_labels(labels)
    known, there = set(map(normalized, labels)), set(names)
    extra = [name for name in names if name not in known]
    absent = [name for name in labels if normalized(name) not in there]
    if extra or (absent and not allow_empty):
        raise ConfigError(
            f"the classes of {str(root)!r} differ from labels: only in the folder: {shown(extra)}; only in labels: "
            f"{shown(absent)}. " + ("Rename or move the folders" if extra else "allow_empty=True accepts that")
        )
    return labels


def _listing(root: Path, found: dict[str, FolderContent], *, nested: bool, allow_empty: bool) -> Listing:
    """Return the videos of all classes."""
    if not nested:
        _require_flat(root, found)
    listing = Listing(f"VideoFolder({str(root)!r})", str(root), [], [], gone=set())
    for name, content in found.items():
        videos = content.videos + content.nested
        if name and not videos and not allow_empty:
            raise ConfigError(
                f"the class folder {str(root / name)!r} holds no video{_instead(content)}; remove it, or pass "
                "allow_empty=True"
            )
        prefix = f"{name}/" if name else ""
        listing.names += [prefix + video for video in videos]
        listing.labels += [name] * len(videos)
        reason = "no video by its extension" if name else "in no folder of a class"
        listing.skipped += [SkippedVideo(prefix + other, reason, False) for other in content.others]
    _warn_about(listing)
    return listing


def _require_flat(root: Path, found: dict[str, FolderContent]) -> None:
    """Refuse folders whose videos lie deeper, as these are easily folders of splits instead of classes."""
    deeper = {name: content.nested[0] for name, content in found.items() if content.nested}
    if not deeper:
        return
    name, video = next(iter(deeper.items()))
    raise ConfigError(
        f"{_LAYOUT}, but {len(deeper)} of the {len(found) - 1} folders in {str(root)!r} hold videos one level deeper, "
        f"such as {f'{name}/{video}'!r}. If {name!r} is no class but holds the folders of classes, point one deeper: "
        f"VideoFolder({str(root / name)!r}, …); if it is one, pass nested=True"
    )


def _instead(content: FolderContent) -> str:
    kinds = Counter(extension(name) or "no extension" for name in content.others)
    if any(kind in PICTURE_EXTENSIONS for kind in kinds):
        return "; put the images of each video's frames into a folder of their own"
    return f", only files with {', '.join(sorted(kinds))}" if kinds else ""


def _warn_about(listing: Listing) -> None:
    """Warn about files that are left out, but for those that systems and tools put everywhere."""
    names = [record.name for record in listing.skipped]
    names = [name for name in names if not name.rpartition("/")[2].startswith((".", "Thumbs.db", "desktop.ini"))]
    if names:
        warn(
            f"{listing.what}: {len(names)} files are left out, as they are no videos by their extension, or in "
            f"no folder of a class: {shown(names)}; .skipped lists them"
        )
