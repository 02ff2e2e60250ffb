"""The errors of the Hub and its client, explained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aim_adapters.errors import CheckpointError

_LOG_IN = "log in with `hf auth login`, or pass token="


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that a request to the Hub can raise, whatever it answers."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the error of the HTTP library, which depends on the version of huggingface_hub.
    http = HfHubHTTPError.__bases__[0]
    library = sys.modules[http.__module__.partition(".")[0]]
    # The client takes answers apart without checking their fields.
    junk = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
    return (OSError, RuntimeError, *junk, http, getattr(library, "InvalidURL", ValueError))


@contextmanager
def explained(repo_id: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of a download into one that says what was requested, what happened, and what to do.

    Args:
        repo_id: The repository.
        file: Path of the file inside it.
        revision: Branch, tag or commit; None: the main branch.

    Raises:
        CheckpointError: The block raised an error of a download.
    """
    try:
        yield
    except CheckpointError:
        raise
    except failures() as error:
        requested = f"{file} of {repo_id} at {revision or 'its main branch'}"
        cause = None if quotes_token(error) else error
        raise CheckpointError(f"cannot fetch {requested}: {_reason(error, file)}") from cause


@contextmanager
def explained_push(repo_id: str, *, step: str, outcome: str) -> Iterator[None]:
    """Turn the errors of a push into one that says at which step it failed, what happened, and what to do.

    Args:
        repo_id: The repository.
        step: What was being done, for the message.
        outcome: What is in the repository now, if the answer does not tell.

    Raises:
        CheckpointError: The block raised an error of the Hub or its client.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"cannot push to {repo_id} ({step}): {error}; {outcome}") from error.__cause__
    except failures() as error:
        reason, refused = _push_reason(error)
        cause = None if quotes_token(error) else error
        told = "nothing was committed" if refused else outcome
        raise CheckpointError(f"cannot push to {repo_id} ({step}): {reason}; {told}") from cause


def quotes_token(error: BaseException | None) -> bool:
    """Return whether a traceback would show the token.

    Errors quote the server's response, and a proxy may echo the request in it.

    Args:
        error: The error that huggingface_hub raised.
    """
    while error is not None:
        response, own = getattr(error, "response", None), vars(error)
        request = own.get("_request") or own.get("request") if response is None else response.request
        sent = "" if request is None else request.headers.get("authorization", "")
        if sent and sent.split()[-1] in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException, file: str) -> str:
    from huggingface_hub import errors

    unreachable = isinstance(error, errors.LocalEntryNotFoundError)
    if error.__cause__ is not None and (unreachable or type(error) is ValueError):  # as forced downloads raise them
        error = error.__cause__
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "it is not in the cache, and the Hub is not asked (local_files_only or HF_HUB_OFFLINE); fetch it once"
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated; ask for access on its page and {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private; if so, {_LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; pass a branch, a tag or a commit of it"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository holds no {file}; is it one of AIM adapters, or do they lie in a subfolder?"
    cached = ", and it is not in the cache" if unreachable else ""
    return f"the Hub did not answer as it should ({_named(error)}){cached}; try again, then with force_download=True"


def _push_reason(error: BaseException) -> tuple[str, bool]:
    """Return why a push failed, and whether the Hub said that it refused it."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or use save_adapters and push later", True
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"no token was found; {_LOG_IN}", True
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in"):
        return "Invalid metadata in README.md, says the Hub; repair the YAML block at the top of its README.md", True
    status = getattr(getattr(error, "response", None), "status_code", None)
    named = _named(error)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no such branch or pull request ({named})", True
    if status in _PUSH_STATUS:
        return f"{_PUSH_STATUS[status]} ({named})", True
    if status is not None and 400 <= status < 500:
        return f"the Hub refused it ({named})", True
    if status is not None and status >= 500:
        return f"the Hub failed ({named}); try again later", False
    if status is None and isinstance(error, (OSError, errors.HfHubHTTPError.__bases__[0])):
        return f"the Hub could not be reached, or hung up ({named}); check the network, or use save_adapters", False
    return f"the Hub did not answer as it should ({named}); check HF_ENDPOINT and proxies, and try again", False


_PUSH_STATUS = {
    401: f"the token is missing, or not valid; {_LOG_IN}",
    403: "the token may not write there, or the name is somebody else's; use a token with permission to write",
    404: f"there is no such repository, or the token may not see it; check the name, and {_LOG_IN}",
    409: "something else is being done to the repository; try again",
    412: "the branch has changed meanwhile; push again",
    413: "the files are larger than the Hub accepts at once",
    429: "too many requests; try again in some minutes",
}


def _named(error: BaseException) -> str:
    """Return an error's type and HTTP status, but no text from a server."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"{type(error).__name__}, status {status}" if status else type(error).__name__
