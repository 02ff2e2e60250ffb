"""The files of a checkpoint: safetensors and JSON, read with no trust in their content.

The reader copies the bytes of each tensor from an open file, once, into the tensor's own memory. If the file were
mapped instead, truncating it meanwhile would kill the process. Where the system keeps writers away (`held_still`), a
tensor can be checked part by part and then be read again, straight to where it is used. A file is accepted only if the
safetensors library accepts it too; the tests compare the two.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import leases

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
CARD_NAME = "README.md"

# Limits for JSON: bytes, values (a short one takes sixty bytes of memory), and depth, as printing and comparing are
# recursive. For comparison, 22,000 labels take 2 MB and some 50,000 commas.
MOST_JSON = 8 * 2**20
_MOST_VALUES = 2**18
_DEEPEST = 16

# In the order in which safetensors writes them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SURROGATE = re.compile("[\ud800-\udfff]")  # which UTF-8 text cannot hold, but JSON can
LENGTH = 8  # bytes of the header's length
# Seconds. Clocks of file systems advance in ticks of at most 16 ms; a file this young may still be being written.
_TICK = 0.02
_YOUNG = 2.0
_PART = 2**20  # bytes that are compared or checked at once, in memory that stays in the cache

# First bytes of other kinds of files that may be found under the name of the weights.
_PICKLE = "it looks like a pickle, which is never read; save it as safetensors"
_BEGINNINGS = {
    b"PK": _PICKLE,
    b"\x80": _PICKLE,
    b"version ": "it looks like a Git LFS pointer; run `git lfs pull` where it was cloned",
}


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """An open safetensors file with a validated header.

    Args:
        file: The file, open for reading.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: The header does not describe the file.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path, self._file = path, file
        self._status = os.fstat(file.fileno())
        self._is_young = time.time() - self._status.st_mtime < _YOUNG
        self._given: dict[str, Tensor] = {}  # what was read, while a young file may have to be compared with it
        size = self._status.st_size
        beginning = file.read(LENGTH) or b""
        length = int.from_bytes(beginning, "little")
        if not beginning:
            raise self._damaged("it is empty")
        if size < LENGTH or length > size - LENGTH:
            guess = next((f"; {what}" for start, what in _BEGINNINGS.items() if beginning.startswith(start)), "")
            raise self._damaged(f"its header should have {length:,} bytes, the whole file has {size:,}{guess}")
        if length > MOST_JSON:
            raise self._damaged(f"its header has {length:,} bytes, the most that is read is {MOST_JSON:,}")
        self._header = file.read(length)
        header = parse_json(self._header, f"the header of {path}")
        self.metadata = self._metadata(header.pop("__metadata__", {}))
        self._data = LENGTH + length
        self._entries = {key: self._entry(key, value) for key, value in header.items()}
        position = 0
        for key, entry in sorted(self._entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != position:
                raise self._damaged(f"{key!r:.80} begins at byte {entry.begin} of the data, expected {position}")
            position = entry.end
        if position != size - self._data:
            raise self._damaged(f"its tensors take {position:,} bytes, it holds {size - self._data:,}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by key."""
        return {key: entry.shape for key, entry in self._entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of every tensor by key."""
        return {key: entry.dtype for key, entry in self._entries.items()}

    @contextmanager
    def held_still(self) -> Iterator[bool]:
        """Keep every process from writing into the file, where the system can; hold it briefly, as they wait.

        Yields:
            Whether it is held, and is the file whose header was read.

        Raises:
            CheckpointError: The file was changed since it was opened.
        """
        with leases.held_still(self._file) as held:
            self._require_same_status()
            yield held and not self._is_young

    def parts(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the elements of all tensors in flat parts, each in the same memory, which stays in the cache.

        Args:
            dtype: The dtype of all of them.

        Raises:
            CheckpointError: The file was changed meanwhile.
        """
        buffer, size = torch.empty(_PART, dtype=torch.uint8, device="cpu"), self._status.st_size - self._data
        self._file.seek(self._data)
        for begin in range(0, size, _PART):
            part = buffer[: min(_PART, size - begin)]
            self._fill(part, f"byte {begin} of the data")
            yield part.view(dtype)

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Read all tensors into the memory of others, of the same shapes and dtypes, contiguous on the CPU.

        Args:
            targets: Where to, for every key of `shapes`.

        Raises:
            CheckpointError: The file was changed meanwhile.
        """
        keys = sorted(self._entries, key=lambda key: self._entries[key].begin)
        memories = [targets[key].detach().view(-1).view(torch.uint8).numpy().data for key in keys]
        position, most = self._data, 512  # buffers that a system takes at once
        for begin in range(0, len(keys), most):
            wanted = memories[begin : begin + most]
            count, size = os.preadv(self._file.fileno(), wanted, position), sum(map(len, wanted))
            if count != size:  # the system returned early
                for key in keys[begin : begin + most]:
                    self._file.seek(self._data + self._entries[key].begin)
                    self._fill(targets[key].detach(), key)
            position += size
        for target in targets.values():
            torch.autograd.graph.increment_version(target)  # autograd has not seen it

    def read(self, key: str) -> Tensor:
        """Read a tensor into new memory on the CPU, aligned as PyTorch allocates it.

        Args:
            key: A key of `shapes`.

        Raises:
            CheckpointError: The file was changed meanwhile, or there is not enough memory.
        """
        entry = self._entries[key]
        try:
            tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")  # also if the default device is another
        except RuntimeError as error:
            size = entry.end - entry.begin
            raise CheckpointError(f"no memory for {key!r:.80} in {self.path}, which takes {size:,} bytes") from error
        self._file.seek(self._data + entry.begin)
        self._fill(tensor, key)
        self._require_same_status()
        if self._is_young:
            self._given[key] = tensor
        return tensor

    def require_unchanged(self) -> None:
        """Refuse what was read if another process wrote into the file meanwhile; call it before using any tensor.

        A time stamp does not show a second change within one tick of the clock. So a file that was written a moment
        ago is read again once the tick is over, and compared.

        Raises:
            CheckpointError: The file was changed while it was read.
        """
        if self._is_young:
            time.sleep(min(_TICK, max(0.0, self._status.st_mtime + _TICK - time.time())))
            self._file.seek(0, os.SEEK_END)  # which empties the buffer
            self._file.seek(LENGTH)
            same = self._file.read(len(self._header)) == self._header
            same = same and all(self._is_still(key, tensor) for key, tensor in self._given.items())
            self._given.clear()
            if not same:
                raise self._changed()
        self._require_same_status()

    def _is_still(self, key: str, given: Tensor) -> bool:
        """Return whether the file holds the tensor that was read from it."""
        self._file.seek(self._data + self._entries[key].begin)
        parts = given.view(-1).view(torch.uint8).split(_PART)
        again = torch.empty_like(parts[0])
        for part in parts:
            self._fill(again[: len(part)], key)
            words = len(part) // 8 * 8  # eight bytes at a time, which is ten times as fast
            for start, end, dtype in ((0, words, torch.int64), (words, len(part), torch.uint8)):
                if not torch.equal(part[start:end].view(dtype), again[start:end].view(dtype)):
                    return False
        return True

    def _fill(self, tensor: Tensor, key: str) -> None:
        """Read from the current position of the file into a tensor's memory."""
        memory = tensor.view(-1).view(torch.uint8).numpy().data
        while memory:
            count = self._file.readinto(memory)  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{self.path} was changed while it was read: it ended within {key!r:.80}")
            memory = memory[count:]

    def _require_same_status(self) -> None:
        before, now = self._status, os.fstat(self._file.fileno())
        same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        # Whoever sets the time of modification back changes this one. So does a new file that takes this one's name.
        if not same or (now.st_ctime_ns != before.st_ctime_ns and now.st_nlink == before.st_nlink):
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.path} was changed while it was read; load it again once it is complete")

    def _metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(_is_text(text) for text in (*value, *value.values())):
            raise self._damaged("its metadata is not an object of strings")
        return value

    def _entry(self, key: str, value: Any) -> _Entry:
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"} or not _is_text(key):
            raise self._damaged(f"{key!r:.80} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            name = f"{key!r:.80} in {self.path}"
            raise CheckpointError(f"{name} must be a floating-point tensor, got the dtype {dtype!r:.80}")
        if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
            raise self._damaged(f"shape and data_offsets of {key!r:.80} are not lists of sizes")
        begin, end = offsets
        # Zeros are left out: the other sizes of an empty tensor must not overflow its strides either.
        too_large = math.prod(size or 1 for size in shape) >= 2**60
        if too_large or math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
            raise self._damaged(f"{key!r:.80} of shape {shape} and dtype {dtype} cannot take {end - begin} bytes")
        return _Entry(DTYPES[dtype], tuple(shape), begin, end)

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or not a safetensors file: {what}")


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """Open a safetensors file and validate its header.

    Args:
        path: Path of the file.

    Yields:
        The file, open inside the ``with`` block.

    Raises:
        CheckpointError: It cannot be read, or its header does not describe it.
    """
    with open_regular(path) as file:
        yield WeightsFile(file, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: Path of the file.

    Raises:
        CheckpointError: The file cannot be read, is larger than any config, or does not hold a JSON object.
    """
    content = read_bytes(path)
    if not content.strip():
        raise CheckpointError(f"{path} is not JSON: it is empty")
    return parse_json(content, str(path))


def read_bytes(path: Path) -> bytes:
    """Read a small regular file.

    Args:
        path: Path of the file.

    Raises:
        CheckpointError: The file cannot be read, is a pipe or a device, or is larger than any text beside the weights.
    """
    with open_regular(path) as file:
        content = file.read(MOST_JSON + 1) or b""  # None: a file of the system that has nothing to say now
    if len(content) > MOST_JSON:
        raise CheckpointError(f"{path} is larger than {MOST_JSON:,} bytes; no file beside the weights is")
    return content


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; keys must be unique.

    Args:
        text: The text, in UTF-8 if it is bytes.
        where: Where the text comes from, for messages.

    Raises:
        CheckpointError: The text is not a JSON object, or exceeds the limits of size and depth.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text  # json would also accept other encodings
        if len(text) > MOST_JSON or sum(map(text.count, "[{,")) > _MOST_VALUES:  # each value follows one of them
            raise ValueError(f"it holds more than {MOST_JSON:,} bytes or {_MOST_VALUES:,} values")
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_refuse_constant)
        _require_shallow(value)
    except (ValueError, RecursionError) as error:  # also: not UTF-8, integers too long to convert, nesting too deep
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; a pipe or a device of that name could block or never end.

    Args:
        path: Path of the file.

    Yields:
        The file, open for reading inside the ``with`` block.

    Raises:
        CheckpointError: It cannot be read, or is not a regular file.
    """
    try:
        # Opening a pipe would wait for a writer; the flag is missing on some systems.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _is_sizes(value: Any) -> bool:
    # Their number and size are bounded, so that their product is computed quickly.
    return (
        isinstance(value, list) and len(value) <= 16 and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return result


def _integer(digits: str) -> float:
    return int(digits) if digits != "-0" else -0.0  # as safetensors reads it


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _require_shallow(value: Any) -> None:
    level = [value]  # all values at one depth
    for _ in range(_DEEPEST):
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = list(chain.from_iterable(item.values() if isinstance(item, dict) else item for item in containers))
    if level:
        raise ValueError(f"lists and objects lie more than {_DEEPEST} deep inside each other")
