"""Find the descriptor that can read a model.

Each file of this folder describes one family and is found by itself: it holds a ``BACKBONE``. Others add theirs
with `register_backbone` or the entry point group ``aim_adapters.backbones``. A descriptor is imported only
when the library it describes is, so that importing this package imports none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.errors import ConfigError, UnsupportedModelError

# Libraries that built-in families describe; a descriptor's file is named after its library.
_LIBRARIES = ("open_clip", "timm", "torchvision", "transformers")
ENTRY_POINT_GROUP = "aim_adapters.backbones"


@dataclass(frozen=True)
class BaseRequest:
    """Say which image model to build, and how its files may be fetched.

    Name, revision and arguments may come from a file that somebody else wrote: they never name a path, and whoever
    builds checks the arguments.

    Args:
        name: The model's name in its library: an entry of its registry, or a repository on the Hub; ``""`` when only
            a directory is known.
        directory: A directory that holds the model, in place of what name and revision would fetch.
        revision: Revision of the weights; one that cannot be honored is an error.
        arguments: `BackboneAnatomy.build_arguments` of the model that is wanted.
        pretrained: False: leave the weights as the library starts them, and fetch none.
        cache_dir: Where downloads are kept; None: where huggingface_hub keeps them.
        token: As huggingface_hub takes it.
        local_files_only: Fetch nothing.
        force_download: Fetch again what the cache holds.
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


@dataclass(frozen=True)
class Backbone:
    """Describe a family of image transformers.

    Args:
        name: Name of the family, unique.
        library: Top-level package of the models, or ``""`` for models of no library.
        describes: What it covers, in a phrase.
        read: ``(model) -> BackboneAnatomy``, or None when the model is not of this family. A model of this family
            that cannot be adapted exactly raises `UnsupportedModelError`.
        build: ``(BaseRequest) -> image model``, for every model of the library, or None where it cannot be rebuilt
            from a name.
    """

    name: str
    library: str
    describes: str
    read: Callable[[nn.Module], BackboneAnatomy | None]
    build: Callable[[BaseRequest], nn.Module] | None = None


_registered: dict[str, Backbone] = {}
_entry_points_loaded = False


def register_backbone(backbone: Backbone) -> Backbone:
    """Add a family of image transformers; tried before the built-in ones, the newest first.

    Args:
        backbone: The family's descriptor.

    Returns:
        The same descriptor.

    Raises:
        ConfigError: It is not a Backbone, or its name is taken.
    """
    _load_entry_points()
    return _add(backbone)


def _add(backbone: Backbone) -> Backbone:
    if not isinstance(backbone, Backbone):
        raise ConfigError(f"register_backbone takes an aim_adapters.Backbone, got {type(backbone).__name__}")
    if backbone.name in [*_built_in_names(), *_registered]:
        raise ConfigError(f"a backbone named {backbone.name!r} exists already; names must be unique")
    _registered[backbone.name] = backbone
    return backbone


def list_backbones() -> list[str]:
    """Return the names of all families, the built-in ones first."""
    _load_entry_points()
    return [*_built_in_names(), *_registered]


def read_anatomy(model: nn.Module) -> BackboneAnatomy:
    """Read the anatomy of a model.

    Raises:
        UnsupportedModelError: No descriptor knows the model, or the one that does cannot adapt it exactly.
    """
    _load_entry_points()
    built_in = [_built_in(name) for name in _built_in_names() if _library(name) in sys.modules]
    for backbone in [*reversed(_registered.values()), *built_in]:
        anatomy = backbone.read(model)
        if anatomy is not None:
            return dataclasses.replace(anatomy, **getattr(model, "aim_source", {}))
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    raise UnsupportedModelError(
        f"{name} is not an image transformer that can be adapted{_block_hint(model)}. Supported families: "
        f"{', '.join(list_backbones())}, the nearest is {_nearest(name)}; describe another one with "
        "aim_adapters.register_backbone"
    )


def build_base(library: str, request: BaseRequest) -> nn.Module:
    """Build an image model by name.

    Args:
        library: The library it comes from, as `BackboneAnatomy.library` has it.
        request: Which model.

    Returns:
        The model, which remembers the name it was built by.

    Raises:
        UnsupportedModelError: No family of that library can be built from a name.
        As the library: it does not know the name, or cannot fetch or read the files.
    """
    _load_entry_points()
    built_in = [_built_in(name) for name in _built_in_names() if _library(name) == library]
    for backbone in [*reversed(_registered.values()), *built_in]:
        if backbone.library == library and backbone.build is not None:
            model = backbone.build(request)
            pinned = {} if request.revision is None else {"model_revision": request.revision}
            model.aim_source = {"model_name": request.name or None, **pinned}  # type: ignore[assignment]
            return model
    raise UnsupportedModelError(f"models of {library or 'no library'} cannot be built from a name")


def _built_in_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith(_LIBRARIES))


def _library(name: str) -> str:
    """Return the package of a built-in family without importing its descriptor: names are ``library_family``."""
    return next(library for library in _LIBRARIES if name.startswith(library))


def _built_in(name: str) -> Backbone:
    descriptor: Backbone = importlib.import_module(f"{__name__}.{name}").BACKBONE
    return descriptor


def _load_entry_points() -> None:
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True  # while they load, too: a package may register its backbone when it is imported
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            backbone = point.load()
        except ImportError as error:
            _entry_points_loaded = False
            raise UnsupportedModelError(
                f"the backbone {point.name!r} that an installed package announces cannot be imported: {error}; "
                "repair or remove that package"
            ) from error
        if backbone not in _registered.values():
            _add(backbone)


def _nearest(name: str) -> str:
    """Return the family most like a model's class: of its kind and library, of its kind, or a plain ViT."""
    families, library = list_backbones(), name.partition(".")[0]
    kind = [family for family in families if family.rpartition("_")[2] in name.lower()]
    here = [family for family in kind if family.startswith(library)]
    plain = [family for family in (f"{library}_vit", "timm_vit") if family in families]
    return (here or kind or plain)[0]


def _block_hint(model: nn.Module) -> str:
    """Name the repeated module that looks like a block, as the first thing an author of a descriptor looks for."""
    for module in model.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1:
            kinds = {type(child) for child in module}
            if len(kinds) == 1:
                kind = kinds.pop()
                return f" (its repeated block is {kind.__module__}.{kind.__qualname__})"
    return ""
