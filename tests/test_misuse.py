"""Whatever a public function is given, it works or names the argument that is wrong, and then changes nothing."""

from __future__ import annotations

import inspect
import re
import shutil
import traceback
import warnings
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import aim_adapters as aim
from aim_adapters.checkpoint import hub, video_model
from aim_adapters.storage import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from tests.misuse_cases import CALLS, WRONG, Stage

# The constructor of the settings takes the arguments of wrapping; a request is what this package gives to a family.
LEFT_OUT = {"AIMConfig", "BaseRequest", "list_backbones", "list_recipes"}


class Accepted(Exception):
    """Every argument was accepted, and the Hub would be asked now, or training begin."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("misuse"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be somewhere else, without a Hub."""

    def accept(*arguments: Any, **options: Any) -> Any:
        raise Accepted

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "HfApi", accept)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", accept)
    monkeypatch.setattr(video_model, "_build", accept)
    monkeypatch.setattr(import_module("aim_adapters.training.fit"), "require_writable", accept)
    monkeypatch.setattr(hub, "_gmacs", lambda *arguments: None)


def function_of(name: str) -> Callable[..., Any]:
    return reduce(getattr, name.split("."), aim)


def ours(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, aim.AIMError) or (type(error) is TypeError and "aim_adapters" in Path(last).parts)


# Where the message has another word for the argument, or shows it by its place.
WORDS = {
    "base_model": "base model",
    "depth": "block",
    "dim": "block of width",
    "directory": "cannot write",
    "model": "image transformer",
    "names": "named",
    "repo_id": "repository",
    "source": "a directory|file|state dict|must be a tensor|cannot be read|is an empty name",
    "subfolder": "folder",
    "video": "frames",
}


def names(message: str, argument: str) -> bool:
    return re.search(f"{argument}|{WORDS.get(argument, argument)}", message) is not None


def test_every_public_function_is_here() -> None:
    callables = {name for name in aim.__all__ if callable(getattr(aim, name))}
    functions = {name for name in callables if inspect.isfunction(inspect.unwrap(getattr(aim, name)))}
    assert functions - LEFT_OUT <= CALLS.keys()


ARGUMENTS = [
    (name, argument)
    for name in CALLS
    for argument in inspect.signature(function_of(name)).parameters
    if argument != "self"
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_wrong_value_is_named_and_changes_nothing(name: str, argument: str, stage: Stage) -> None:
    function, faults, before = function_of(name), [], stage.state()
    for kind, make in WRONG.items():
        if argument == "video" and "evil" in kind:
            continue  # what the caller's own decoder raises is the caller's
        value = make()
        if argument == "progress" and callable(value):
            continue  # so is what the caller's own function raises
        arguments = {**CALLS[name](stage), argument: value}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(**arguments)
        except Accepted:
            continue
        except Exception as error:
            if fault := what_is_wrong(error, argument):
                faults.append(f"{kind}: {fault}")
        else:
            if stage.changed(before):
                before = stage.state()
    if found := stage.changed(before):
        faults.append(f"a call that fails changes {found}")
    assert not faults, "\n".join(["", *faults])


def what_is_wrong(error: Exception, argument: str) -> str | None:
    message = str(error)
    if not ours(error):
        return f"{type(error).__name__}: {message:.150}"
    if not names(message, argument):
        return f"does not name it: {message:.150}"
    if len(message) > 1500:
        return f"says {len(message)} characters"
    return None


@pytest.mark.filterwarnings("ignore:.*README.md cannot be read.*; it is left as it is")
@pytest.mark.parametrize("nothing", ["", "/proc/self/mem"])
@pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, "x.pth"])
def test_file_that_reads_as_nothing(name: str, nothing: str, stage: Stage, tmp_path: Path) -> None:
    """An empty file, and one of the system that is regular and cannot be read from its beginning."""
    if nothing and not Path(nothing).exists():
        pytest.skip("there is no such file here")
    folder = Path(shutil.copytree(stage.saved, tmp_path / "saved"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(nothing) if nothing else (folder / name).touch()
    if name == CARD_NAME:
        aim.save_adapters(stage.model, folder)
        assert not any(aim.load_adapters(stage.model, folder))
        return
    with pytest.raises(aim.CheckpointError, match=f"{name} .*(it is empty|damaged|is not JSON|cannot be read)"):
        if name == "x.pth":
            aim.load_official_checkpoint(stage.clip, folder / name)
        else:
            aim.load_adapters(stage.model, folder)
