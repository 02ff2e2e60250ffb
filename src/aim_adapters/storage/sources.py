"""The places that a checkpoint is loaded from: a local directory, or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME
from aim_adapters.version import __version__

LIBRARY_NAME = "aim-adapters"
# The Hub counts a request for this file as a download of its repository; its content is not used.
COUNTED_NAME = "config.json"


@dataclass(frozen=True)
class HubOptions:
    """The place of a checkpoint in a repository on the Hub, and how it may be fetched.

    Args:
        revision: Branch, tag or commit of the repository; by default its main branch.
        subfolder: Folder of the checkpoint inside its source.
        token: Access token; by default the one this machine is logged in with; ``False`` for none.
        cache_dir: Where downloads are kept; by default the Hub's own cache.
        local_files_only: Use only files in the cache, without a request to the Hub.
        force_download: Fetch files again that are in the cache.
    """

    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def validate(self) -> None:
        """Refuse invalid options.

        Raises:
            CheckpointError: ``subfolder``, ``revision`` or ``token`` is malformed, or both ``local_files_only`` and
                ``force_download`` are set.
        """
        require_inner_path("subfolder", self.subfolder)
        require_inner_path("revision", self.revision)
        require_token(self.token)
        if self.force_download and self.local_files_only:
            raise CheckpointError("force_download=True asks the Hub, and local_files_only=True forbids that; pass one")


def locate(source: str | os.PathLike[str], options: HubOptions) -> Path:
    """Return the directory with a checkpoint's files, fetched from the Hub if they are not local.

    All files come from one commit, even if the branch changes in between, and are compared with the digests that the
    Hub announced.

    Args:
        source: A directory, the path of an ``adapter_model.safetensors``, or the id of a repository on the Hub
            (``"user/repo"``). Local files have priority, and a ``pathlib.Path`` is never looked up on the Hub.
        options: The place in the repository, and how files may be fetched.

    Raises:
        TypeError: ``source`` is not a path.
        CheckpointError: There is no such checkpoint, an option is invalid, or the files cannot be fetched.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a path or the id of a repository on the Hub, got {type(source).__name__}")
    options.validate()
    path = Path(source)
    if source != "" and (not isinstance(source, str) or file_mode(path)):
        return _local(path, revision=options.revision, subfolder=options.subfolder)
    assert isinstance(source, str)
    require_repo_id(source)
    try:
        return _fetch(source, options)
    except CheckpointError as error:
        where = f"there is no directory {source!r} here, and no repository that can be loaded"
        raise CheckpointError(f"{where}: {error}") from error.__cause__  # None if the cause quotes the token


def require_inner_path(what: str, value: str | None) -> None:
    """Refuse a path inside a directory or repository that could lead out of it.

    Args:
        what: Name of the argument, for the message.
        value: The path, such as ``"checkpoints/last"`` or ``"refs/pr/1"``, or None.

    Raises:
        CheckpointError: It is absolute, or has an empty part, ``"."``, ``".."``, or a character with a special meaning
            in paths.
    """
    if value is None:
        return
    if isinstance(value, str) and value.isprintable() and not set(value) & set('\\:*?"<>|'):
        if all(part not in ("", ".", "..") for part in value.split("/")):
            return
    raise CheckpointError(
        f"{what} must be a relative path of plain names such as 'checkpoints/last', got {value!r}; leave out '..', "
        "leading and trailing slashes, backslashes and drive letters"
    )


def require_token(token: str | bool | None) -> None:
    """Refuse a malformed token, before a library quotes it in a message.

    Args:
        token: The token; None and booleans are accepted.

    Raises:
        CheckpointError: It is not a string, is empty, or has spaces, line endings or characters beyond ASCII.
    """
    if token is None or isinstance(token, bool):
        return
    if not isinstance(token, str) or not (token and token.isascii() and token.isprintable()) or " " in token:
        raise CheckpointError(
            "the token is empty or holds a space, a line end or a character that no token has; strip it, or pass "
            "token=None to use the one this machine is logged in with"
        )


def require_repo_id(repo_id: str) -> None:
    """Refuse an invalid id of a repository on the Hub.

    Args:
        repo_id: The id.

    Raises:
        CheckpointError: It is not a string, has characters that ids cannot have, or names a safetensors file.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if not isinstance(repo_id, str) or repo_id.endswith(".safetensors"):  # a valid id, but never meant as one
            raise HFValidationError("it is not a string, or names a file")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo_id!r} is no file or directory here, and cannot be the id of a repository on the Hub; expected a "
            f"directory, the path of an {WEIGHTS_NAME}, or 'user/repo'"
        ) from error


def quotes_token(error: BaseException | None) -> bool:
    """Return whether a traceback would show the token.

    Errors quote the server's response, and a proxy may echo the request in it.

    Args:
        error: The error that huggingface_hub raised.
    """
    while error is not None:
        response = getattr(error, "response", None)
        sent = "" if response is None else response.request.headers.get("authorization", "")
        if sent and sent.split()[-1] in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def file_mode(path: str | os.PathLike[str]) -> int:
    """Return the mode of the file or directory at a path, or 0 if there is none or the path is invalid.

    Args:
        path: Any path.
    """
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def _local(path: Path, *, revision: str | None, subfolder: str | None) -> Path:
    mode = file_mode(path)
    if stat.S_ISREG(mode) and path.name == WEIGHTS_NAME and subfolder is None:
        path, mode = path.parent, file_mode(path.parent)
    if not stat.S_ISDIR(mode):
        problem = "is not a directory" if mode else "does not exist"
        raise CheckpointError(f"{path} {problem}; expected a directory that holds {WEIGHTS_NAME}, or that file itself")
    if revision is not None:
        raise CheckpointError(
            f"{path} is a directory here, so revision={revision!r} means nothing; leave it out, or run where no "
            "directory has the name of the repository"
        )
    if subfolder is None:
        return path
    inner = path / subfolder
    if not stat.S_ISDIR(file_mode(inner)):
        raise CheckpointError(f"{path} holds no folder {subfolder!r}")
    if not inner.resolve().is_relative_to(path.resolve()):
        raise CheckpointError(
            f"{inner} is a link out of {path}; pass the folder it leads to, {inner.resolve()}, itself"
        )
    return inner


def _fetch(repo_id: str, options: HubOptions) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cache = None if options.cache_dir is None else Path(options.cache_dir).expanduser()
    folder, revision = f"{options.subfolder}/" if options.subfolder else "", options.revision
    download = partial(
        hf_hub_download,
        repo_id,
        token=options.token,
        cache_dir=cache,
        local_files_only=options.local_files_only,
        force_download=options.force_download,
        library_name=LIBRARY_NAME,
        library_version=__version__,
    )
    with explained(repo_id, folder + CONFIG_NAME, revision):
        try:
            config = Path(download(folder + CONFIG_NAME, revision=revision))
        except LocalEntryNotFoundError:
            # Without the Hub: a repository is in the cache without a config only if it has none.
            if not isinstance(try_to_load_from_cache(repo_id, folder + WEIGHTS_NAME, cache, revision), str):
                raise
            config = None
        except EntryNotFoundError:
            config = None
    if config is not None:
        _require_intact(config, repo_id)
        revision = config.parents[folder.count("/")].name  # .../snapshots/<commit>/[folder/]adapter_config.json
        if try_to_load_from_cache(repo_id, folder + WEIGHTS_NAME, cache, revision) is None:
            with suppress(*_failures()):
                download(COUNTED_NAME, revision=revision)
    with explained(repo_id, folder + WEIGHTS_NAME, revision):
        weights = Path(download(folder + WEIGHTS_NAME, revision=revision))
    _require_intact(weights, repo_id)
    return weights.parent


def _failures() -> tuple[type[Exception], ...]:
    """Return the errors that a download can raise."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the error of the HTTP library, which depends on the version of huggingface_hub.
    return (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0])


@contextmanager
def explained(repo_id: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub's errors into one that says what was requested, what happened, and what to do.

    Args:
        repo_id: The repository.
        file: Path of the file inside it.
        revision: Branch, tag or commit; None: the main branch.

    Raises:
        CheckpointError: The block raised an error of a download.
    """
    try:
        yield
    except _failures() as error:
        requested = f"{file} of {repo_id} at {revision or 'its main branch'}"
        cause = None if quotes_token(error) else error
        raise CheckpointError(f"cannot fetch {requested}: {_reason(error, file)}") from cause


def _reason(error: BaseException, file: str) -> str:
    from huggingface_hub import errors

    access = "log in with `hf auth login`, or pass token="
    unreachable = isinstance(error, errors.LocalEntryNotFoundError)
    if error.__cause__ is not None and (unreachable or type(error) is ValueError):  # as forced downloads raise them
        error = error.__cause__
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "it is not in the cache, and the Hub is not asked (local_files_only or HF_HUB_OFFLINE); fetch it once"
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated; ask for access on its page and {access}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private; if so, {access}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; pass a branch, a tag or a commit of it"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository holds no {file}; is it one of AIM adapters, or do they lie in a subfolder?"
    # The type of the error and the HTTP status, but no text from a server.
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"{type(error).__name__}, status {status}" if status else type(error).__name__
    cached = ", and it is not in the cache" if unreachable else ""
    return f"the Hub did not answer as it should ({what}){cached}; try again, then with force_download=True"


def _require_intact(file: Path, repo_id: str) -> None:
    """Refuse a file whose content does not match the digest that the Hub announced."""
    if not file.is_symlink():
        return  # without symbolic links, the cache does not record the digest
    announced = file.readlink().name
    try:
        digests = _digests(file, len(announced))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not digests or announced in digests:
        return
    with suppress(OSError):  # the cache may be read-only
        (file.parent / file.readlink()).unlink()
        file.unlink()
    raise CheckpointError(
        f"{file.name} of {repo_id} is damaged: its content does not have the digest {announced} that the Hub "
        "announced; it was taken out of the cache, so try again"
    )


def _digests(file: Path, length: int) -> list[str]:
    """Return a file's digests of this length: SHA-256 of a large file; git's SHA-1, or plain SHA-1, of a small one."""
    hashes = {
        64: [hashlib.sha256()],
        40: [hashlib.sha1(start, usedforsecurity=False) for start in (b"blob %d\0" % file.stat().st_size, b"")],
    }.get(length, [])  # other lengths: a mirror's own tag, which does not depend on the content
    with file.open("rb") as stream:
        while hashes and (chunk := stream.read(1 << 20)):
            for digest in hashes:
                digest.update(chunk)
    return [digest.hexdigest() for digest in hashes]
