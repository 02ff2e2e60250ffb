"""The command line ``aim-adapters``: each of its commands is a call of public functions.

Nothing here imports PyTorch before a command runs, so that help and completion answer at once.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the process was started with, and end the process with its exit code."""
    try:
        from aim_adapters.cli.app import app
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit(f"aim-adapters needs {error.name}; install it with: pip install 'aim-adapters[cli]'")
    app(prog_name="aim-adapters")  # also as `python -m aim_adapters`, whose name no shell can complete
