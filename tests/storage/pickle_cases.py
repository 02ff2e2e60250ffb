"""Files of torch.save written by hand: pickles that no version of PyTorch writes, in both formats."""

import io
import pickle
import struct
import zipfile
from typing import Any

import torch

PROTO = b"\x80\x02"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def archive(pickled: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """Return an archive with a pickle and storages."""
    buffer = io.BytesIO()
    entries = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (entries | {f"data/{key}": data for key, data in (storages or {}).items()}).items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(pickled: bytes, storages: dict[str, bytes] | None = None, *, itemsize: int = 4) -> bytes:
    """Return a file of the format from before PyTorch 1.6."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    before = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    storages = storages or {}
    data = [struct.pack("<q", len(values) // itemsize) + values for values in storages.values()]
    return b"".join([*before, pickled, pickle.dumps(list(storages), 2), *data])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(shape: int, count: int, *, key: str = "0", stride: int = 1, offset: int = 0, old: bool = False) -> bytes:
    """Return the instructions for a float32 tensor of one dimension over a storage of ``count`` values."""
    identity = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count)
    storage = b"(" + identity + (b"N" if old else b"") + b"tQ"
    sizes = number(offset) + number(shape) + b"\x85" + number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + sizes + b"\x89" + ORDERED_DICT + b")RtR"


def state_dict(**tensors: bytes) -> bytes:
    """Return a whole pickle of a dictionary."""
    return PROTO + b"}(" + b"".join(text(name) + value for name, value in tensors.items()) + b"u."


def saved(content: Any, **options: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
