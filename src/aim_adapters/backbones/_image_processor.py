"""How images of a model of transformers are normalized, as its image processor says."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from aim_adapters.errors import CheckpointError
from aim_adapters.storage import read_json

# Where the image processor's config is: inside that of a processor of images and text, which goes first, or alone.
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def image_statistics(model: Any) -> dict[str, Any]:
    """Return the mean and std of each channel from the image processor's config, if it lies where the model came from.

    Nothing is fetched: it is looked for in the model's directory, or in the Hub's cache.

    Args:
        model: The whole model.
    """
    config = _image_processor(model)
    mean, std = (_numbers(config.get(key)) for key in ("image_mean", "image_std"))
    scaled = any(math.isclose(scale, 1 / 255) for scale in _numbers([config.get("rescale_factor", 1 / 255)]))
    channels = getattr(model.config, "vision_config", model.config).num_channels
    if not scaled or False in (config.get("do_normalize"), config.get("do_rescale")):
        return {}  # they are not for pixels in [0, 1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        return {}
    return {"image_mean": mean, "image_std": std}


def _image_processor(model: Any) -> dict[str, Any]:
    """Return the config of a model's image processor, or nothing."""
    from huggingface_hub import try_to_load_from_cache

    folder = model.name_or_path
    is_folder = bool(folder) and Path(folder).is_dir()
    for name in PROCESSORS if folder else ():
        found = Path(folder, name) if is_folder else None
        if not is_folder:
            with suppress(ValueError):  # it cannot be the id of a repository
                cached = try_to_load_from_cache(folder, name, revision=getattr(model.config, "_commit_hash", None))
                found = Path(cached) if isinstance(cached, str) else None
        if found is None or not found.is_file():
            continue
        try:
            config = read_json(found)
        except CheckpointError:  # transformers refuses such a file as well
            return {}
        own: Any = config.get("image_processor") if name == PROCESSORS[0] else config
        if isinstance(own, dict):
            return own
    return {}


def _numbers(values: Any) -> tuple[float, ...]:
    """Return the numbers of a list that holds nothing else and none too large, or nothing."""
    usable = isinstance(values, list) and all(type(value) in (int, float) and abs(value) < 1e6 for value in values)
    return tuple(values) if usable else ()
