"""An archive in which two readers could find different entries is refused."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from aim_adapters.storage.archives import read_entries
from tests.storage.pickle_cases import archive, saved, state_dict, tensor

GOOD = saved({"a": torch.ones(3)})
PLAIN = archive(state_dict(a=tensor(1, 1)), {"0": bytes(4)})
END64, LOCATOR, END = 56, 20, 22


def entries(content: bytes) -> dict[str, tuple[int, int]]:
    return dict(read_entries(io.BytesIO(content), len(content)))


@pytest.mark.parametrize("content", [GOOD, PLAIN], ids=["by PyTorch", "by zipfile"])
def test_entries_are_those_of_zipfile(content: bytes) -> None:
    found = entries(content)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert list(found) == file.namelist()
        for name, (begin, size) in found.items():
            assert content[begin : begin + size] == file.read(name)


def changed(content: bytes, at: int, new: bytes) -> bytes:
    at %= len(content)
    return content[:at] + new + content[at + len(new) :]


def with_names(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


DIRECTORY = PLAIN.index(b"PK\x01\x02")
HOSTILE = {
    "two archives": (GOOD + GOOD, "disagree"),
    "a comment": (PLAIN[:-2] + b"\x01\x00x", "no directory"),
    "bytes behind": (GOOD + b"\0", "no directory"),
    "bytes before": (b"\0" + PLAIN, "not at its end"),
    "a hole": (PLAIN[:DIRECTORY] + bytes(8) + changed(PLAIN, -6, struct.pack("<L", DIRECTORY + 8))[DIRECTORY:], "ends"),
    "one name twice": (with_names("a/x", "A/X"), "twice"),
    "another directory in 64 bits": (changed(GOOD, -END - LOCATOR - 8, struct.pack("<Q", 1)), "disagree"),
    "a directory elsewhere": (changed(GOOD, -END - LOCATOR + 8, struct.pack("<Q", 1)), "disagree"),
    "another number of entries": (changed(PLAIN, -END + 10, b"\x01\x00"), "were announced"),
    "another own name": (changed(PLAIN, 30, b"b"), "and its entry .* disagree"),
    "another own size": (changed(PLAIN, 18, b"\x01"), "and its entry .* disagree"),
    "own compression": (changed(PLAIN, 8, b"\x08"), "and its entry .* disagree"),
    "compression": (changed(PLAIN, DIRECTORY + 10, b"\x08"), "compressed"),
    "encryption": (changed(PLAIN, DIRECTORY + 8, b"\x01"), "damaged"),
    "two sizes": (changed(PLAIN, DIRECTORY + 20, b"\x01"), "two sizes"),
    "no size of 64 bits": (changed(PLAIN, DIRECTORY + 20, b"\xff" * 8), "64 bits|requires"),
    "overlapping": (changed(PLAIN, DIRECTORY + 46 + 16 + 42, bytes(4)), "begin|disagree"),
    "a longer entry": (
        changed(changed(PLAIN, DIRECTORY + 20, b"\xff\0\0\0\xff\0\0\0"), 18, b"\xff\0\0\0\xff"),
        "begin",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_can_be_read_in_two_ways_is_refused(case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises((ValueError, struct.error), match=message):
        entries(content)


def test_directory_of_holes_takes_no_memory(tmp_path: Path) -> None:
    length = 3 << 30
    with (tmp_path / "x").open("wb") as file:
        file.seek(length)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 0, 0))
    with (tmp_path / "x").open("rb") as file, pytest.raises(ValueError, match="too long"):
        read_entries(file, length + END)
