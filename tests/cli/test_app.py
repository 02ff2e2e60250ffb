"""The program: quick help, exit codes, and the page that describes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import aim_adapters as aim
from aim_adapters.cli.app import app
from aim_adapters.cli.output import command
from tests.cli.cases import run

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def start(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, as if it were the program."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_imports_no_pytorch() -> None:
    code = "import sys; sys.argv = ['aim-adapters', 'train', '--help']\nfrom aim_adapters.cli import main\n"
    result = start(f"{code}try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr
    assert "--recipe" in result.stdout


def test_recipes_need_no_pytorch() -> None:
    result = start("import sys, aim_adapters.recipes\nassert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ev", ["evaluate"]),
        ("train --recipe small", ["small-data"]),
        ("train --model t", ["timm:", "torchvision:", "transformers:"]),
        ("train --memory ", ["fast", "balanced", "low"]),
    ],
)
def test_the_shell_completes_without_pytorch(typed: str, completed: list[str]) -> None:
    """As a module, too, whose name is none that a shell can call."""
    words = f"aim-adapters {typed}"
    asked = {"_AIM_ADAPTERS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = f"import os, sys; os.environ.update({asked}); sys.argv = ['python -m aim_adapters']\n"
    result = start(
        f"{code}from aim_adapters.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    assert (result.returncode, result.stdout.split()) == (0, completed), result.stderr


def test_an_unknown_command_says_what_is_near() -> None:
    result = run("evalute")
    assert result.exit_code == 2
    assert "Did you mean 'evaluate'?" in result.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; sys.argv = ['aim-adapters', '--help']"
    result = start(f"{code}\nfrom aim_adapters.cli import main\nmain()")
    assert result.returncode == 1
    assert "pip install 'aim-adapters[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with command(as_json=False, debug=False) as output:
            output.result({}, "nobody reads this")
            output.result({}, "nor this")


@pytest.mark.parametrize(("no_color", "color"), [("", True), ("1", False)])
def test_only_a_terminal_gets_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_color: str, color: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with command(as_json=False, debug=False) as output:
        output.note("error", "plain")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        output.note("error", "text")
    plain, text = capsys.readouterr().err.splitlines()
    assert plain == "error: plain"
    assert ("\x1b[" in text) is color


def test_every_command_has_one_line_on_a_narrow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    listed = run("--help").stdout.partition("Commands:")[2]
    assert len(listed.strip().splitlines()) == len(COMMANDS)
    assert "..." not in listed


def test_the_version_is_shown() -> None:
    assert run("--version").stdout.strip() == aim.__version__


def test_a_name_that_the_terminal_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with command(as_json=False, debug=False) as output:
        output.result({}, "a\udcff.mp4 64×48")
    assert capsysbinary.readouterr().out.strip() == rb"a\udcff.mp4 64\xd748".replace(rb"\xd7", "×".encode())


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("recipes").output == ""


def test_another_process_waits_with_its_error_as_the_first_one_may_have_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", waited.append)
    result = run("recipes", "k400")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error (process 1): no recipe 'k400'" in result.stderr
    assert waited


def test_the_page_has_every_command() -> None:
    assert re.findall(r"^## aim-adapters (\w+)", PAGE, re.M) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_every_option_of_a_command(name: str) -> None:
    section = PAGE.partition(f"## aim-adapters {name}\n")[2].partition("\n## ")[0]
    listed = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", section, re.M)))
    options = []
    for parameter in COMMANDS[name].params:
        if parameter.name in ("as_json", "debug"):
            continue
        is_option = parameter.param_type_name == "option"
        options += [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
    assert sorted(listed) == sorted(options)
    assert f"aim-adapters {name}" in section
