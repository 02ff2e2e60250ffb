"""A hostile pickle is refused in no time and no memory, in both formats, and code in it never runs."""

import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import read_torch_file
from tests.memory import at_most
from tests.storage.pickle_cases import ORDERED_DICT, PROTO, archive, legacy, number, state_dict, tensor, text

LONG = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
DOUBLING = b")q\x00" + b"h\x00h\x00\x86q\x00" * 120

HOSTILE: dict[str, tuple[bytes, str]] = {
    "a key 200,000 tuples deep": (b"})" + b"\x85" * 200_000 + b"Ns", "out of proportion"),
    "a key that doubles": (b"}" + DOUBLING + b"Ns", "out of proportion"),
    "a value that doubles": (b"}" + text("a") + DOUBLING + b"s", "out of proportion"),
    "a short tuple as key": (b"}K\x01\x85Ns", "a dictionary with a tuple as key"),
    "keys with one hash": (b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 9)) + b"u", "int as key"),
    "bytes of a size": (b"c__builtin__\nbytearray\n" + number(4 << 30) + b"\x85R", r"builtins\.bytearray"),
    "a tensor of a size": (b"ctorch\nTensor\n" + number(1 << 30) + b"\x85R", r"\(torch\.Tensor\)"),
    "a storage of a size": (b"ctorch\nFloatStorage\n" + number(1 << 30) + b"\x85R", "calls torch.FloatStorage"),
    "one text encoded often": (
        b"c_codecs\nencode\nq\x00" + LONG + b"q\x01" + text("latin1") + b"q\x02](" + b"h\x00h\x01h\x02\x86R" * 10**4
        + b"e", "out of proportion",
    ),
    "a slow codec": (b"c_codecs\nencode\n" + text("a") + text("idna") + b"\x86R", "_codecs.encode with arguments"),
    "objects in number": (ORDERED_DICT + b"q\x00](" + b"h\x00)R" * 200_000 + b"e", "out of proportion"),
    "a method hidden": (ORDERED_DICT + b")R}" + text("items") + b"K\x03sb", "attributes that a state dict does not"),
    "a tensor that is set": (tensor(1, 1) + b"(" + number(1 << 30) + b"tb", "sets the state of a StoredTensor"),
    "more values than stored": (tensor(1 << 30, 1), "claims the shape"),
    "one value many times": (tensor(1 << 30, 1, stride=0), "claims the shape"),
    "values behind the storage": (tensor(1, 1, offset=1), "claims the shape"),
    "a negative size": (tensor(-1, 1), "no valid shape"),
    "a storage of no entry": (tensor(1, 1, key="x"), "x"),
    "a storage of another size": (tensor(2, 2), "should have|not those|does not have"),
    "a text longer than the file": (b"X\xff\xff\xff\xffa", "expected 4294967295 bytes"),
    "an instruction of later protocols": (b"\x8c\x01a\x94", r"instruction b'\\x8c'"),
    "another protocol": (b"\x80\x04N", "protocol 4"),
    "nothing on the stack": (b"0", "instruction b'0'"),
    "a call of text": (text("a") + b")R", "calls a str"),
    "items of text": (text("a") + b"NNs", "sets items of a str"),
    "appended to text": (text("a") + b"Na", "appends to a str"),
    "a name with a backslash": (b"c\\d\n\\y\n", "objects besides"),
    "a memory of nothing": (b"h\x05", "KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("write", [archive, legacy])
def test_hostile_pickle(write: Any, case: str, tmp_path: Path) -> None:
    instructions, message = HOSTILE[case]
    if write is legacy:
        instructions = instructions.replace(b"tQ", b"NtQ")
    storages = {"0": bytes(4)} if b"tQ" in instructions else {}
    (tmp_path / "x.pth").write_bytes(write(PROTO + instructions + b".", storages))
    start = time.monotonic()
    with at_most(200), pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "x.pth")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("write", [archive, legacy])
def test_ordinary_content(write: Any, tmp_path: Path) -> None:
    """Shared tuples, tables without tensors and the versions of a state dict are in real files."""
    pickled = PROTO + b"}(" + text("betas") + b"G?\xec\xcc\xcc\xcc\xcc\xcc\xcdK\x01\x86q\x00" + text("again") + b"h\x00"
    pickled += text("state") + ORDERED_DICT + b")R" + text("a") + (tensor(2, 3, offset=1, old=write is legacy)) + b"s"
    pickled += b"}" + text("_metadata") + ORDERED_DICT + b")Rsb" + b"u."
    (tmp_path / "x.pth").write_bytes(write(pickled, {"0": struct.pack("<3f", 1, 2, 3)}))
    content = read_torch_file(tmp_path / "x.pth")
    assert content["betas"] == (0.9, 1) and content["again"] is content["betas"]
    assert content["state"]["a"].load().tolist() == [2, 3]
    assert content["state"]._metadata == {}


def test_what_the_caller_allowed_is_called_and_paid_for(tmp_path: Path) -> None:
    pickled = PROTO + b"]c__builtin__\nset\n(" + b"K\x01K\x02\x86" * 3 + b"t\x85Ra."
    (tmp_path / "x.pth").write_bytes(archive(pickled))
    with pytest.raises(CheckpointError, match=r"builtins\.set"):
        read_torch_file(tmp_path / "x.pth")
    with torch.serialization.safe_globals([set]):
        assert read_torch_file(tmp_path / "x.pth") == [{(1, 2)}]
    often = PROTO + b"c__builtin__\nset\nq\x00](" + b"N" * 10**5 + b"e\x85q\x01](" + b"h\x00h\x01R" * 10**5 + b"e."
    (tmp_path / "x.pth").write_bytes(archive(often))
    with torch.serialization.safe_globals([set]), pytest.raises(CheckpointError, match="out of proportion"):
        read_torch_file(tmp_path / "x.pth")


def test_two_sizes_of_one_storage(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(archive(state_dict(a=tensor(1, 1), b=tensor(1, 2)), {"0": bytes(4)}))
    with pytest.raises(CheckpointError, match="two types or sizes"):
        read_torch_file(tmp_path / "x.pth")
