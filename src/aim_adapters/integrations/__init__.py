"""What other libraries need to be told of adapters; each is imported when its name here is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_adapters.integrations.trainer import AdapterCallback

__all__ = ["AdapterCallback"]


def __getattr__(name: str) -> Any:
    if name != "AdapterCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from aim_adapters.integrations.trainer import AdapterCallback
    except ImportError as error:
        raise ImportError(
            "aim_adapters.integrations.AdapterCallback needs transformers and accelerate; install "
            "aim-adapters[transformers,train]"
        ) from error
    return AdapterCallback
