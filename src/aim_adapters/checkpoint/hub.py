"""Adapters pushed to the Hugging Face Hub: weights, config and card in one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from torch import nn

from aim_adapters.analysis import count_root_flops
from aim_adapters.arguments import optional_text, require_flags, require_text
from aim_adapters.checkpoint.card import card_facts, make_card
from aim_adapters.checkpoint.snapshot import Snapshot, take_snapshot
from aim_adapters.core import WrappedModel, is_sharded, only_root
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import (
    CARD_NAME,
    CONFIG_NAME,
    COUNTED_NAME,
    LIBRARY_NAME,
    WEIGHTS_NAME,
    download,
    explained_push,
    explained_writing,
    read_bytes,
    require_inner_path,
    require_repo_id,
    require_token,
    write_weights,
)
from aim_adapters.version import __version__


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    name: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload AIM adapters",
    commit_description: str | None = None,
    subfolder: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    tags: Sequence[str] = (),
    frame_stride: int | None = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    allow_nonfinite: bool = False,
) -> str:
    """Push one adapter to the Hub, with its config and a model card, in one commit.

    All arguments are checked before the first request to the Hub. The text of an existing ``README.md`` is kept. If the
    branch changes in the meantime, nothing is committed.

    Args:
        model: A wrapped model. If it is sharded, every process must call, and the first one pushes.
        repo_id: Repository on the Hub, ``"user/repo"``, or ``"repo"`` for one of your own; created if needed.
        name: Name of the adapter; by default the one that runs.
        private: Whether a new repository is private; by default the setting of its owner. An existing one is unchanged.
        token: Access token with permission to write; by default the one this machine is logged in with.
        branch: Branch to commit to, created from the main one if needed; ``"refs/pr/1"`` adds to a pull request.
        create_pr: Open a pull request instead of committing to the branch.
        commit_message: First line of the commit message.
        commit_description: Further lines of the commit message.
        subfolder: Folder of the repository for weights and config. The card has a section for each folder.
        license: For the card: identifier of the license, such as ``"mit"``.
        datasets: For the card: training data, as identifiers on the Hub.
        metrics: For the card: results on the first of ``datasets``, such as ``{"accuracy": 0.847}``.
        tags: For the card: further tags.
        frame_stride: Distance between sampled frames, in frames of the video.
        labels: Names of the classes in the order of the outputs; by default those that the image model knows, such as
            transformers' ``id2label``.
        mean: Mean of each channel by which frames are normalized, for pixels in [0, 1]; by default that of the image
            model, if known.
        std: Standard deviation of each channel, likewise.
        base_model_name_or_path: Name of the base model; by default its name in its library.
        base_model_revision: Revision of the base model's weights.
        allow_nonfinite: Whether NaN and infinities are pushed.

    Returns:
        The commit's id, which `load_adapters` takes as ``revision``; ``""`` on processes that do not push.

    Raises:
        TypeError: ``model`` is not a module.
        StateError: The model is not wrapped, holds several wrapped models, or has no weights (meta device).
        ConfigError: There is no adapter of this name, or ``labels``, ``frame_stride``, ``mean``, ``std``,
            ``commit_message`` or an argument for the card is invalid.
        CheckpointError: The adapter cannot be saved, for the reasons of `save_adapters`; ``repo_id``, ``subfolder``,
            ``branch`` or ``token`` is malformed; the ``README.md`` of the repository is not UTF-8; the Hub is not asked
            (``HF_HUB_OFFLINE``), could not be reached, refused the push or answered as no Hub does; or there is no room
            for temporary files. The repository may have been created;
            files are committed together or not at all.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    require_repo_id(repo_id)
    require_inner_path("subfolder", subfolder)
    require_inner_path("branch", branch)
    require_token(token)
    commit_message = require_text("commit_message", commit_message, expected="a line of text")
    commit_description = optional_text("commit_description", commit_description)
    if not commit_message:
        raise ConfigError("commit_message must be a line of text, got ''")
    require_flags(create_pr=create_pr, private=private is not None and private)
    facts = card_facts(license=license, datasets=datasets, metrics=metrics, tags=tags)
    wrapped = only_root(model)
    snapshot = take_snapshot(
        model,
        wrapped,
        name=name,
        base_model_name_or_path=base_model_name_or_path,
        base_model_revision=base_model_revision,
        frame_stride=frame_stride,
        labels=labels,
        mean=mean,
        std=std,
        allow_nonfinite=allow_nonfinite,
    )
    if snapshot is None:
        return ""
    card = partial(
        make_card,
        snapshot.config,
        parameters=snapshot.parameters,
        gmacs=_gmacs(wrapped, name, snapshot),
        subfolder=subfolder,
        revision=branch,
        **facts._asdict(),
    )
    folder = f"{subfolder}/" if subfolder else ""
    api = HfApi(token=token, library_name=LIBRARY_NAME, library_version=__version__)
    with explained_writing(Path(gettempdir())):
        temporary = TemporaryDirectory()
    with temporary as directory:
        # The client reads a large file piece by piece; as bytes the weights would be in memory twice.
        weights = Path(directory) / WEIGHTS_NAME
        write_weights(weights, snapshot.tensors, snapshot.metadata())
        operations = [
            CommitOperationAdd(folder + WEIGHTS_NAME, weights),
            CommitOperationAdd(folder + CONFIG_NAME, snapshot.config_text().encode()),
        ]
        failed = partial(explained_push, repo_id, outcome="nothing was committed")
        with failed(step="making the repository"):
            made = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            require_repo_id(made)
            if not f"/{made}".lower().endswith(f"/{repo_id}".lower()):
                raise CheckpointError("the Hub answered with another repository")
            repo_id = made
        if branch and not branch.startswith("refs/"):
            with failed(step="making the branch"):
                api.create_branch(repo_id, branch=branch, exist_ok=True)
        with failed(step="looking into the repository"):
            info = api.model_info(repo_id, revision=branch)
            parent = _commit_in(info.sha)
            if info.siblings is None:
                raise CheckpointError("the Hub did not say which files the repository holds; try again")
            files = {file.rfilename for file in info.siblings}
            existing = _readme(repo_id, parent, token=token, directory=directory) if CARD_NAME in files else None
        operations.append(CommitOperationAdd(CARD_NAME, card(repo_id=repo_id, existing=existing).encode()))
        if COUNTED_NAME not in files:
            operations.append(CommitOperationAdd(COUNTED_NAME, _COUNTED.encode()))
        with failed(step="committing", outcome="look at its page whether the commit was made"):
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=branch,
                create_pr=create_pr,
                parent_commit=parent,
            )
            return _commit_in(commit.oid)


_COUNTED = json.dumps({"model_type": "aim", "library_name": LIBRARY_NAME}, indent=2) + "\n"


def _gmacs(wrapped: WrappedModel, name: str | None, snapshot: Snapshot) -> float | None:
    """Return the multiply-accumulates of a clip, or None if one process alone cannot count them."""
    state = wrapped.state
    runs = name in (None, state.name) and state.enabled
    sharded = any(map(is_sharded, wrapped.root.parameters()))
    if not runs or sharded or state.anatomy.patch_inputs or not snapshot.config["clip"]["size"]:
        return None
    return count_root_flops(wrapped).gmacs


def _commit_in(answer: object) -> str:
    """Return a commit's id from the Hub after checking it."""
    if not isinstance(answer, str) or not re.fullmatch("[0-9a-f]{40}", answer):
        raise CheckpointError("the Hub did not answer with a commit; check HF_ENDPOINT and proxies")
    return answer


def _readme(repo_id: str, commit: str, *, token: str | bool | None, directory: str) -> str:
    path = download(repo_id, CARD_NAME, revision=commit, token=token, cache_dir=Path(directory))
    try:
        return read_bytes(path).decode()  # bytes keep the line endings
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{CARD_NAME} of {repo_id} is not UTF-8 and cannot be added to: {error}") from error
