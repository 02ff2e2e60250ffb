"""What is no safetensors file, no plain JSON or no regular file is refused, at once and in few words."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import files
from aim_adapters.storage.files import parse_json, read_json
from benchmarks.checks.fuzz_checkpoint import check_reading, small_file
from tests.memory import at_most
from tests.storage.cases import NAME, POSIX, ROW, TEXT, assert_refused, count, pack, read

# What is not


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = small_file()
    for length in range(len(content)):
        assert_refused(tmp_path / NAME, content[:length], "is damaged or not a safetensors file|is not JSON")
    check_reading(tmp_path / NAME, content)


LENGTHS = [0, 1, 7, 10**4, 8 * 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_wrong_length_of_the_header_is_refused(length: int, tmp_path: Path) -> None:
    assert_refused(tmp_path / NAME, length.to_bytes(8, "little") + small_file()[8:], "damaged|is not JSON|JSON object")


def test_large_header_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("wb") as file:
        file.write((2**41).to_bytes(8, "little"))
        file.truncate(2**42)
    with pytest.raises(CheckpointError, match=r"its header has 2,199,023,255,552 bytes, the most that is read is"):
        read(tmp_path / NAME)


def row(**fields: Any) -> dict[str, Any]:
    return {"a": {**ROW, **fields}}


OFFSETS = "'a' begins at byte .* of the data, expected|its tensors take .* bytes, it holds|cannot take .* bytes"
SIZES = "shape and data_offsets of 'a' are not lists of sizes"
FLOATS = "'a' in .* must be a floating-point tensor, got the dtype "
ENTRIES: dict[str, tuple[Any, str]] = {
    "overlap": ({"a": ROW, "b": {**ROW, "shape": [1], "data_offsets": [4, 8]}}, "'b' begins at byte 4 .*expected 8"),
    "twice_the_same": ({"a": ROW, "b": ROW}, "begins at byte 0 of the data, expected 8"),
    "hole": ({"a": {**ROW, "shape": [1], "data_offsets": [4, 8]}}, "'a' begins at byte 4 of the data, expected 0"),
    "inner_hole": (
        {"a": {**ROW, "shape": [0], "data_offsets": [0, 0]}, "b": {**ROW, "shape": [1], "data_offsets": [4, 8]}},
        "'b' begins at byte 4 of the data, expected 0",
    ),
    "reversed": (row(data_offsets=[8, 0]), OFFSETS),
    "reversed_and_negative_shape": (row(shape=[-2], data_offsets=[8, 0]), SIZES),
    "beyond_the_end": (row(shape=[3], data_offsets=[0, 12]), OFFSETS),
    "short_of_the_end": (row(shape=[1], data_offsets=[0, 4]), OFFSETS),
    "far_beyond": (row(shape=[2**60], data_offsets=[0, 2**62]), OFFSETS),
    "huge": (row(shape=[2**70], data_offsets=[0, 2**72]), SIZES),
    "wraps_around": (row(data_offsets=[2**64 - 8, 2**64]), SIZES),
    "digits": (row(shape=[int("9" * 4000)]), SIZES),
    "float_offsets": (row(data_offsets=[0.0, 8.0]), SIZES),
    "exponent": (json.dumps(row()).replace("[0, 8]", "[0, 8e0]").encode(), SIZES),
    "minus_zero": (json.dumps(row()).replace("[0, 8]", "[-0, 8]").encode(), SIZES),
    "bool_offsets": (row(data_offsets=[False, 8]), SIZES),
    "text_offsets": (row(data_offsets=["0", "8"]), SIZES),
    "one_offset": (row(data_offsets=[8]), SIZES),
    "three_offsets": (row(data_offsets=[0, 4, 8]), SIZES),
    "no_offsets": (row(data_offsets=None), SIZES),
    "bool_shape": (row(shape=[True, 2]), SIZES),
    "float_shape": (row(shape=[2.0]), SIZES),
    "nested_shape": (row(shape=[[2]]), SIZES),
    "negative_shape": (row(shape=[-1, -2]), SIZES),
    "object_shape": (row(shape={"0": 2}), SIZES),
    "number_shape": (row(shape=2), SIZES),
    "many_dimensions": (row(shape=[2] + [1] * 16), SIZES),
    "thousands_of_huge_dimensions": (row(shape=[2**62] * 20_000), SIZES),
    "empty_but_overflowing": (row(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), OFFSETS),
    "product_wraps_around": (row(shape=[2**32, 2**31, 2]), OFFSETS),
    "too_few_bytes": (row(shape=[3]), OFFSETS),
    "too_many_bytes": (row(shape=[1]), OFFSETS),
    "other_width": (row(dtype="F16"), OFFSETS),
    "integers": (row(dtype="I32"), FLOATS),
    "booleans": (row(dtype="BOOL", shape=[8]), FLOATS),
    "float8": (row(dtype="F8_E4M3", shape=[8]), FLOATS),
    "complex": (row(dtype="C64", shape=[1]), FLOATS),
    "lower_case": (row(dtype="f32"), FLOATS),
    "unknown": (row(dtype="x" * 10**6), FLOATS),
    "dtype_is_a_list": (row(dtype=["F32"]), FLOATS),
    "dtype_is_null": (row(dtype=None), FLOATS),
    "missing_field": ({"a": {"dtype": "F32", "shape": [2]}}, "'a' is not described by dtype, shape and data_offsets"),
    "extra_field": (row(extra=1), "'a' is not described by"),
    "null": ({"a": None}, "'a' is not described by"),
    "list": ({"a": ["F32", [2], [0, 8]]}, "'a' is not described by"),
    "long_key": ({"a" * 10**6: None}, "'aaa.* is not described by"),
    "half_surrogate_key": ({"\ud800": ROW}, "is not described by"),
    "half_surrogate_metadata": ({"__metadata__": {"x": "\udc00"}, "a": ROW}, "metadata is not an object of strings"),
    "half_surrogate_name": ({"__metadata__": {"\udc00": "x"}, "a": ROW}, "metadata is not an object of strings"),
    "metadata_number": ({"__metadata__": {"x": 1}, "a": ROW}, "metadata is not an object of strings"),
    "metadata_object": ({"__metadata__": {"x": {}}, "a": ROW}, "metadata is not an object of strings"),
    "metadata_list": ({"__metadata__": ["x"], "a": ROW}, "metadata is not an object of strings"),
    "metadata_null": ({"__metadata__": None, "a": ROW}, "metadata is not an object of strings"),
    "no_tensors": ({}, "its tensors take 0 bytes, it holds 8"),
    "only_metadata": ({"__metadata__": {}}, "its tensors take 0 bytes, it holds 8"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_header_that_does_not_describe_the_file_is_refused(case: str, tmp_path: Path) -> None:
    header, match = ENTRIES[case]
    assert_refused(tmp_path / NAME, pack(header), match)


def test_the_case_that_all_of_these_change_is_read(tmp_path: Path) -> None:
    assert check_reading(tmp_path / NAME, pack({"__metadata__": {}, "a": ROW}))


GOOD = json.dumps({"a": ROW})
TEXTS: dict[str, tuple[bytes, str]] = {
    "twice": (f"{GOOD[:-1]}, {GOOD[1:]}".encode(), "a key comes twice"),
    "twice_inside": (GOOD.replace("{", '{"dtype": "F16", ', 2).encode(), "a key comes twice"),
    "twice_by_escape": (f'{GOOD[:-1]}, "\\u0061": 1}}'.encode(), "a key comes twice"),
    "metadata_twice": (f'{{"__metadata__": {{}}, "__metadata__": {{}}, {GOOD[1:]}'.encode(), "a key comes twice"),
    "latin_1": ('{"é": 1}'.encode("latin-1"), "codec can't decode"),
    "utf_16": (GOOD.encode("utf-16"), "codec can't decode"),
    "utf_16_without_mark": (GOOD.encode("utf-16-le"), "is not JSON"),
    "utf_32": (GOOD.encode("utf-32-be"), "is not JSON"),
    "mark": (b"\xef\xbb\xbf" + GOOD.encode(), "BOM"),
    "surrogates_as_utf_8": ('{"\ud800": 1}'.encode("utf-8", "surrogatepass"), "codec can't decode"),
    "control_character": (b'{"a\n": 1}', "control character"),
    "nul": (GOOD.encode() + b"\0", "Extra data"),
    "more": (GOOD.encode() + b"{}", "Extra data"),
    "comment": (b"{} // x", "Extra data"),
    "comma": (b'{"a": 1,}', "is not JSON"),
    "single_quotes": (b"{'a': 1}", "is not JSON"),
    "nan": (b'{"a": NaN}', "NaN is not a JSON number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    "leading_zero": (b'{"a": 01}', "is not JSON"),
    "digits": (b'{"a": ' + b"9" * 10**6 + b"}", "is not JSON"),
    "deep_list": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "is not JSON"),
    "deep_object": (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "is not JSON"),
    "deep_but_parsed": (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "more than 16 deep"),
    "mixed_depth": (b'{"a": ' * 8 + b"[" * 9 + b"]" * 9 + b"}" * 8, "more than 16 deep"),
    "many": (b'{"a": [' + b"0," * 2**18 + b"0]}", "more than 8,388,608 bytes or 262,144 values"),
    "list": (b"[]", "must be a JSON object, got list"),
    "null": (b"null", "must be a JSON object, got NoneType"),
    "text": (b'"{}"', "must be a JSON object, got str"),
    "nothing": (b"", "is not JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("kind", ["header", "config"])
def test_what_is_not_plain_json_is_refused(case: str, kind: str, tmp_path: Path) -> None:
    content, match = TEXTS[case]
    if kind == "header":
        assert_refused(tmp_path / NAME, pack(content), match)
    else:
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"c\.json .*{match}"):
            read_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    "text", ['{"a": [[[[[[[[[[[[[[]]]]]]]]]]]]]]}', '{"a": "[[[[[[[[[[[[[[[[[[[[[[[[[["}', '{"a": -0}']
)
def test_ordinary_json_is_parsed(text: str) -> None:
    assert parse_json(text, "x") == json.loads(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(value=st.dictionaries(TEXT, JSON, max_size=5))
def test_what_json_writes_is_parsed(value: dict[str, Any]) -> None:
    assert parse_json(json.dumps(value), "x") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


def test_config_larger_than_any_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(CheckpointError, match=r"c\.json is larger than 8,388,608 bytes"):
        read_json(tmp_path / "c.json")


def fill(start: bytes, each: bytes, end: bytes) -> bytes:
    """Repeat something up to the most bytes that are parsed."""
    return start + each * ((files.MOST_JSON - len(start) - len(end)) // len(each)) + end


BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: fill(b'{"a":[', b"[],", b"0]}"),
    "objects": lambda: fill(b'{"a":[', b'{"a":0},', b"0]}"),
    "keys": lambda: b"{" + b",".join(b'"%d":0' % i for i in range(700_000)) + b"}",
    "most_keys": lambda: b"{" + b",".join(b'"%d":{}' % i for i in range(2**17 - 1)) + b"}",
    "deep": lambda: fill(b'{"a":', b"[", b"}"),
    "deep_objects": lambda: fill(b"", b'{"a":', b""),
    "digits": lambda: fill(b'{"a":', b"9", b"}"),
    "fraction": lambda: fill(b'{"a":0.', b"9", b"}"),
    "exponent": lambda: fill(b'{"a":1e', b"9", b"}"),
    "integers": lambda: fill(b'{"a":[', b"9" * 4300 + b",", b"0]}"),
    "shape": lambda: fill(b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[', b"9" * 4300 + b",", b"0]}}"),
    "text": lambda: fill(b'{"', b"a", b'":0}'),
    "escapes": lambda: fill(b'{"', b"\\u00e9", b'":0}'),
    "spaces": lambda: fill(b"{", b" ", b"}"),
    "metadata": lambda: fill(b'{"__metadata__":{"a":"', b"[", b'"},"a":0}'),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_cost_neither_time_nor_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(pack(BOMBS[kind]()))
    start = time.process_time()
    with at_most(150), pytest.raises(CheckpointError) as caught:
        read(tmp_path / NAME)
    assert time.process_time() - start < 1.5
    assert len(str(caught.value)) < 1000


def test_no_memory_for_a_tensor_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    (tmp_path / NAME).write_bytes(small_file())
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(CheckpointError, match=r"no memory for 'a' in .* 24 bytes"):
        read(tmp_path / NAME)


# What is under the name


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (b"PK\x03\x04", "it looks like a pickle, which is never read; save it as safetensors"),
        (b"\x80\x02}q\x00.", "it looks like a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer; run `git lfs pull`"),
        (b"<!doctype html>", "the whole file has 15$"),
    ],
)
def test_other_files_are_named(start: bytes, match: str, tmp_path: Path) -> None:
    assert_refused(tmp_path / NAME, start, match)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "directory": (Path.mkdir, "cannot be read"),
    "pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "socket": (make_socket, "cannot be read"),
    "zeros": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "cannot be read"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "missing": (lambda path: None, "cannot be read"),
}


@POSIX
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make, match = SPECIAL[kind]
    make(Path("x"))
    opened = count(Path("/dev/fd"))
    for call in (read, read_json):
        with pytest.raises(CheckpointError, match=f"^x {match}"):
            call(Path("x"))
    assert count(Path("/dev/fd")) == opened


@POSIX
def test_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(small_file())
    (tmp_path / NAME).symlink_to("blob")
    assert read(tmp_path / NAME).keys() == {"a", "b", "c", "d", "é"}


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(small_file())
    (tmp_path / NAME).chmod(0)
    with pytest.raises(CheckpointError, match=r"cannot be read.*ermission"):
        read(tmp_path / NAME)
