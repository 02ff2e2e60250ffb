"""The pickle inside a file of `torch.save`, read as data: nothing in it is called but what the caller allowed.

PyTorch's own reader runs no code that was not allowed either, but a small pickle can make it crash (tuples nested in a
key), hang (tuples that double) or fill the memory (constructors that take a size). Here tensors are descriptions until
they are asked for, keys are simple values, and whatever is built is paid for from an allowance in proportion to the
size of the pickle.
"""

from __future__ import annotations

import math
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pickletools import opcodes
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

# Tensors with an optimizer's state take 140 bytes each; the pickle of a ViT-B takes 60 kB.
MOST_PICKLE = 4 * 2**20

_CALL = 128  # what a call costs of the allowance; most make an object of some hundred bytes
_NEVER_ALLOWED = ("sys", "os", "posix", "nt")  # as in PyTorch
_REBUILD_TENSOR = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_FUNCTIONS = (*_REBUILD_TENSOR, "torch._utils._rebuild_parameter", "collections.OrderedDict", "_codecs.encode")
# The instructions that torch.save writes.
_INSTRUCTIONS = {
    opcode.code.encode("latin-1"): opcode
    for opcode in opcodes
    if opcode.name
    in "PROTO STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING EMPTY_TUPLE "
    "EMPTY_LIST EMPTY_DICT MARK TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT BINGET "
    "LONG_BINGET GLOBAL REDUCE NEWOBJ BUILD BINPERSID".split()
}
_DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    }.items()
}  # fmt: skip


@dataclass(eq=False)
class Storage:
    """The values that one or several tensors of a file share.

    Args:
        dtype: Their dtype.
        count: Their number.
        data: Their bytes, ``uint8 [count * itemsize]``, once their place in the file is known.
    """

    dtype: torch.dtype
    count: int
    data: Tensor | None = None

    @property
    def size(self) -> int:
        """Their number of bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a file whose values were not read yet; it never has more of them than its storage.

    Args:
        storage: Where its values are.
        offset: Index of its first value in the storage.
        shape: Its shape.
        stride: Its strides, in values.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Return the tensor: pages of the file if its values are aligned there, otherwise a copy."""
        data, dtype = self.storage.data, self.storage.dtype
        assert data is not None
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        if data.storage_offset() % dtype.itemsize:
            data = self.storage.data = data.clone()
        values = data.view(dtype)
        return values.as_strided(self.shape, self.stride, values.storage_offset() + self.offset)


@dataclass(frozen=True)
class _Known:
    """A global that is understood here, by name."""

    name: str


_REFUSED: Final = object()  # stands for an object that is not allowed


class Unpickler:
    """A reader of the pickles in one file.

    Args:
        size: Number of bytes of the pickles.
        legacy: Whether the file is in the format from before PyTorch 1.6.
    """

    def __init__(self, size: int, *, legacy: bool) -> None:
        self.storages: dict[str, Storage] = {}
        self.refused: dict[str, None] = {}  # names of what is not allowed, in order
        self._legacy = legacy
        self._allowance = 2**16 + 8 * size
        # Tuples that hold tuples, by id, with the number of values in them. A tuple that is kept keeps its id.
        self._nested: dict[int, tuple[tuple[Any, ...], int]] = {}
        self._allowed: dict[str, Any] = {}
        for entry in torch.serialization.get_safe_globals():
            value, name = entry if isinstance(entry, tuple) else (entry, f"{entry.__module__}.{entry.__qualname__}")
            self._allowed[name] = value

    def read(self, stream: BinaryIO) -> Any:
        """Read one pickle.

        Args:
            stream: The pickle; it is left behind the last byte.

        Returns:
            Its content, with a `StoredTensor` for each tensor. It means nothing if names were added to ``refused``.

        Raises:
            ValueError: It is damaged, was not written by `torch.save`, or grows out of proportion.
            As an allowed function, or Python for a malformed instruction.
        """
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[Any, Any] = {}
        while True:
            name, argument = _next_instruction(stream)
            self._spend(1)
            match name:
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                    stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                    self._spend(self._values(stack[-1]))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "MARK":
                    marks.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = stack, marks.pop()
                    stack.append(self._tuple(items))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    length = int(name[-1])
                    stack[-length:] = [self._tuple(stack[-length:])]
                case "APPEND":
                    item = stack.pop()
                    self._append(stack[-1], [item])
                case "APPENDS":
                    items, stack = stack, marks.pop()
                    self._append(stack[-1], items)
                case "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                    self._update(stack[-1], items)
                case "SETITEMS":
                    items, stack = stack, marks.pop()
                    self._update(stack[-1], items)
                case "GLOBAL":
                    stack.append(self._global(*argument))
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack[-1] = self._call(stack[-1], arguments, new=name == "NEWOBJ")
                case "BUILD":
                    state = stack.pop()
                    self._build(stack[-1], state)
                case "BINPERSID":
                    stack[-1] = self._storage(stack[-1])
                case "PROTO":
                    if argument != 2:
                        raise ValueError(f"its pickle has protocol {argument}, expected 2, which torch.save writes")
                case "STOP":
                    (content,) = stack
                    return content

    def _spend(self, cost: int) -> None:
        self._allowance -= cost
        if self._allowance < 0:
            raise ValueError("its pickle grows out of proportion, by values nested in one another or used many times")

    def _values(self, item: Any) -> int:
        """Return the number of values in a tuple, counted as often as they appear; 1 for anything else."""
        if type(item) is not tuple:
            return 1
        return self._nested[id(item)][1] if id(item) in self._nested else 1 + len(item)

    def _tuple(self, items: list[Any]) -> tuple[Any, ...]:
        result, values = tuple(items), 1 + sum(map(self._values, items))
        self._spend(values)
        if values > 1 + len(items):
            self._nested[id(result)] = (result, values)
        return result

    def _append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif target is not _REFUSED:
            raise ValueError(f"its pickle appends to a {type(target).__name__}")

    def _update(self, target: Any, items: list[Any]) -> None:
        if target is _REFUSED:
            return
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise ValueError(f"its pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple may take forever, and large numbers can be chosen to have one hash.
            if type(key) not in (str, bool, type(None)) and not (type(key) is int and abs(key) < 2**31):
                self._refuse(f"a dictionary with a {type(key).__name__} as key")
            else:
                target[key] = value

    def _refuse(self, name: str) -> object:
        self.refused[name] = None
        return _REFUSED

    def _global(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        if path in _FUNCTIONS or path in _DTYPES:
            return _Known(path)
        if path in self._allowed and module not in _NEVER_ALLOWED:
            return self._allowed[path]
        return self._refuse(path)

    def _is_allowed(self, value: Any) -> bool:
        return any(value is allowed for allowed in self._allowed.values())

    def _call(self, function: Any, arguments: Any, *, new: bool) -> Any:
        if function is _REFUSED or arguments is _REFUSED:
            return _REFUSED
        if type(arguments) is not tuple:
            raise ValueError("its pickle makes a call without a tuple of arguments")
        if any(argument is _REFUSED for argument in arguments):
            return _REFUSED
        self._spend(_CALL)
        if isinstance(function, _Known) and not new:
            return self._call_known(function.name, arguments)
        if not self._is_allowed(function):
            raise ValueError(f"its pickle calls a {type(function).__name__}")
        self._spend(sum(len(each) for each in arguments if isinstance(each, (str, bytes, list, dict))))
        return function.__new__(function, *arguments) if new else function(*arguments)

    def _call_known(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in _REBUILD_TENSOR:
            return _stored_tensor(*arguments)
        if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], StoredTensor):
            return arguments[0]
        if name == "collections.OrderedDict" and not arguments:
            return OrderedDict()
        if name == "_codecs.encode" and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
            text = arguments[0]
            self._spend(len(text))
            return text.encode("latin-1")
        raise ValueError(f"its pickle calls {name} with arguments that torch.save does not write")

    def _build(self, target: Any, state: Any) -> None:
        if target is _REFUSED or state is _REFUSED:
            return
        if type(target) is OrderedDict:
            # A state dict has its modules' versions as an attribute. Any other could hide a method, such as items.
            if type(state) is not dict or list(state) != ["_metadata"] or not isinstance(state["_metadata"], dict):
                raise ValueError("its pickle gives a dictionary attributes that a state dict does not have")
            target.__dict__.update(state)
        elif not self._is_allowed(type(target)):
            raise ValueError(f"its pickle sets the state of a {type(target).__name__}")
        elif hasattr(target, "__setstate__"):
            target.__setstate__(state)
        else:
            target.__dict__.update(state)

    def _storage(self, identity: Any) -> Storage:
        # (kind, type, key, device, number of values), and in the old format a view that no version writes since 2017
        match identity:
            case ("storage", _Known(name), str() as key, str(), int() as count, *view) if (
                name in _DTYPES and count >= 0 and view == [None] * self._legacy
            ):
                storage = self.storages.setdefault(key, Storage(_DTYPES[name], count))
                if (storage.dtype, storage.count) == (_DTYPES[name], count):
                    return storage
                raise ValueError(f"it gives the storage {key[:40]!r} two types or sizes")
        raise ValueError("its pickle names a storage in a way that torch.save does not")


def _next_instruction(stream: BinaryIO) -> tuple[str, Any]:
    code = stream.read(1)
    opcode = _INSTRUCTIONS.get(code)
    if opcode is None:
        raise ValueError(f"its pickle has the instruction {code!r}, which torch.save does not write")
    if opcode.name == "GLOBAL":  # the standard library interprets backslashes in it
        return opcode.name, (stream.readline()[:-1].decode(), stream.readline()[:-1].decode())
    return opcode.name, opcode.arg.reader(stream) if opcode.arg else None


def _stored_tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    flags: Any = None,
) -> StoredTensor:
    """Describe a tensor after checking that all of its values are stored: the arguments are those of PyTorch."""
    if flags:
        raise ValueError("it holds a tensor that is stored conjugated or negated; save its .resolve_conj()")
    if not isinstance(storage, Storage) or not _are_sizes([offset]) or not _are_sizes(shape) or not _are_sizes(stride):
        raise ValueError("a tensor in it has no valid shape")
    if len(shape) != len(stride) or len(shape) > 64:
        raise ValueError(f"a tensor in it has {len(shape)} dimensions and {len(stride)} strides")
    stride = tuple(step if size > 1 else 1 for size, step in zip(shape, stride, strict=True))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and (math.prod(shape) > storage.count or last >= storage.count):
        raise ValueError(
            f"a tensor in it claims the shape {list(shape)[:8]}, but only {storage.count} values are stored"
        )
    return StoredTensor(storage, offset, shape, stride)


def _are_sizes(values: Sequence[Any]) -> bool:
    return isinstance(values, (tuple, list)) and all(type(v) is int and 0 <= v < 2**63 for v in values)
