"""Image models by one name, ``library:name``, as a command line or a settings file gives it."""

from __future__ import annotations

import difflib
import pickle
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from aim_adapters.arguments import require_string
from aim_adapters.backbones.descriptor import BaseRequest
from aim_adapters.backbones.registry import LIBRARIES, backbones_of, build_base, read_anatomy
from aim_adapters.errors import AIMError, CheckpointError, ConfigError, UnsupportedModelError
from aim_adapters.storage import quotes_token


def build_failures() -> tuple[type[Exception], ...]:
    """Return the errors that libraries raise for unknown names and unreadable files."""
    from huggingface_hub import errors

    return (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
        pickle.PickleError,
        getattr(errors, "StrictDataclassError", OSError),
    )


def list_models(library: str) -> list[str]:
    """Return the names of a library's models that can be adapted and have published weights.

    Args:
        library: ``"timm"``, ``"open_clip"``, ``"torchvision"``, or that of a registered backbone. transformers has no
            list of its models: any repository on the Hub can hold one.

    Raises:
        ConfigError: No backbone is of that library.
        ImportError: The library is not installed.
    """
    backbones = list(backbones_of(library))
    if not backbones:
        raise ConfigError(f"no backbone is of the library {library!r:.80}; expected one of {', '.join(LIBRARIES)}")
    return sorted({name for backbone in backbones if backbone.names for name in backbone.names()})


def build_classifier(
    name: str, *, image_size: tuple[int, int] | None = None, pretrained: bool = True, local_files_only: bool = False
) -> nn.Module:
    """Build an image model that is going to classify videos.

    Args:
        name: The library and the model's name in it, ``timm:vit_base_patch16_clip_quickgelu_224.openai``; or the
            library and a directory in its format, ``timm:path/to/model``.
        image_size: Height and width of frames; by default those that the model was made for.
        pretrained: False: keep the library's random initialization and fetch no weights.
        local_files_only: Fetch nothing.

    Raises:
        ConfigError: The name is of another form, or the library does not know it.
        CheckpointError: The files cannot be fetched or read.
        UnsupportedModelError: The model cannot be adapted, or the backbone of an installed package cannot be imported.
    """
    expected = "a library and a name, such as 'timm:vit_base_patch16_clip_quickgelu_224.openai'"
    library, _, rest = require_string("model", name, expected=expected).partition(":")
    if not rest or not any(backbones_of(library)):
        near = _near(name.rpartition(":")[2])
        hint = f"near it: {', '.join(near)}" if near else f"libraries are {', '.join(LIBRARIES)}"
        if Path(name).expanduser().is_dir():
            hint = f"put the library of this directory in front, as in 'timm:{name:.200}'"
        raise ConfigError(f"model must be {expected}, got {name!r:.200}; {hint}")
    directory = Path(rest).expanduser()
    found = directory if directory.is_dir() else None
    if found is None and rest.startswith((".", "/", "~")):
        raise ConfigError(f"there is no directory {rest!r:.200} to read a model of {library} from")
    request = BaseRequest(
        "" if found else rest,
        found,
        pretrained=pretrained,
        local_files_only=local_files_only,
        check=_require_adaptable,
    )
    try:
        complete = next((backbone.classifier for backbone in backbones_of(library) if backbone.classifier), None)
        if complete is not None:
            request = complete(request, image_size)
        elif image_size is not None:
            raise ConfigError(f"models of {library} are built for the frames that they were made for")
        return build_base(library, request)
    except UnsupportedModelError:
        raise
    except build_failures() as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ConfigError(f"the model {name!r:.200} needs {library}: pip install {library}") from error
        if found is None and "/" not in rest and (near := _near(rest, library)):
            raise ConfigError(f"{library} knows no model {rest!r:.200}; near it: {', '.join(near)}") from error
        if isinstance(error, AIMError) and not isinstance(error, CheckpointError):
            raise
        hidden = quotes_token(error)
        reason = type(error).__name__ if hidden else error
        raise CheckpointError(f"cannot build the image model {name!r:.200}: {reason}") from (None if hidden else error)


def _require_adaptable(draft: nn.Module) -> None:
    """Refuse a model that cannot be adapted before its weights are fetched."""
    read_anatomy(draft)


def _near(name: str, library: str | None = None) -> list[str]:
    """Return models whose names are like one that is unknown; none if it is known.

    Args:
        name: The name, without its library.
        library: Its library, or None if it is unknown, too.
    """
    wanted, names = name.casefold(), dict[str, str]()
    for each in [library] if library else ["timm", "torchvision"]:
        for model in list_models(each):
            names[f"{each}:{model}"] = model.casefold()
            architecture = model.replace(":", ".").partition(".")[0]
            names.setdefault(f"{each}:{architecture}", architecture.casefold())
    if library and f"{library}:{name}" in names:
        return []
    longer = [full for full, model in names.items() if wanted and model.startswith(wanted)]
    close = difflib.get_close_matches(wanted, list(names.values()), n=4, cutoff=0.6)
    return (
        sorted(longer, key=len) or [full for model in dict.fromkeys(close) for full in names if names[full] == model]
    )[:4]
