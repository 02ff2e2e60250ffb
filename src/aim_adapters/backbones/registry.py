"""The known families: built-in ones, found by their files, and those that other packages register.

A built-in descriptor is imported only when a model of its library is read, built or described, and its library only
when a model is read or built: importing this package imports none of the libraries.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from torch import nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.arguments import shown
from aim_adapters.backbones._limits import limited
from aim_adapters.backbones.descriptor import Backbone, BaseRequest, prefixed_hub_id
from aim_adapters.errors import ConfigError, UnsupportedModelError

# Libraries that built-in families describe; a descriptor's file is named after its library.
LIBRARIES = ("open_clip", "timm", "torchvision", "transformers")
_ROOM = __name__.rpartition(".")[0]
ENTRY_POINT_GROUP = "aim_adapters.backbones"

_registered: dict[str, Backbone] = {}
_entry_points_loaded = False


def register_backbone(backbone: Backbone) -> Backbone:
    """Add a family of image transformers; tried before the built-in ones, the newest first.

    Args:
        backbone: The family's descriptor.

    Returns:
        The same descriptor.

    Raises:
        ConfigError: ``backbone`` is not a `Backbone`, or its name is taken.
        UnsupportedModelError: The backbone of another installed package cannot be imported.
    """
    _load_entry_points()
    return _add(backbone)


def _add(backbone: Backbone) -> Backbone:
    if not isinstance(backbone, Backbone):
        raise ConfigError(f"register_backbone takes an aim_adapters.Backbone, got {type(backbone).__name__}")
    if backbone.name in [*_built_in_names(), *_registered]:
        raise ConfigError(f"a backbone named {shown(backbone.name)} exists already; names must be unique")
    _registered[backbone.name] = backbone
    return backbone


def list_backbones() -> list[str]:
    """Return the names of all families, the built-in ones first.

    Raises:
        UnsupportedModelError: The backbone of an installed package cannot be imported.
    """
    _load_entry_points()
    return [*_built_in_names(), *_registered]


def read_anatomy(model: nn.Module) -> BackboneAnatomy:
    """Read the anatomy of a model.

    Args:
        model: An image model, not wrapped.

    Raises:
        UnsupportedModelError: No family has such models, the model cannot be adapted exactly, or the backbone of an
            installed package cannot be imported.
    """
    _load_entry_points()
    anatomy = _read(model)
    if anatomy is not None:
        source: dict[str, Any] = dict(getattr(model, "aim_source", {}))
        if {len(each or ()) for each in (anatomy.image_mean, anatomy.image_std)} != {anatomy.in_channels}:
            source |= {"image_mean": None, "image_std": None}  # those of weights for other channels
        return dataclasses.replace(anatomy, **source)
    inner = _known_inside(model)
    if inner:
        places = " or ".join(_accessor(path) for path in inner)
        raise UnsupportedModelError(
            f"this {type(model).__name__} is not an image transformer that can be adapted, but holds one: take the "
            f"inner model instead, {places}; the module around it goes on as it is"
        )
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    raise UnsupportedModelError(
        f"{name} is not an image transformer that can be adapted{_block_hint(model)}. Supported families: "
        f"{', '.join(list_backbones())}, the nearest is {_nearest(name)}; describe another one with "
        "aim_adapters.register_backbone"
    )


def _read(model: nn.Module) -> BackboneAnatomy | None:
    built_in = [_built_in(name) for name in _built_in_names() if _library(name) in sys.modules]
    for backbone in [*reversed(_registered.values()), *built_in]:
        anatomy = backbone.read(model)
        if anatomy is not None:
            return anatomy
    return None


def _known_inside(model: nn.Module) -> list[str]:
    """Return the paths of the image transformers inside a model, without those inside of them."""
    found: list[str] = []
    for path, module in model.named_modules():
        if path and not any(path.startswith(f"{outer}.") for outer in found):
            with suppress(UnsupportedModelError):
                if _read(module) is not None:
                    found.append(path)
    return found


def _accessor(path: str) -> str:
    """Return the code that reads a module at a path: ``model.backbone[0]``."""
    return "model" + "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in path.split("."))


def build_base(library: str, request: BaseRequest) -> nn.Module:
    """Build an image model by name.

    Args:
        library: The library it comes from, as in `BackboneAnatomy.library`.
        request: The model's name and arguments, and how its files may be fetched.

    Returns:
        The model, which remembers the name it was built by.

    Raises:
        UnsupportedModelError: Models of that library cannot be built from a name, or the backbone of an installed
            package cannot be imported.
        CheckpointError: The model takes more than its weights can fill.
        As ``request.check``.
        As the library: it does not know the name, or cannot fetch or read the files.
    """
    _load_entry_points()
    for backbone in backbones_of(library):
        if backbone.build is not None:
            model = _build(backbone.name, backbone.build, request)
            pinned = {} if request.revision is None else {"model_revision": request.revision}
            model.aim_source = {"model_name": request.name or None, **pinned}  # type: ignore[assignment]
            return model
    raise UnsupportedModelError(f"models of {library or 'no library'} cannot be built from a name")


def _build(name: str, build: Callable[[BaseRequest], nn.Module], request: BaseRequest) -> nn.Module:
    if name not in _built_in_names():  # other packages answer for their own
        return build(request)
    with limited():
        return build(request)


class BaseFacts(NamedTuple):
    """Facts about an image model for its card.

    Attributes:
        hub_id: The repository on the Hub that its name stands for, or None.
        call: The code to call with a video: ``"model"`` or a method of it. None if a video is not all that it reads.
    """

    hub_id: str | None
    call: str | None


def base_facts(library: str, name: str, arguments: Mapping[str, Any]) -> BaseFacts:
    """Return facts about an image model from the descriptors of its library, which need not be installed.

    Args:
        library: The library it comes from, as in `BackboneAnatomy.library`.
        name: Its name in that library.
        arguments: Its `BackboneAnatomy.build_arguments`.
    """
    # A broken package is reported when a model is read; it must not prevent saving.
    with suppress(UnsupportedModelError):
        _load_entry_points()
    backbones = list(backbones_of(library))
    hub_id = next((backbone.hub_id for backbone in backbones if backbone.hub_id), prefixed_hub_id)
    call = next((backbone.call for backbone in backbones if backbone.call), None)
    return BaseFacts(hub_id(name), call(arguments) if call else "model")


def base_labels(library: str, root: nn.Module, name: str | None) -> Sequence[str] | None:
    """Return the names of the classes that an image model tells apart, or None when its library does not know them.

    Args:
        library: The library it comes from, as in `BackboneAnatomy.library`.
        root: The root, wrapped or not.
        name: Its name in that library, or None.
    """
    read = next((backbone.labels for backbone in backbones_of(library) if backbone.labels), None)
    return read(root, name) if read else None


def backbones_of(library: str) -> Iterator[Backbone]:
    """Yield the families of a library, registered ones first. The library is not imported.

    Args:
        library: Name of the library.
    """
    yield from (backbone for backbone in reversed(_registered.values()) if backbone.library == library)
    yield from (_built_in(name) for name in _built_in_names() if _library(name) == library)


def _built_in_names() -> list[str]:
    files = pkgutil.iter_modules(importlib.import_module(_ROOM).__path__)
    return sorted(file.name for file in files if file.name.startswith(LIBRARIES))


def _library(name: str) -> str:
    """Return the package of a built-in family without importing its descriptor: names are ``library_family``."""
    return next(library for library in LIBRARIES if name.startswith(library))


def _built_in(name: str) -> Backbone:
    descriptor: Backbone = importlib.import_module(f"{_ROOM}.{name}").BACKBONE
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
    """Return the family most like a model's class: of the same kind and library, of the same kind, or a plain ViT."""
    families, library = list_backbones(), name.partition(".")[0]
    same_kind = [family for family in families if family.rpartition("_")[2] in name.lower()]
    same_library = [family for family in same_kind if family.startswith(library)]
    plain = [family for family in (f"{library}_vit", "timm_vit") if family in families]
    return (same_library or same_kind or plain)[0]


_POOLING_BLOCKS = frozenset(
    {
        "timm.models.hiera.HieraBlock",
        "timm.models.hieradet_sam2.MultiScaleBlock",
        "timm.models.mvitv2.MultiScaleVitStage",
    }
)
_POOLS = (
    ", whose attention pools: it returns fewer tokens than it reads, so that attention over time cannot be added to "
    "what the block reads"
)


def _block_hint(model: nn.Module) -> str:
    """Return a note on the type of the repeated module, which the author of a descriptor needs first."""
    for module in model.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > 1:
            kinds = {type(child) for child in module}
            if len(kinds) == 1:
                kind = kinds.pop()
                name = f"{kind.__module__}.{kind.__qualname__}"
                return f" (its repeated block is {name}{_POOLS if name in _POOLING_BLOCKS else ''})"
    return ""
