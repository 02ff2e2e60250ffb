"""Files of the Hub, fetched into its cache, and what the Hub and the cache must not do."""

from __future__ import annotations

import hashlib
import re
import stat
from contextlib import suppress
from pathlib import Path

from aim_adapters.errors import CheckpointError
from aim_adapters.storage.failures import failures
from aim_adapters.storage.files import open_regular
from aim_adapters.version import __version__

LIBRARY_NAME = "aim-adapters"

_COMMIT = re.compile("[0-9a-f]{40}")
# What a file's ETag may be. The client names a file by it, so it must not be a path. Digests, and what some mirrors
# make: those of several parts, or of time and size.
_DIGEST = re.compile("[0-9a-fA-F]{1,128}(-[0-9a-fA-F]{1,32})?")


def download(
    repo_id: str,
    file: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Fetch a file from a repository on the Hub into the cache.

    Args:
        repo_id: The repository.
        file: Path of the file inside it.
        revision: Branch, tag or commit; None: the main branch.
        token: Access token; None: the one this machine is logged in with.
        cache_dir: The cache; None: the Hub's own.
        local_files_only: Use only files in the cache.
        force_download: Fetch a file again that is in the cache.

    Returns:
        The path in the cache, ``.../snapshots/<commit>/<file>``.

    Raises:
        CheckpointError: The Hub announced what cannot be a digest or a commit, or another commit than was asked for;
            or the path in the cache leads to what is no file of the cache.
        As huggingface_hub: it cannot be fetched. See `failures.explained`.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = None if force_download else try_to_load_from_cache(repo_id, file, cache_dir, revision)
    fixed = isinstance(cached, str) and revision is not None and _COMMIT.fullmatch(revision)
    if not local_files_only and not fixed:
        commit = announced_commit(repo_id, file, revision=revision, token=token)
        if commit is None or try_to_load_from_cache(repo_id, file, cache_dir, commit) != cached:
            cached = None
    if not isinstance(cached, str):
        cached = hf_hub_download(
            repo_id,
            file,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            library_name=LIBRARY_NAME,
            library_version=__version__,
        )
    path, depth = Path(cached), file.count("/")
    _require_commit(path.parents[depth].name, repo_id, file, revision)
    _require_in_cache(path, path.parents[depth + 2])
    return path


def announced_commit(repo_id: str, file: str, *, revision: str | None, token: str | bool | None) -> str | None:
    """Ask the Hub for the commit of a file, and refuse names in the answer that the client would make paths of.

    Args:
        repo_id: The repository.
        file: Path of the file inside it.
        revision: Branch, tag or commit; None: the main branch.
        token: Access token; None: the one this machine is logged in with.

    Returns:
        The commit; None if the request failed: the client is to ask again, take its cache, or say why it failed.

    Raises:
        CheckpointError: The answer names what cannot be a digest or a commit, or another commit than was asked for.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url, etag, failed = hf_hub_url(repo_id, file, revision=revision), None, False
    try:
        metadata = get_hf_file_metadata(url, token=token, library_name=LIBRARY_NAME, library_version=__version__)
        etag, commit = metadata.etag, metadata.commit_hash
    except failures() as error:
        failed, commit = True, getattr(getattr(error, "response", None), "headers", {}).get("X-Repo-Commit")
    if etag is not None and not _DIGEST.fullmatch(etag):
        raise CheckpointError(
            f"cannot fetch {file} of {repo_id}: the Hub announced an ETag that is no digest; "
            "check HF_ENDPOINT and proxies"
        )
    if commit is not None:
        _require_commit(commit, repo_id, file, revision)
    return None if failed else commit


def _require_commit(commit: str, repo_id: str, file: str, revision: str | None) -> None:
    """Refuse what is not a commit, and another one than was asked for."""
    asked = revision if revision is not None and _COMMIT.fullmatch(revision) else None
    if not _COMMIT.fullmatch(commit) or asked not in (None, commit):
        answer = f"commit {commit}" if _COMMIT.fullmatch(commit) else "what is no commit"
        raise CheckpointError(
            f"cannot fetch {file} of {repo_id} at {revision or 'its main branch'}: the Hub answered with {answer}; "
            "check HF_ENDPOINT and proxies"
        )


def _require_in_cache(path: Path, repository: Path) -> None:
    """Refuse a file that is, or leads to, anything but a regular file where the cache keeps them.

    Args:
        path: The file.
        repository: The folder of its repository in the cache. Its blobs may lead to those that repositories share.
    """
    real, blob = path.resolve(), path.parent / path.readlink() if path.is_symlink() else path
    own = blob is path or blob.parent.resolve() == (repository / "blobs").resolve()
    shared = not blob.is_symlink() or real.is_relative_to((repository.parent / "blobs").resolve())
    if not (own and shared and stat.S_ISREG(real.stat().st_mode)):
        raise CheckpointError(f"{path} leads to {real}, which is no file of the cache; remove {path} and try again")


def require_intact(file: Path, repo_id: str) -> None:
    """Refuse a file whose content does not match the digest that the Hub announced, and take it out of the cache.

    Args:
        file: Result of `download`.
        repo_id: The repository, for the message.

    Raises:
        CheckpointError: The file is damaged, or cannot be read.
    """
    if not file.is_symlink():
        return  # without symbolic links, the cache does not record the digest
    blob = file.parent / file.readlink()
    announced = blob.name
    digests = _digests(file, len(announced))
    if not digests or announced in digests:
        return
    for path in (file.resolve(), blob, file):  # the first may be another than the second: shared by repositories
        with suppress(OSError):  # the cache may be read-only
            path.unlink()
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
    with open_regular(file) as stream:
        while hashes and (chunk := stream.read(1 << 20)):
            for digest in hashes:
                digest.update(chunk)
    return [digest.hexdigest() for digest in hashes]
