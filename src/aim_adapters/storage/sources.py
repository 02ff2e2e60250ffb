"""The places that a checkpoint is loaded from: a local directory, or the Hugging Face Hub."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aim_adapters.arguments import require_flags, require_path, shown
from aim_adapters.errors import CheckpointError
from aim_adapters.storage.downloads import announced_commit, download, require_intact
from aim_adapters.storage.failures import explained
from aim_adapters.storage.files import CONFIG_NAME, WEIGHTS_NAME

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
        require_flags(local_files_only=self.local_files_only, force_download=self.force_download)
        if self.cache_dir is not None:
            require_path("cache_dir", self.cache_dir)
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
    path = require_path("source", source, expected="a path or the id of a repository on the Hub")
    options.validate()
    if not isinstance(source, str) or (source and file_mode(path)):
        return _local(path, revision=options.revision, subfolder=options.subfolder)
    require_repo_id(source)
    try:
        return _fetch(source, options)
    except CheckpointError as error:
        where = f"there is no directory {shown(source)} here, and no repository that can be loaded"
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
        f"{what} must be a relative path of plain names such as 'checkpoints/last', got {shown(value)}; "
        "leave out '..', leading and trailing slashes, backslashes and drive letters"
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
            f"{shown(repo_id)} is no file or directory here, and cannot be the id of a repository on the Hub; expected "
            f"a directory, the path of an {WEIGHTS_NAME}, or 'user/repo'"
        ) from error


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
        raise CheckpointError(
            f"{path!s:.500} {problem}; expected a directory that holds {WEIGHTS_NAME}, or that file itself"
        )
    if revision is not None:
        raise CheckpointError(
            f"{path} is a directory here, so revision={shown(revision)} means nothing; leave it out, or run where no "
            "directory has the name of the repository"
        )
    if subfolder is None:
        return path
    inner = path / subfolder
    if not stat.S_ISDIR(file_mode(inner)):
        raise CheckpointError(f"{path} holds no folder {shown(subfolder)}")
    if not inner.resolve().is_relative_to(path.resolve()):
        raise CheckpointError(
            f"{inner} is a link out of {path}; pass the folder it leads to, {inner.resolve()}, itself"
        )
    return inner


def _fetch(repo_id: str, options: HubOptions) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cache = None if options.cache_dir is None else Path(options.cache_dir).expanduser()
    folder, revision = f"{options.subfolder}/" if options.subfolder else "", options.revision
    get = partial(
        download,
        repo_id,
        token=options.token,
        cache_dir=cache,
        local_files_only=options.local_files_only,
        force_download=options.force_download,
    )
    with explained(repo_id, folder + CONFIG_NAME, revision):
        try:
            config = get(folder + CONFIG_NAME, revision=revision)
        except LocalEntryNotFoundError:
            # Without the Hub: a repository is in the cache without a config only if it has none.
            if not isinstance(try_to_load_from_cache(repo_id, folder + WEIGHTS_NAME, cache, revision), str):
                raise
            config = None
        except EntryNotFoundError:
            config = None
    if config is not None:
        require_intact(config, repo_id)
        revision = config.parents[folder.count("/")].name  # .../snapshots/<commit>/[folder/]adapter_config.json
        in_cache = try_to_load_from_cache(repo_id, folder + WEIGHTS_NAME, cache, revision) is not None
        if not in_cache and not options.local_files_only:
            with suppress(CheckpointError):
                announced_commit(repo_id, COUNTED_NAME, revision=revision, token=options.token)
    with explained(repo_id, folder + WEIGHTS_NAME, revision):
        weights = get(folder + WEIGHTS_NAME, revision=revision)
    require_intact(weights, repo_id)
    return weights.parent
