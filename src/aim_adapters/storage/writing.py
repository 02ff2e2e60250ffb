"""The files of a checkpoint, written: the same bytes for the same adapter, and one whole checkpoint at any moment."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CARD_NAME, CONFIG_NAME, DTYPES, LENGTH, WEIGHTS_NAME

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # bytes: the data begin at a multiple of it
_SECONDS_IN_USE = 3600  # older temporary files were left by a save that was killed
_SECONDS_TO_WAIT = 10  # another save swaps its files in within milliseconds


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, config: str, card: str | None
) -> None:
    """Write the files of a checkpoint into a directory, all or none; other files in it are left alone.

    All files are complete on the disk before the first takes its name. Then the old config goes, the weights, whose
    header holds the config too, are replaced, and the new config comes last. So whenever the process is killed, the
    weights are the old or the new ones and can be loaded, and where there is a config, it is theirs.

    Args:
        directory: The directory; created if it does not exist.
        tensors: Tensors by key.
        metadata: Strings for the header of the weights.
        config: Text of the config file.
        card: Text of the README; None to leave it alone.

    Raises:
        CheckpointError: The files cannot be written, and those that were there are unchanged; or another process
            keeps on saving there.
    """
    texts = {CARD_NAME: card, CONFIG_NAME: config}
    contents = {name: text.encode() for name, text in texts.items() if text is not None}
    with explained_writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS_NAME, *contents):
            if stat.S_ISDIR(_link_mode(directory / name)):
                raise CheckpointError(f"{directory / name} is a directory; remove it, or save to another directory")
            _remove_leftovers(directory / name)
        with TemporaryDirectory(prefix=f".{WEIGHTS_NAME}.", suffix=".tmp", dir=directory) as folder:
            staged = Path(folder)
            for name, content in contents.items():
                _write(staged / name, [content])
            write_weights(staged / WEIGHTS_NAME, tensors, metadata)
            with _alone(directory):
                _swap(staged, directory, [name for name in contents if not _holds(directory / name, contents[name])])


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, one tensor after the other.

    It is what the safetensors library writes, but for the order of the metadata, which there is another in every
    process: here it is sorted, so that equal adapters give equal files.

    Args:
        path: Path of the file.
        tensors: Floating-point tensors by key, of any device and strides.
        metadata: Strings for the header.

    Raises:
        CheckpointError: A tensor has a dtype that checkpoints do not have, or the file cannot be written.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{key!r} must be a floating-point tensor to be saved, got {tensor.dtype}")
    rank = {dtype: place for place, dtype in enumerate(_NAMES)}
    order = sorted(tensors, key=lambda key: (rank[tensors[key].dtype], key))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for key in order:
        tensor, begin = tensors[key], end
        end = begin + tensor.numel() * tensor.itemsize
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    content = (tensors[key].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data for key in order)
    with explained_writing(path):
        _write(path, chain([len(text).to_bytes(LENGTH, "little"), text], content))


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one of this package.

    Args:
        path: The file or directory that is written.

    Raises:
        CheckpointError: The disk is full, or the path cannot be written.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: the path has a null character
        raise CheckpointError(f"cannot write {path!s:.500}, where nothing was changed: {error!s:.500}") from error


@contextmanager
def replaced_when_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file; what is written there takes the file's name if nothing fails.

    Args:
        path: The file; folders that do not exist are made.

    Raises:
        OSError: It cannot be written; a file that was there is unchanged.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staged
        staged.replace(path)
    except OSError as error:
        if error.errno is None or error.filename != str(staged):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # by the name that the caller knows
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _write(path: Path, content: Iterable[bytes | memoryview]) -> None:
    """Write a file to the disk."""
    with path.open("wb") as file:
        for part in content:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _swap(staged: Path, directory: Path, changed: Sequence[str]) -> None:
    """Let the weights and the texts that changed take their names; the config is absent until all agree with it."""
    config, previous = directory / CONFIG_NAME, staged / "previous.json"
    if CONFIG_NAME in changed and _link_mode(config):
        config.replace(previous)
    try:
        (staged / WEIGHTS_NAME).replace(directory / WEIGHTS_NAME)
    except OSError:  # on Windows: in use
        if _link_mode(previous):
            previous.replace(config)
        raise
    for name in changed:  # the config is the last
        try:
            (staged / name).replace(directory / name)
        except OSError as error:
            raise CheckpointError(
                f"{directory / WEIGHTS_NAME} is new and can be loaded, but {name} cannot be replaced: {error}"
            ) from error


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let no other save swap files of this directory meanwhile, where the system can lock a directory."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor, start = os.open(directory, os.O_RDONLY), time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() - start > _SECONDS_TO_WAIT:
                    raise CheckpointError(f"another process has been saving to {directory} for too long") from error
                time.sleep(0.01)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file has this content already."""
    try:
        return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _link_mode(path: Path) -> int:
    """Return the mode of what has a name, which may be a link; 0 if nothing has it."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of this file that killed saves have left."""
    for path in target.parent.glob(f".{target.name}.*.tmp"):
        with suppress(OSError):  # another save may be removing it too
            if time.time() - path.stat().st_mtime > _SECONDS_IN_USE:
                shutil.rmtree(path)
