"""Records of where the parts of an adapter go, of what unwrapping has to put back, and of one call of the root."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.core.base_values import Samples
from aim_adapters.core.patching import Patched


@dataclass(frozen=True)
class WrapRecord:
    """What unwrapping has to put back.

    Args:
        anatomy: The anatomy the model was wrapped by.
        requires_grad: Names of the model's parameters that required a gradient.
        training: Names of the model's modules that were in training mode.
        fingerprint: Fingerprint of the base model.
        samples: Samples of its weights; a checkpoint of it that is loaded later replaces them.
    """

    anatomy: BackboneAnatomy
    requires_grad: frozenset[str]
    training: frozenset[str]
    fingerprint: str = ""
    samples: Samples = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Patch:
    """One module whose class is swapped.

    Args:
        path: Path of the module, relative to the root.
        mixin: The mixin that its new class has in front of its own.
        spec: What the mixin is told about the module.
    """

    path: str
    mixin: type[Patched]
    spec: Hashable


@dataclass(frozen=True)
class Layout:
    """Where the parts of one adapter go. Paths are relative to the root.

    Args:
        containers: Modules that hold a container of ours, the root first.
        holders: Modules that hold the root's container beside their own parts.
        patches: Modules whose class is swapped.
    """

    containers: tuple[str, ...]
    holders: tuple[str, ...]
    patches: tuple[Patch, ...]


class RootCall(NamedTuple):
    """What the root tells its blocks for one call of its ``forward``.

    Attributes:
        class_token_only: Of what the last block returns, only the [class] token is read.
        thread: The thread that makes the call; None inside a compiled graph, which belongs to one call.
        unrecorded: Gradients are recorded around the model, but nothing of ours has seen tokens yet that require one.
    """

    class_token_only: bool
    thread: int | None
    unrecorded: bool

    @classmethod
    def here(cls, *, class_token_only: bool, unrecorded: bool = False) -> RootCall:
        """Return the record of a call that this thread makes."""
        return cls(class_token_only, None if torch.compiler.is_compiling() else threading.get_ident(), unrecorded)

    def reads_class_token_only(self) -> bool:
        """Return whether this is a call of the present thread that reads the [class] token alone."""
        if not self.class_token_only or torch.compiler.is_compiling():
            return self.class_token_only
        return self.thread == threading.get_ident()
