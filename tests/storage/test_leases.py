"""While a file is held nobody writes into it, and where that cannot be had nobody is told so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aim_adapters.storage.leases import held_still


def write(path: Path) -> None:
    """Write at once, or fail: a writer that may wait would wait for us."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, b"new")
    os.close(descriptor)


def test_writers_wait_until_the_file_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as file:
        with held_still(file) as held:
            if not held:
                pytest.skip("this system grants no lease here")
            with pytest.raises(BlockingIOError):
                write(path)
            program = f"import os; os.truncate({str(path)!r}, 1)"
            other = subprocess.Popen([sys.executable, "-c", program])  # its signal must not end this process
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(1)
            assert file.read() == b"old"
        assert other.wait(30) == 0
        write(path)
    assert path.read_bytes() == b"new"


def test_a_file_that_somebody_writes_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as file, path.open("ab"), held_still(file) as held:
        assert not held


@pytest.mark.parametrize("name", ["F_SETLEASE", "F_SETSIG"])
def test_a_system_without_leases_holds_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.delattr(fcntl, name, raising=False)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as file:
        with held_still(file) as held:
            assert not held
        write(path)


@pytest.mark.skipif(not hasattr(signal, "SIGURG"), reason="no such signal")
def test_a_file_without_a_disk_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "major", lambda device: 0)
    with path.open("rb") as file, held_still(file) as held:
        assert not held
