"""What lies under a checkpoint's names, and what others write, is refused by name."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import aim_adapters as aim
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from tests.checkpoint.cases import header, rewrite
from tests.checkpoint.hostile_cases import POSIX, STRICTNESS, assert_refused, load
from tests.tiny import base, trained, wrapped

# What lies under the names


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


@POSIX
@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        lambda path: os.mkfifo(path),
        make_socket,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("."),
    ],
    ids=["directory", "pipe", "socket", "zeros", "link_to_directory"],
)
def test_what_is_no_file_is_refused(
    make: Callable[[Path], Any], name: str, start: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)  # the path of a socket must be short
    Path(name).unlink()
    make(Path(name))
    assert_refused(start, saved, f"{name} (cannot be read|is not a regular file)")
    assert_refused(start, saved, f"{name} (cannot be read|is not a regular file)", strict=False)


@POSIX
@pytest.mark.parametrize("target", ["nowhere", WEIGHTS_NAME])
def test_links_that_lead_nowhere_are_missing_files(target: str, start: str, saved: Path) -> None:
    (saved / WEIGHTS_NAME).unlink()
    (saved / WEIGHTS_NAME).symlink_to(target)
    assert_refused(start, saved, f"holds no {WEIGHTS_NAME}")


@POSIX
def test_links_to_files_load(start: str, saved: Path) -> None:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (saved / name).rename(saved.with_name(name))
        (saved / name).symlink_to(saved.with_name(name))
    expected = aim.adapter_state_dict(trained())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in load(start, saved).items())


@pytest.mark.parametrize("source", ["a\0b", "", "~", "..\0", "x" * 300, "/dev/zero", "a/b/c", "../..", "http://x/y"])
def test_sources_that_are_no_directory_are_refused(source: str, start: str) -> None:
    assert_refused(start, Path(source) if source.startswith("/") else source, ".")  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", ["..", "a/..", "/", "/tmp", "", ".", "a\0b", "a\\b", "C:a", "a//b"])
def test_subfolders_that_lead_elsewhere_are_refused(inner: str, start: str, saved: Path) -> None:
    assert_refused(start, saved, "subfolder|holds no folder", subfolder=inner)


# What others write, into a model


LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["qkv"], "base_model_name_or_path": "x"}
KEY = "base_model.model.blocks.0.attn.qkv.lora_{}.weight"


@STRICTNESS
@pytest.mark.parametrize("described", [True, False])
def test_peft_adapter_is_refused_by_name(described: bool, strict: bool, start: str, tmp_path: Path) -> None:
    state = {KEY.format("A"): torch.ones(8, 32), KEY.format("B"): torch.ones(96, 8)}
    save_file(state, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    if described:
        (tmp_path / CONFIG_NAME).write_text(json.dumps(LORA), encoding="utf-8")
    match = "an adapter of type 'LORA', expected 'AIM'; load it with peft" if described else "it holds a peft adapter"
    assert_refused(start, tmp_path, match, strict=strict)


@STRICTNESS
def test_image_model_in_our_place_is_refused(strict: bool, start: str, saved: Path) -> None:
    save_file(base().state_dict(), saved / WEIGHTS_NAME, metadata=header(saved))
    if strict:
        assert_refused(start, saved, "the checkpoint does not fit the model, nothing was loaded")
    else:
        fresh = aim.adapter_state_dict(wrapped())
        loaded = load(start, saved, strict=False)  # norm and head have the same names; the rest is reported
        assert all(torch.equal(loaded[key], fresh[key]) for key in ("norm.weight", "head.weight"))


@pytest.mark.parametrize("where", ["gate", "clip"])
def test_unknown_keys_are_refused_or_told(where: str, start: str, saved: Path) -> None:
    rewrite(saved, config=lambda c: c.update(gate=0.5) if where == "gate" else c["clip"].update(gate=0.5))
    assert_refused(start, saved, "has unknown keys .*gate.*Update aim-adapters, or pass strict=False")
    with pytest.warns(UserWarning, match="has unknown keys .*gate"):
        load(start, saved, strict=False)
