"""Find a checkpoint: in a directory of this machine, or on the Hugging Face Hub."""

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
# The Hub counts a request for this file of a repository as one download; nothing is read from it.
COUNTED_NAME = "config.json"


@dataclass(frozen=True)
class HubOptions:
    """Where in a repository on the Hub a checkpoint is, and how it may be fetched.

    Args:
        revision: Branch, tag or commit of the repository; by default its main branch.
        subfolder: Folder of the checkpoint inside its source.
        token: Access token; by default the one this machine is logged in with, ``False`` for none.
        cache_dir: Where fetched files are kept; by default the Hub's own cache.
        local_files_only: Take files from the cache, without asking the Hub.
        force_download: Fetch files that are in the cache again.
    """

    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def validate(self) -> None:
        """Refuse values that cannot be what they are called.

        Raises:
            CheckpointError: ``subfolder``, ``revision`` or ``token`` cannot be one, or the last two exclude each other.
        """
        require_inner_path("subfolder", self.subfolder)
        require_inner_path("revision", self.revision)
        require_token(self.token)
        if self.force_download and self.local_files_only:
            raise CheckpointError("force_download=True asks the Hub, and local_files_only=True forbids that; pass one")


def locate(source: str | os.PathLike[str], options: HubOptions) -> Path:
    """Return the directory that holds a checkpoint's files, after fetching them from the Hub where need be.

    Files of one repository come from one commit, even when its branch moves in between, and are compared with the
    digests that the Hub announced.

    Args:
        source: A directory, the path of an ``adapter_model.safetensors``, or the id of a repository on the Hub
            (``"user/repo"``). A ``pathlib.Path`` is never looked up on the Hub, and what exists here goes first.
        options: Where in the repository it is, and how it may be fetched.

    Raises:
        TypeError: ``source`` is not a path.
        CheckpointError: Nothing is there, an option cannot be what it is called, or the Hub did not give the files.
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
        raise CheckpointError(f"{where}: {error}") from error.__cause__  # which is None where it quotes the token


def require_inner_path(what: str, value: str | None) -> None:
    """Refuse a name below a directory or in a repository that could lead out of it.

    Args:
        what: What the name is called in the message.
        value: The name, such as ``"checkpoints/last"`` or ``"refs/pr/1"``, or None.

    Raises:
        CheckpointError: It is absolute, has an empty part, ``"."``, ``".."`` or a character that a path may give
            another meaning.
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
    """Refuse a token that no header can carry, before a library quotes it in a message.

    Raises:
        CheckpointError: It is empty, holds spaces, line ends or characters beyond ASCII, or is no string.
    """
    if token is None or isinstance(token, bool):
        return
    if not isinstance(token, str) or not (token and token.isascii() and token.isprintable()) or " " in token:
        raise CheckpointError(
            "the token is empty or holds a space, a line end or a character that no token has; strip it, or pass "
            "token=None to use the one this machine is logged in with"
        )


def require_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the id of a repository on the Hub.

    Raises:
        CheckpointError: It is a path, or has characters that an id does not have.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if not isinstance(repo_id, str) or repo_id.endswith(".safetensors"):  # valid as an id, and never meant as one
            raise HFValidationError("it is no string, or names a file")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo_id!r} is no file or directory here, and cannot be the id of a repository on the Hub; expected a "
            f"directory, the path of an {WEIGHTS_NAME}, or 'user/repo'"
        ) from error


def quotes_token(error: BaseException | None) -> bool:
    """Return whether a traceback would print the token: a proxy may quote the request, and the Hub's errors its answer.

    Args:
        error: What huggingface_hub raised.
    """
    while error is not None:
        response = getattr(error, "response", None)
        sent = "" if response is None else response.request.headers.get("authorization", "")
        if sent and sent.split()[-1] in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def file_mode(path: str | os.PathLike[str]) -> int:
    """Return the mode of what a path leads to, or 0 where nothing is, whatever the path."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def _local(path: Path, *, revision: str | None, subfolder: str | None) -> Path:
    mode = file_mode(path)
    if stat.S_ISREG(mode) and path.name == WEIGHTS_NAME and subfolder is None:
        path, mode = path.parent, file_mode(path.parent)
    if not stat.S_ISDIR(mode):
        found = "is not a directory" if mode else "does not exist"
        raise CheckpointError(f"{path} {found}; expected a directory that holds {WEIGHTS_NAME}, or that file itself")
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
            # The Hub cannot be asked. Only a repository without a config can be in the cache without one.
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
    """Return what a download can raise."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the error of the HTTP library: requests, httpx or httpx2, by the version of huggingface_hub.
    return (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0])


@contextmanager
def explained(repo_id: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub's errors into one that says what was asked, what happened and what helps."""
    try:
        yield
    except _failures() as error:
        asked = f"{file} of {repo_id} at {revision or 'its main branch'}"
        cause = None if quotes_token(error) else error
        raise CheckpointError(f"cannot fetch {asked}: {_reason(error, file)}") from cause


def _reason(error: BaseException, file: str) -> str:
    from huggingface_hub import errors

    access = "log in with `hf auth login`, or pass token="
    unreachable = isinstance(error, errors.LocalEntryNotFoundError)
    if error.__cause__ is not None and (unreachable or type(error) is ValueError):  # what a forced download raises
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
    # The kind of the error and the status that came with it, none of a server's words.
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"{type(error).__name__}, status {status}" if status else type(error).__name__
    cached = ", and it is not in the cache" if unreachable else ""
    return f"the Hub did not answer as it should ({what}){cached}; try again, then with force_download=True"


def _require_intact(file: Path, repo_id: str) -> None:
    """Refuse a file whose content is not what the Hub announced, wherever it changed on its way."""
    if not file.is_symlink():
        return  # the cache of a file system without links does not keep the digest
    announced = file.readlink().name
    try:
        digests = _digests(file, len(announced))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not digests or announced in digests:
        return
    with suppress(OSError):  # a cache that cannot be written
        (file.parent / file.readlink()).unlink()
        file.unlink()
    raise CheckpointError(
        f"{file.name} of {repo_id} is damaged: its content has not the digest {announced} that the Hub announced; it "
        "was taken out of the cache, so try again"
    )


def _digests(file: Path, length: int) -> list[str]:
    """Return what a digest of this length can be: SHA-256 of a large file, git's SHA-1 of a small one or the plain."""
    hashes = {
        64: [hashlib.sha256()],
        40: [hashlib.sha1(start, usedforsecurity=False) for start in (b"blob %d\0" % file.stat().st_size, b"")],
    }.get(length, [])  # else a mirror's own tag, which says nothing of the content
    with file.open("rb") as stream:
        while hashes and (chunk := stream.read(1 << 20)):
            for each in hashes:
                each.update(chunk)
    return [each.hexdigest() for each in hashes]
