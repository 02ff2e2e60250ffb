"""Zip archives of uncompressed entries, read so strictly that every reader finds the same entries in them.

The directory and the entries' own headers say the same, nothing overlaps, and no byte is left over. A lenient reader
may find another directory in a file than the next one does, and so be shown other entries than were checked.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NamedTuple

_MOST_DIRECTORY = 8 * 2**20

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIBED, _UTF8 = 0x8, 0x800  # flags: a descriptor lies behind the values; the name is UTF-8
_DESCRIPTORS = (12, 16, 20, 24)  # its possible sizes
_LONG, _SHORT = 0xFFFFFFFF, 0xFFFF  # the number stands elsewhere, in 64 bits


class Span(NamedTuple):
    """The bytes of an entry.

    Attributes:
        begin: Position of the first one in the file.
        size: Their number.
    """

    begin: int
    size: int


class _Record(NamedTuple):
    """What the directory says of an entry."""

    name: str
    flags: int
    size: int
    offset: int


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Return this many bytes of a file from a position on; fewer at its end.

    Args:
        file: The file.
        position: The position of the first byte.
        count: The number of bytes.
    """
    file.seek(position)
    return file.read(count)


def read_entries(file: BinaryIO, size: int) -> dict[str, Span]:
    """Return the place of every entry's bytes by name, in the order of the directory.

    Args:
        file: The archive.
        size: Its number of bytes.

    Raises:
        ValueError: It is not an archive as described above.
        struct.error: It ends early.
    """
    records, directory = _read_directory(file, size)
    if len({record.name.lower() for record in records}) < len(records):  # PyTorch's reader ignores case
        raise ValueError("its directory names an entry twice")
    spans: dict[str, Span] = {}
    position = 0
    gaps: tuple[int, ...] = (0,)
    for record in sorted(records, key=lambda record: record.offset):
        if record.offset - position not in gaps:
            raise ValueError(f"its entry {record.name[:40]!r} does not begin where the one before it ends")
        begin = record.offset + _check_local(read_at(file, record.offset, _LOCAL.size + _SHORT), record)
        spans[record.name], position = Span(begin, record.size), begin + record.size
        gaps = _DESCRIPTORS if record.flags & _DESCRIBED else (0,)
    if directory - position not in gaps:
        raise ValueError("its directory does not begin where its last entry ends")
    return {record.name: spans[record.name] for record in records}


def _read_directory(file: BinaryIO, size: int) -> tuple[list[_Record], int]:
    """Return what the one directory at the end says of every entry, and where it begins."""
    end = size - _END.size
    signature, *_, count, length, begin, comment = _END.unpack(read_at(file, max(end, 0), _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("no directory of its entries is at its end")
    locator, end64 = end - _LOCATOR.size, end - _LOCATOR.size - _END64.size
    if end64 >= 0 and read_at(file, locator, 4) == b"PK\x06\x07":
        _, _, where, _ = _LOCATOR.unpack(read_at(file, locator, _LOCATOR.size))
        signature, rest, *_, count64, length64, begin64 = _END64.unpack(read_at(file, end64, _END64.size))
        agree = all(
            short in (long, most)
            for short, long, most in ((count, count64, _SHORT), (length, length64, _LONG), (begin, begin64, _LONG))
        )
        if signature != b"PK\x06\x06" or rest != _END64.size - 12 or where != end64 or not agree:
            raise ValueError("the two ends of its directory disagree")
        end, count, length, begin = end64, count64, length64, begin64
    if begin + length != end or length > _MOST_DIRECTORY:
        raise ValueError(f"its directory of {length:,} bytes is not at its end, or is too long")
    data, position, records = read_at(file, begin, length), 0, []
    while position < length:
        record, position = _read_record(data, position)
        records.append(record)
    if len(records) != count:
        raise ValueError(f"its directory has {len(records)} entries, {count} were announced")
    return records, begin


def _read_record(data: bytes, position: int) -> tuple[_Record, int]:
    """Return one record of the directory, and where the next one begins."""
    fields = _ENTRY.unpack_from(data, position)
    signature, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment_size, _, _, _, offset = fields
    begin = position + _ENTRY.size
    name, extra = data[begin : begin + name_size], data[begin + name_size : begin + name_size + extra_size]
    if signature != b"PK\x01\x02" or flags & ~(_DESCRIBED | _UTF8):
        raise ValueError("its directory is damaged")
    if method:
        raise ValueError("its entries are compressed, which torch.save never does")
    if _LONG in (packed, size, offset):
        kind, length = struct.unpack_from("<2H", extra)
        longs = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
        if kind != 1:
            raise ValueError("its directory lacks a number of 64 bits")
        size, packed, offset = (next(longs, -1) if value == _LONG else value for value in (size, packed, offset))
    if packed != size or size < 0 or offset < 0:
        raise ValueError("its directory gives an entry two sizes")
    return _Record(name.decode(), flags, size, offset), begin + name_size + extra_size + comment_size


def _check_local(header: bytes, record: _Record) -> int:
    """Compare an entry's own header with the directory, and return the header's length."""
    fields: tuple[Any, ...] = _LOCAL.unpack_from(header)
    signature, _, flags, method, _, _, _, packed, size, name_size, extra_size = fields
    allowed = (record.size, _LONG, *([0] if flags & _DESCRIBED else []))
    name = header[_LOCAL.size : _LOCAL.size + name_size]
    if (
        signature != b"PK\x03\x04"
        or (flags, method, name) != (record.flags, 0, record.name.encode())
        or packed not in allowed
        or size not in allowed
    ):
        raise ValueError(f"its directory and its entry {record.name[:40]!r} disagree")
    length: int = _LOCAL.size + name_size + extra_size
    return length
