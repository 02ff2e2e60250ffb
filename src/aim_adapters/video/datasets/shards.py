"""Videos in tar files, as WebDataset reads and writes them."""

from __future__ import annotations

import json
import os
import random
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aim_adapters.arguments import require_integer, require_texts, shown
from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets.dataset import VideoDataset
from aim_adapters.video.datasets.files import VIDEO_EXTENSIONS, entries_of, extension, user_path
from aim_adapters.video.datasets.sampler import clip_seed
from aim_adapters.video.datasets.streams import StoredVideo, VideoStream
from aim_adapters.video.decoding import Backend

# Videos, as bytes, that a worker keeps at hand to draw the next one from.
_SHUFFLED = 100
# What reading a damaged or missing shard raises.
_SHARD_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)


class VideoShards(VideoStream):
    """Videos in tar files in WebDataset's format, local or in the cloud, split over processes by WebDataset.

    A sample has a video (``0001.mp4``, ``.webm``, …), and its class in ``0001.json`` (``{"label": "zoom in"}``) or
    ``0001.cls`` (a name or an index). Each process reads whole shards, and each of its workers some of these: have at
    least as many shards as processes times workers, all of about one size. `write_shards` writes them.

    Args:
        urls: Shards: a folder, a list of paths or addresses, or one with braces, ``"videos-{000000..000099}.tar"``.
        num_frames: Frames of a clip.
        labels: Names of the classes in their order.
        stride: Distance between the frames of a clip; None: one frame of each of ``num_frames`` equal segments.
        transform: Called with the frames of a clip, uint8 ``[T, 3, h, w]``, such as ``transform_for(model)``.
        train: Sample at random, by the training rule, and shuffle; by default, if the transform is one for training.
        backend: Decoder, as in `open_video`.
        seed: Seed of order, clips and augmentation; with it an epoch is the same each time, and ``set_epoch`` has to be
            called before each. None: PyTorch's global generator.
        length: Number of videos, if it is known.

    Raises:
        ImportError: webdataset is not installed.
        ConfigError: A setting is invalid, or there are no shards.
    """

    def __init__(
        self,
        urls: str | os.PathLike[str] | Sequence[str],
        num_frames: int,
        *,
        labels: Sequence[str],
        stride: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        train: bool | None = None,
        backend: Backend = "auto",
        seed: int | None = None,
        length: int | None = None,
    ) -> None:
        self.urls = _expanded(urls)
        super().__init__(
            f"VideoShards({shown(urls)})",
            num_frames,
            labels=labels,
            stride=stride,
            transform=transform,
            train=train,
            backend=backend,
            seed=seed,
            length=length,
        )

    def stored(self) -> Iterator[StoredVideo]:
        """Yield the videos of this process and worker."""
        wds = _webdataset()
        seed = int(torch.randint(2**62, ())) if self.seed is None else clip_seed(self.seed, self.epoch, -1)
        rng = random.Random(seed)
        problems: list[StoredVideo] = []
        opened: list[str] = []

        def note(error: Exception) -> bool:
            """Record a shard that cannot be read to its end, and go on with the next."""
            if not isinstance(error, _SHARD_ERRORS):
                raise error
            if opened[-1] not in (problem.name for problem in problems):
                reason = f"the rest of this shard cannot be read: {error.args[0]}"
                problems.append(StoredVideo(opened[-1], None, problem=reason))
            return True

        def noted(shards: Iterable[Any]) -> Iterator[Any]:
            for shard in shards:
                opened.append(shard["url"])
                yield shard

        def closed(sources: Iterable[Any]) -> Iterator[Any]:
            for source in sources:
                with source["stream"]:  # WebDataset leaves it open
                    yield source

        def shuffled(items: Iterator[Any], count: int) -> Iterator[Any]:
            return wds.shuffle(count, initial=count, rng=rng)(items) if self.reader.train else items

        tar = wds.tariterators
        shards = wds.split_by_worker(self._of_this_process({"url": url} for url in self.urls))
        sources = tar.url_opener(noted(shuffled(shards, len(self.urls))), handler=note)
        samples = tar.group_by_keys(tar.tar_file_expander(closed(sources), handler=note), handler=note)
        for sample in shuffled(samples, _SHUFFLED):
            yield from problems
            problems.clear()
            yield _stored(sample)
        yield from problems

    def _of_this_process(self, shards: Iterable[Any]) -> Iterator[Any]:
        wds = _webdataset()
        world = wds.utils.pytorch_worker_info()[1]
        if len(self.urls) < world:
            raise ConfigError(f"{self._what}: {len(self.urls)} shards for {world} processes; write smaller shards")
        yield from wds.split_by_node(shards)


def write_shards(
    dataset: VideoDataset,
    folder: str | os.PathLike[str],
    *,
    max_videos: int = 1000,
    max_bytes: int = 2**28,
    seed: int = 0,
) -> list[str]:
    """Write the files of a dataset's videos, unchanged, into tar files for `VideoShards`, and return their paths.

    Args:
        dataset: A dataset of video files.
        folder: An empty or new folder.
        max_videos: Most videos in a shard.
        max_bytes: Size of a shard, which it exceeds by one video at most.
        seed: Videos are written in a random order, as readers shuffle only a little.

    Raises:
        ImportError: webdataset is not installed.
        TypeError: ``dataset`` is no `VideoDataset`.
        ConfigError: A setting is invalid, the folder is not empty, or a video is no file that can be read.
    """
    wds = _webdataset()
    if not isinstance(dataset, VideoDataset):
        raise TypeError(f"dataset must be a VideoDataset, such as a VideoFolder, got {type(dataset).__name__}")
    max_videos = require_integer("max_videos", max_videos, low=1)
    max_bytes = require_integer("max_bytes", max_bytes, low=1, high=2**50)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(clip_seed(seed, 0, -1)))
    path = user_path("folder", folder)
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise ConfigError(f"{str(path)!r} is not empty; name a new folder for the shards")
    with wds.ShardWriter(f"{path}/videos-%06d.tar", maxcount=max_videos, maxsize=max_bytes, verbose=0) as writer:
        for position in order.tolist():
            sample = dataset.samples[position]
            try:
                data = Path(sample.source).read_bytes()
            except OSError as error:
                raise ConfigError(f"{sample.name}: cannot be put into a shard: {error.strerror or error}") from error
            about = {"label": dataset.labels[sample.label], "name": sample.name}
            writer.write(
                {
                    "__key__": f"{position:08d}",
                    extension(sample.source)[1:]: data,
                    "cls": str(sample.label).encode(),
                    "json": json.dumps(about, ensure_ascii=False).encode(),
                }
            )
    return [str(path / name) for name in entries_of(path)[0]]


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("shards need webdataset: pip install webdataset") from error
    return webdataset


def _expanded(urls: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """Return the addresses of all shards."""
    if isinstance(urls, (str, os.PathLike)) and Path(urls).is_dir():
        shards = [str(Path(urls, name)) for name in entries_of(urls)[0] if extension(name) == ".tar"]
    elif isinstance(urls, (str, os.PathLike)):
        shards = list(_webdataset().shardlists.expand_urls(os.fspath(urls)))
    else:
        shards = require_texts("urls", urls, expected="a folder, or a list of paths or addresses")
    if not shards:
        raise ConfigError(f"there are no shards, no .tar, in {shown(urls)}")
    return shards


def _stored(sample: dict[str, Any]) -> StoredVideo:
    """Return a sample of WebDataset as a video."""
    place = f"{Path(sample['__url__']).name}/{sample['__key__']}"
    video = next((name for name in sample if f".{name.rpartition('.')[2].lower()}" in VIDEO_EXTENSIONS), None)
    if video is None:
        members = ", ".join(sorted(name for name in sample if not name.startswith("__")))
        return StoredVideo(place, None, problem=f"no video among its members {members}")
    name = f"{place}.{video}"
    try:
        about = json.loads(sample["json"]) if "json" in sample else {}
        name = str(about.get("name", name))
        label = about["label"] if "label" in about else sample["cls"].decode().strip()
        if not isinstance(label, (str, int)):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{name}: no label; expected a member json with a "label" or a member cls, got {sorted(sample)}'
        ) from error
    return StoredVideo(name, sample[video], label)
