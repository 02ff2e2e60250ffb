"""What a state dict that is given to ``load_state_dict`` of a wrapped model holds of ours, and whether that is all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn

from aim_adapters.core.base_values import update_samples
from aim_adapters.core.foreign import canonical_path, is_own_name
from aim_adapters.core.state import RootState, declared_tensors
from aim_adapters.errors import CheckpointError

# Keys of `adapter_state_dict` that no image model has.
_ADAPTER_KEY = re.compile(
    r"blocks\.\d+\.((temporal|temporal_conv|temporal_input|spatial|joint)\.(down|up)_proj\.(weight|bias)"
    r"|temporal_conv\.conv_(weight|bias)|temporal_bias)"
    r"|temporal_embedding"
)


def require_whole_state(root: nn.Module, given: Mapping[str, Any], prefix: str) -> None:
    """Refuse a state dict with part of an adapter, or the keys of `adapter_state_dict`, before any of it is copied.

    Args:
        root: A wrapped root.
        given: The state dict, or the part of it that belongs to a module around the root.
        prefix: What stands before the root's own keys in ``given``.

    Raises:
        CheckpointError: It is such a state dict.
    """
    own = root.state_dict(keep_vars=True)
    values = _values(given, prefix, own)
    _refuse_adapter_keys(root, values.keys(), own)
    adapters = defaultdict(list)
    for name in filter(is_own_name, own):
        adapters[name.split(".")[2] if name.startswith("aim.idle.") else ""].append(name)
    for idle, names in adapters.items():
        missing = [name for name in names if name not in values]
        if 0 < len(missing) < len(names):
            title = f"the adapter {idle!r}" if idle else "the adapter that runs"
            some = ", ".join(prefix + name for name in missing[:5]) + (" …" if len(missing) > 5 else "")
            raise CheckpointError(
                f"Missing key(s) in state_dict: it holds {len(names) - len(missing)} of {len(names)} tensors of "
                f"{title}, but not {some}; nothing of it was loaded, as part of an adapter is another one. Wrap the "
                "model with the settings that the state was saved with; or start from what fits with "
                "aim.load_adapter_state_dict(model, state, strict=False), which takes keys of adapter_state_dict. "
                + _RENAMED
            )
        renamed = [] if idle or not missing else _renamed(values, own)
        if renamed:
            raise CheckpointError(
                f"Missing key(s) in state_dict: it holds the adapter's tensors under other names, such as "
                f"{prefix + renamed[0]}; nothing of it was loaded. {_RENAMED}"
            )


_RENAMED = (
    "If transformers wrote it, which renames keys: train with callbacks=[aim.integrations.AdapterCallback()], or save "
    "with save_pretrained(..., save_original_format=False)"
)


def _renamed(given: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return keys of adapters that are none of the model's own keys, whatever stands before those."""
    known = tuple(own)
    return [key for key in given if is_own_name(key) and not key.endswith(known)]


def complete_state(root: nn.Module, given: dict[str, Any], prefix: str, copies: Callable[[], dict[str, str]]) -> None:
    """Add our own tensors to a state dict of the image model alone, so that it loads strictly and ours keep theirs.

    If it is not evidently one, ours stay missing in it, and are reported by ``load_state_dict``.

    Args:
        root: A wrapped root.
        given: The root's part of a state dict; changed in place.
        prefix: What stands before the root's own keys in it.
        copies: Returns the names of our copies that follow what they are copies of, with the names of that.
    """
    own = root.state_dict(keep_vars=True)
    values = _values(given, prefix, own)
    state = root._modules["aim"]
    assert isinstance(state, RootState)
    base = [name for name in own if not is_own_name(name)]
    loaded = {canonical_path(name): values[name] for name in base if name in values}
    if 2 * len(loaded) >= len(base) and not any(map(is_own_name, values)):
        followed = {prefix + ours: values[of] for ours, of in copies().items() if of in values}
        given.update({prefix + name: tensor for name, tensor in own.items() if is_own_name(name)})
        given.update(followed)
    update_samples(state.record.samples, root, loaded)


def _values(given: Mapping[str, Any], prefix: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in a state dict by the root's own keys, without what is in the model already.

    PyTorch's ``set_model_state_dict`` adds the model's own parameters to a state dict that lacks some.
    """
    names = {key: key.removeprefix(prefix) for key in given}
    return {name: given[key] for key, name in names.items() if name not in own or given[key] is not own[name]}


def _refuse_adapter_keys(root: nn.Module, names: AbstractSet[str], own: Mapping[str, Any]) -> None:
    found = set(filter(_ADAPTER_KEY.fullmatch, names - own.keys()))
    if names and names == declared_tensors(root).keys():  # no adapters in blocks: only norm and head
        found = set(names)
    if not found:
        return
    raise CheckpointError(
        f"the state dict has keys of adapter_state_dict, such as {min(found)!r}; nothing of it was loaded, as its norm "
        "and head would overwrite the image model's own. Call aim.load_adapter_state_dict(model, state)"
    )
