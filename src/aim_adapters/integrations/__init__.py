"""What other libraries need to be told of adapters; each is imported when its name here is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_adapters.integrations.lightning import LightningAdapterCallback
    from aim_adapters.integrations.trainer import AdapterCallback

__all__ = ["AdapterCallback", "LightningAdapterCallback"]

# Module, and what has to be installed for it.
_NEEDS = {
    "AdapterCallback": ("trainer", "transformers and accelerate; install aim-adapters[transformers,train]"),
    "LightningAdapterCallback": ("lightning", "Lightning; pip install lightning"),
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needs = _NEEDS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise ImportError(f"aim_adapters.integrations.{name} needs {needs}") from error
