"""The descriptor of a family of image transformers, and the request for one of its models."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import require_text, shown
from aim_adapters.errors import ConfigError


@dataclass(frozen=True)
class BaseRequest:
    """An image model to build, and how its files may be fetched.

    Name, revision and arguments may come from a file that somebody else wrote: they never name a path, and ``build``
    checks the arguments.

    Args:
        name: The model's name in its library: an entry of its registry, or a repository on the Hub; ``""`` when only
            a directory is known.
        directory: Directory that holds the model; it takes the place of what name and revision would fetch.
        revision: Revision of the weights. A library without revisions refuses it.
        arguments: `BackboneAnatomy.build_arguments` of the model.
        pretrained: False: keep the library's random initialization and fetch no weights.
        cache_dir: Where downloads are kept; None: huggingface_hub's cache.
        token: Access token for the Hub, as huggingface_hub takes it.
        local_files_only: Fetch nothing.
        force_download: Fetch files that are in the cache again.
        check: Called with the model that would be built, on the meta device, before weights are fetched or memory is
            taken. It raises an error if the model is not the one that is expected. Only for models of the built-in
            families' libraries.
    """

    name: str
    directory: Path | None = None
    revision: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False
    force_download: bool = False
    check: Callable[[nn.Module], None] | None = field(default=None, repr=False, compare=False)

    def with_arguments(self, **arguments: Any) -> BaseRequest:
        """Return the same request with more arguments.

        Args:
            **arguments: Arguments of the model by name.
        """
        return dataclasses.replace(self, arguments={**self.arguments, **arguments})


@dataclass(frozen=True)
class Backbone:
    """The descriptor of a family of image transformers.

    Args:
        name: Name of the family, unique.
        library: Top-level package of the models, or ``""`` for models of no library.
        describes: A phrase that names the models of the family.
        read: ``(model) -> BackboneAnatomy``, or None when the model is not of this family. A model of this family
            that cannot be adapted exactly raises `UnsupportedModelError`.
        build: ``(BaseRequest) -> image model``, for every model of the library; None if models cannot be rebuilt from
            a name.
        hub_id: ``(name) -> repository on the Hub``, or None when the name does not stand for one; for every model of
            the library. Model cards link to it. By default only names ``hf-hub:user/name`` are repositories.
        call: ``(build arguments) -> code`` to call with a video: ``"model"`` or a method of it; None when a model built
            with these arguments reads more than a video. For every model of the library; model cards show it. By
            default it is ``"model"``.
        labels: ``(root, name) -> names of classes``: those that the root's own record of its classes gives, or the
            published weights of that name; None when neither does. For every model of the library; saved adapters
            record them.
        names: ``() -> names`` of models of this family with published weights, as ``build`` takes them; None when the
            library has no list of them.
        classifier: ``(BaseRequest, (height, width) or None) -> BaseRequest``: the same request, completed for a model
            that is going to classify frames of that size, or of the model's own. For every model of the library; by
            default it is complete, and other sizes are refused.

    Raises:
        ConfigError: A field is of another kind.
    """

    name: str
    library: str
    describes: str
    read: Callable[[nn.Module], BackboneAnatomy | None]
    build: Callable[[BaseRequest], nn.Module] | None = None
    hub_id: Callable[[str], str | None] | None = None
    call: Callable[[Mapping[str, Any]], str | None] | None = None
    labels: Callable[[nn.Module, str | None], Sequence[str] | None] | None = None
    names: Callable[[], Sequence[str]] | None = None
    classifier: Callable[[BaseRequest, tuple[int, int] | None], BaseRequest] | None = None

    def __post_init__(self) -> None:
        """Validate the kind of every field."""
        for name in ("name", "library", "describes"):
            require_text(name, getattr(self, name))
        for name in ("read", "build", "hub_id", "call", "labels", "names", "classifier"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name != "read")):
                raise ConfigError(f"{name} must be a function{' or None' * (name != 'read')}, got {shown(value)}")


def prefixed_hub_id(name: str) -> str | None:
    """Return the repository of a name ``hf-hub:user/name``, at any revision; None for other names."""
    scheme, _, rest = name.partition(":")
    return rest.partition("@")[0] if scheme in ("hf-hub", "hf_hub") else None
