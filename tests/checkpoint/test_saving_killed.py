"""A process killed at any moment while saving leaves the old checkpoint or the new one, on real files, with SIGKILL."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import writing
from aim_adapters.storage.files import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from tests.checkpoint.cases import config_of, header
from tests.tiny import base, trained

KILLS, MOST_KILLS = 24, 300

# Forking takes milliseconds where starting Python and importing torch takes seconds.
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks where threads may run"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

State = dict[str, Tensor]


def two_models() -> list[torch.nn.Module]:
    """Return two models with other settings and other values: small adapters, and a classification layer of 4 MB."""
    models = [trained(num_classes=32_000), trained(num_classes=32_001)]
    with torch.no_grad():
        for model, value in zip(models, (1.0, 2.0), strict=True):
            for parameter in aim.trainable_parameters(model):
                parameter.fill_(value)
    return models


def kill_while(work: Callable[[], None], seconds: float) -> None:
    """Run a function in a process of its own, and kill it after a while."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "it ended before it was killed"


def duration(model: torch.nn.Module, directory: Path) -> float:
    start = time.perf_counter()
    aim.save_adapters(model, directory)
    return time.perf_counter() - start


def loaded(directory: Path) -> State | None:
    """Return what loads, all of it; None where nothing does."""
    model = base()
    try:
        assert aim.load_adapters(model, directory) == ((), (), ())
    except CheckpointError as error:
        assert "holds no adapter_model.safetensors" in str(error) or "does not exist" in str(error)
        assert not aim.is_wrapped(model)
        return None
    return aim.adapter_state_dict(model)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_killed_saves_leave_one_of_the_two_checkpoints(tmp_path: Path) -> None:
    models, chance = two_models(), random.Random(0)
    states = [aim.adapter_state_dict(model) for model in models]
    aim.save_adapters(models[0], tmp_path)

    def save_alternately() -> None:
        for turn in range(10**9):
            aim.save_adapters(models[turn % 2], tmp_path)

    seconds, found, kills, leftovers = duration(models[0], tmp_path), set(), 0, 0
    while kills < KILLS or ((found != {0, 1} or not leftovers) and kills < MOST_KILLS):
        kills += 1
        kill_while(save_alternately, chance.uniform(0, 4 * seconds))
        state = loaded(tmp_path)
        assert state is not None
        which = [index for index in range(2) if same(state, states[index])]
        assert len(which) == 1
        assert same(load_file(tmp_path / WEIGHTS_NAME), state)
        if (tmp_path / CONFIG_NAME).exists():
            assert config_of(tmp_path) == json.loads(header(tmp_path)["aim_config"])
            assert f"| classes | {32_000 + which[0]} |" in (tmp_path / CARD_NAME).read_text(encoding="utf-8")
        found.add(which[0])
        leftovers += len(list(tmp_path.glob(".*")))
    assert found == {0, 1}, "kills came too early or too late to prove anything"
    assert leftovers, "no kill came in the middle of a write"


def test_first_save_that_is_killed_leaves_nothing_or_all(tmp_path: Path) -> None:
    model, chance = two_models()[0], random.Random(1)
    expected, outcomes = aim.adapter_state_dict(model), set()

    def save_and_wait() -> None:
        aim.save_adapters(model, tmp_path / str(turn))
        time.sleep(60)

    seconds, turn = duration(model, tmp_path / "timed"), 0
    while turn < KILLS or (outcomes != {True, False} and turn < MOST_KILLS):
        turn += 1
        kill_while(save_and_wait, chance.uniform(0, 3 * seconds))
        state = loaded(tmp_path / str(turn))
        assert state is None or same(state, expected)
        outcomes.add(state is None)
    assert outcomes == {True, False}, "kills came too early or too late to prove anything"


def test_leftovers_neither_load_nor_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chance = two_models()[0], random.Random(2)
    aim.save_adapters(model, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}

    def save_for_ever() -> None:
        while True:
            aim.save_adapters(model, tmp_path)

    def leftovers() -> set[str]:
        return {path.name for path in tmp_path.iterdir()} - names

    seconds = duration(model, tmp_path)
    for _ in range(MOST_KILLS):
        kill_while(save_for_ever, chance.uniform(0, 3 * seconds))
        if leftovers():
            break
    assert leftovers(), "no kill came in the middle of a write"
    assert all(name.startswith(".adapter_") and name.endswith(".tmp") for name in leftovers())
    assert same(loaded(tmp_path) or {}, aim.adapter_state_dict(model))
    aim.save_adapters(model, tmp_path)
    assert leftovers(), "another save may still be writing there"
    monkeypatch.setattr(writing, "_SECONDS_IN_USE", -1)
    aim.save_adapters(model, tmp_path)
    assert not leftovers()


def test_killed_before_or_after_any_step_it_leaves_files_that_agree(tmp_path: Path) -> None:
    """As the test above, but at every moment at which the directory can be seen to change."""
    models = [trained(num_classes=classes) for classes in (5, 6)]
    states = [aim.adapter_state_dict(model) for model in models]
    outcomes = set()
    for last in range(20):
        aim.save_adapters(models[0], tmp_path)
        child = os.fork()
        if child == 0:
            save_until(last, lambda: aim.save_adapters(models[1], tmp_path))
        _, status = os.waitpid(child, 0)
        state = loaded(tmp_path)
        which = [index for index in range(2) if same(state or {}, states[index])]
        assert len(which) == 1
        has_config = (tmp_path / CONFIG_NAME).exists()
        if has_config:
            assert config_of(tmp_path) == json.loads(header(tmp_path)["aim_config"])
            assert f"| classes | {5 + which[0]} |" in (tmp_path / CARD_NAME).read_text(encoding="utf-8")
        outcomes.add((which[0], has_config))
        if os.WEXITSTATUS(status) == 0:
            break
    assert outcomes == {(0, True), (0, False), (1, False), (1, True)}
    assert os.WEXITSTATUS(status) == 0, "it takes more steps than were tried"


def save_until(last: int, save: Callable[[], object]) -> NoReturn:
    """Save, and end the process at once, without any cleaning up, after so many steps."""
    steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            if steps == last:
                os._exit(1)
            steps += 1
            return function(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    try:
        save()
    finally:
        os._exit(0)
