"""Video models built from a checkpoint alone: the base model that it names, and its adapter."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aim_adapters.arguments import require_flags, require_path, shown
from aim_adapters.backbones import BaseRequest, build_base, build_failures, read_anatomy
from aim_adapters.checkpoint.agreement import OtherBase, require_same_shapes
from aim_adapters.checkpoint.format import open_checkpoint
from aim_adapters.checkpoint.loading import wrap_and_load
from aim_adapters.errors import CheckpointError, ConfigError
from aim_adapters.storage import HubOptions, file_mode, locate, quotes_token, require_inner_path

# An entry of a registry or a repository on the Hub, with a tag in libraries that have tags. Never a path or a URL.
_NAME = re.compile(r"(?!local-dir:)(hf-hub:)?\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?", re.ASCII)


def load_video_model(
    source: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
    base_model_revision: str | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """Build the video model of a checkpoint: the base model that its config names, with the adapter and the head.

    Weights are read once. On the CPU, the base model's weights from a safetensors file are memory-mapped, not copied:
    do not write to that file while the model is in use. Each weight has the bits of its file, but begins where it does
    in the file. So outputs on a CPU equal those of a model whose weights PyTorch allocated to rounding, and to the bit
    after ``copy.deepcopy(model)``.

    The config may be somebody else's. So the base model that it names is compared with its fingerprint before memory is
    taken, and its weights are read from safetensors only.

    Args:
        source: A directory made by `save_adapters`, or the id of a repository on the Hugging Face Hub.
        base_model: The base model, if not the one in the config: a directory in its library's own format, or another
            name in the same library, which a warning reports.
        base_model_revision: Revision of the base model, if not the one in the config.
        pretrained: False: keep the base model's random initialization and fetch no weights, for a model into which a
            full state dict is loaded next.
        revision: Branch, tag or commit of the checkpoint's repository.
        subfolder: Folder of the checkpoint inside ``source``.
        token: Access token for the Hub; by default the one this machine is logged in with.
        cache_dir: Where downloads are kept; by default the Hub's own cache.
        local_files_only: Use only files that were downloaded before.
        force_download: Download files again that were downloaded before.

    Returns:
        The wrapped model, in evaluation mode, on the CPU. The same parameters train as after `load_adapters`.

    Raises:
        TypeError: ``source`` is not a path.
        CheckpointError: The files cannot be fetched, are missing, damaged or of another library; the config names no
            base model, or one that cannot be built; or the adapter does not fit it.
        ConfigError: ``base_model`` is neither a directory nor a name, or a directory with a revision; or a flag is
            neither True nor False.
        UnsupportedModelError: The base model cannot be adapted.
    """
    require_flags(pretrained=pretrained)
    require_inner_path("base_model_revision", base_model_revision)
    options = HubOptions(
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    with open_checkpoint(locate(source, options)) as checkpoint:
        config = checkpoint.config
        name, base_directory = _name_or_directory(base_model)
        if base_directory is not None and base_model_revision is not None:
            raise ConfigError(f"base_model={str(base_model)!r} is a directory, which has no revision; leave it out")
        request = BaseRequest(
            name or name_in(config, checkpoint.directory, required=base_directory is None),
            base_directory,
            revision=base_model_revision if name else base_model_revision or revision_in(config),
            arguments=config.get("base_model_arguments", {}),
            pretrained=pretrained,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        model = _build(request, config, source)
        # Another base model is the caller's choice: it is only warned about, and only that is less strict.
        chosen = name is not None or base_model_revision is not None
        other_base: OtherBase = "ignore" if not pretrained else "warn" if chosen else "refuse"
        loaded = wrap_and_load(model, checkpoint, name=None, strict=name is None, other_base=other_base)
    if any(loaded.report):
        raise CheckpointError(f"the checkpoint {source} does not fit the base model {request.name}: {loaded.report}")
    state = loaded.adapter.state
    base = {"base_model_name_or_path": request.name or None, "base_model_revision": request.revision}
    state.origin = {**state.origin, **base}  # adapters trained from here on belong to this base model
    return model.eval()


def _name_or_directory(base_model: str | os.PathLike[str] | None) -> tuple[str | None, Path | None]:
    if base_model is None:
        return None, None
    text = base_model if isinstance(base_model, str) else str(require_path("base_model", base_model))
    text = text.removeprefix("local-dir:")
    if text and stat.S_ISDIR(file_mode(text)):
        return None, Path(text)
    if isinstance(base_model, str) and _NAME.fullmatch(base_model):
        return base_model, None
    raise ConfigError(f"base_model={shown(base_model)} is neither a directory nor the name of a model")


def name_in(config: Mapping[str, Any], where: Path, *, required: bool) -> str:
    """Return the base model's name in a config that somebody else may have written: it must not be a local path.

    Args:
        config: The config.
        where: Its directory, for messages.
        required: Whether it must have one; ``""`` is returned otherwise.

    Raises:
        CheckpointError: It has none, or a path.
    """
    name: str = config.get("base_model_name_or_path") or ""
    if _NAME.fullmatch(name) and ".." not in name:
        return name
    if required:
        fix = "if you trust this path, pass it as base_model=" if name else "pass base_model="
        raise CheckpointError(f"the config in {where} names the base model {name or None!r:.80}: {fix}")
    return ""


def revision_in(config: Mapping[str, Any]) -> str | None:
    """Return the revision of the base model in a config that somebody else may have written.

    Args:
        config: The config.

    Raises:
        CheckpointError: It is no name of a revision.
    """
    revision: str | None = config.get("base_model_revision")
    require_inner_path("base_model_revision", revision)
    return revision


def _build(request: BaseRequest, config: Mapping[str, Any], source: str | os.PathLike[str]) -> nn.Module:
    library = config.get("base_model_library", "")
    others: list[CheckpointError] = []

    def check(draft: nn.Module) -> None:
        anatomy = read_anatomy(draft)
        try:
            require_same_shapes(draft.get_submodule(anatomy.root), anatomy, config)
        except CheckpointError as error:
            others.append(error)
            raise

    request = dataclasses.replace(request, check=check)
    try:
        with torch.device("cpu"):  # tensors from files are there, whatever the default device is
            return build_base(library, request)
    except build_failures() as error:
        if error in others:  # it could be built, but is another one
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        hidden = quotes_token(error)
        reason = "it is not installed" if missing else type(error).__name__ if hidden else error
        raise CheckpointError(
            f"cannot build the base model {str(request.directory or request.name)!r} of {library or 'no library'}: "
            f"{reason}. Or build it yourself and call aim.load_adapters(model, {os.fspath(source)!r})"
        ) from (None if hidden else error)
