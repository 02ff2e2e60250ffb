"""Files of `torch.save`, whoever wrote them: read without PyTorch's own reader, and never more than the file holds.

Both formats are read: an archive with one pickle and one entry for each storage, as PyTorch writes since 1.6, and the
old one, several pickles with all storages behind them.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.archives import read_at, read_entries
from aim_adapters.storage.files import open_regular
from aim_adapters.storage.pickles import MOST_PICKLE, Storage, Unpickler

# What malformed numbers, names and instructions raise, or functions that the caller allowed.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
    struct.error,
)

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the old format


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` without running any code in it.

    Args:
        path: A regular file.

    Returns:
        What was saved, with a `StoredTensor` for each tensor and parameter. Their values are not read yet; do not
        change the file while they are in use.

    Raises:
        CheckpointError: The file is damaged, was not made by `torch.save`, or holds objects besides tensors, plain
            containers, numbers and strings that were not allowed by `torch.serialization.safe_globals`.
    """
    unpickler = None
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            _require_stored(file, size)
            beginning = read_at(file, 0, 4)
            if not beginning:
                raise ValueError("it is empty")
            zipped = beginning == b"PK\x03\x04"
            unpickler = Unpickler(min(size, MOST_PICKLE), legacy=not zipped)
            content, begins = (_read_archive if zipped else _read_legacy)(file, size, unpickler)
        if not unpickler.refused:
            whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if begins else torch.empty(0)
            for storage, begin in begins:
                storage.data = whole[begin : begin + storage.size]
            return content
        cause = None
    except CheckpointError:
        raise
    except _DAMAGE as error:
        cause = error
    if unpickler and unpickler.refused:
        names = [name[:100] for name in unpickler.refused][:5]
        raise CheckpointError(
            f"{path} holds objects besides its tensors ({', '.join(names)}), which are not loaded, as a pickle "
            "can run any code. Where the file was made, save its tensors alone: torch.save({'state_dict': "
            "checkpoint['state_dict']}, path). Or allow those that you know to be harmless around this call: with "
            "torch.serialization.safe_globals([...])"
        ) from cause
    reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0][:200]}"
    raise CheckpointError(
        f"{path} is damaged or was not made by torch.save: {reason}. If you trust it, load it with torch.load and save "
        "its state dict again"
    ) from cause


def _require_stored(file: BinaryIO, size: int) -> None:
    """Refuse a file that is mostly holes, which take no space on the disk, but as zeros take memory."""
    if not hasattr(os, "SEEK_DATA"):
        return
    stored = position = 0
    while position < size:
        try:
            begin = os.lseek(file.fileno(), position, os.SEEK_DATA)
        except OSError:  # there is only a hole from here to the end
            break
        position = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
        stored += position - begin
    if stored < size // 2 - 2**20:
        raise ValueError(f"it claims {size:,} bytes, but the disk holds only {stored:,} of them")


def _read_archive(file: BinaryIO, size: int, unpickler: Unpickler) -> tuple[Any, list[tuple[Storage, int]]]:
    """Return the content of a file of the present format, and where each storage begins."""
    entries = read_entries(file, size)
    root = next(iter(entries), "").partition("/")[0] + "/"
    if f"{root}constants.pkl" in entries:
        raise ValueError("it is a TorchScript archive, which torch.jit.load reads")
    order = entries.get(f"{root}byteorder")
    if order is not None and read_at(file, order.begin, min(order.size, 8)) != b"little":
        raise ValueError("its values are not little-endian")
    pickled = entries[f"{root}data.pkl"]
    if pickled.size > MOST_PICKLE:
        raise ValueError(f"its pickle has {pickled.size:,} bytes, the most that is read is {MOST_PICKLE:,}")
    content = unpickler.read(io.BytesIO(read_at(file, pickled.begin, pickled.size)))
    begins = []
    for key, storage in unpickler.storages.items():
        begin, stored = entries[f"{root}data/{key}"]
        if stored != storage.size:
            raise ValueError(f"its storage {key[:40]!r} should have {storage.size:,} bytes, it has {stored:,}")
        begins.append((storage, begin))
    return content, begins


def _read_legacy(file: BinaryIO, size: int, unpickler: Unpickler) -> tuple[Any, list[tuple[Storage, int]]]:
    """Return the content of a file of the format before PyTorch 1.6, and where each storage begins."""
    if read_at(file, 257, 5) == b"ustar":
        raise ValueError("it is in the tar format of before 2017")
    stream = io.BytesIO(read_at(file, 0, MOST_PICKLE))
    if (unpickler.read(stream), unpickler.read(stream)) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not begin as a file of torch.save")
    system = unpickler.read(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its values are not little-endian")
    content, keys = unpickler.read(stream), unpickler.read(stream)
    if not isinstance(keys, list) or {key for key in keys if isinstance(key, str)} != unpickler.storages.keys():
        raise ValueError("its storages are not those that its tensors name")
    begins, position = [], stream.tell()
    for key in keys:
        storage = unpickler.storages[key]
        if read_at(file, position, 8) != storage.count.to_bytes(8, "little"):
            raise ValueError(f"its storage {key[:40]!r} does not have the size that its tensors name")
        begins.append((storage, position + 8))
        position += 8 + storage.size
    if position != size:
        raise ValueError(f"its storages end at byte {position:,}, it has {size:,}")
    return content, begins
