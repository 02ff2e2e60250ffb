"""What a command prints: its result on standard output, all else on standard error, and its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TextIO

import typer

from aim_adapters.cli.wording import in_options
from aim_adapters.errors import AIMError
from aim_adapters.table import fact_lines

FAILED, INTERRUPTED = 1, 130
_PATIENCE = 5.0  # seconds that another process than the first waits with its error

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Output:
    """The output of one command. Where ``torchrun`` started several processes, the first one speaks.

    Args:
        as_json: Whether the result is a JSON document.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.rank = int(os.environ.get("RANK", "0"))
        self.printed = False
        self._result: TextIO = sys.stdout

    def result(self, document: Any, text: str) -> None:
        """Print the result.

        Args:
            document: It as JSON-ready values.
            text: It for people.
        """
        self.printed = True
        if self.rank == 0:
            _print(json.dumps(document, indent=2) if self.as_json else text, self._result)

    def note(self, kind: str, text: str) -> None:
        """Print a line on standard error.

        Args:
            kind: Such as ``"warning"``, or ``""``.
            text: The line.
        """
        if self.rank == 0:
            _print(f"{_colored(kind)}: {text}" if kind else text, sys.stderr)

    def step(self, text: str) -> None:
        """Say on a terminal what a command begins, where it takes more than a moment.

        Args:
            text: Such as ``"building the image model"``.
        """
        if sys.stderr.isatty():
            self.note("", f"{text} …")

    def progress(self, done: int, total: int) -> None:
        """Show on a terminal how far a command is.

        Args:
            done: How many are done.
            total: Of how many.
        """
        if self.rank == 0 and sys.stderr.isatty():
            _print(f"\r{done} of {total}", sys.stderr, end="\n" if done == total else "")

    def failure(self, error: BaseException, *, debug: bool) -> None:
        """Print an error.

        Args:
            error: The error.
            debug: Show its traceback.
        """
        text = in_options(str(error)) or type(error).__name__
        if isinstance(error, OSError) and not isinstance(error, AIMError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if not isinstance(error, (AIMError, ImportError, OSError)):
            text = f"{type(error).__name__}: {text}"
        if debug:
            _print("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
        if self.rank:
            # The first process meets most faults too. It has to report them before torchrun ends it as this one failed.
            time.sleep(_PATIENCE)
        process = f" (process {self.rank})" if self.rank else ""
        hint = "" if debug or isinstance(error, AIMError) else " (--debug shows the traceback)"
        _print(f"{_colored('error')}{process}: {text}{hint}", sys.stderr)
        if self.as_json:
            self.result({"error": text, "type": type(error).__name__}, "")


@contextlib.contextmanager
def command(*, as_json: bool, debug: bool) -> Iterator[Output]:
    """Run a command: print its errors and warnings as lines, and keep what libraries print off standard output.

    Args:
        as_json: Whether the result is a JSON document.
        debug: Show the traceback of an error.

    Raises:
        typer.Exit: An error ended it, with exit code 1; or the user did, with 130.
    """
    output = Output(as_json)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if (text := in_options(" ".join(str(message).split()))) not in said:
                said.add(text)
                output.note("warning", text)

        warnings.showwarning = show
        try:
            yield output
        except KeyboardInterrupt:
            output.note("", "interrupted")
            if as_json and not output.printed:
                output.result({"error": "interrupted", "type": "KeyboardInterrupt"}, "")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:  # nobody reads what a library prints
            _drop(sys.stderr)
            raise typer.Exit(FAILED) from None
        except Exception as error:  # here every error ends, in a line that says it and an exit code
            output.failure(error, debug=debug)
            raise typer.Exit(FAILED) from None


def as_lines(facts: Mapping[str, Any]) -> str:
    """Return facts as lines that fit the screen, each with its name in front.

    Args:
        facts: By name; of what is None or empty, a dash is shown.
    """
    return fact_lines(facts, columns())


def columns() -> int:
    """Return the width of the screen; a file or another program gets whole lines."""
    return shutil.get_terminal_size((1000, 24)).columns


def _print(text: str, file: TextIO, end: str = "\n") -> None:
    """Print a text, unless nobody reads it: ``aim-adapters recipes | head -1`` is no error."""
    try:
        print(text, file=file, end=end, flush=True)
    except UnicodeEncodeError:  # a file's name is no text, or the terminal has no × or ü
        encoding = file.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, end=end, flush=True)
    except BrokenPipeError:
        _drop(file)


def _drop(file: TextIO) -> None:
    """Send all that is still written to a closed pipe to nowhere, also when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


def _colored(kind: str) -> str:
    """Return the kind of a line, in color on a terminal that is to have it (https://no-color.org)."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return kind
    return typer.style(kind, fg="red" if kind == "error" else "yellow", bold=True)
