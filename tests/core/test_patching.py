"""Swapping a module's class keeps the object, its name and its copies whole, and can be undone."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_adapters.core import patching
from aim_adapters.core.patching import (
    Patched,
    blocked_methods,
    foreign_forward,
    patch,
    patched_class,
    unpatch,
    wrap_forward,
)
from aim_adapters.errors import AIMError, StateError


class Scaler(nn.Linear):
    """Scale and project."""

    def forward(self, x: Tensor, *, gain: float = 2.0) -> Tensor:
        """Run the image model's own forward."""
        return super().forward(x) * gain

    def reset(self, value: float) -> float:
        return value


class Outer:
    """Hold a class whose qualified name is not its name."""

    class Inner(nn.Linear):
        """Project."""


class Negated(Patched):
    """Negate what the module returns, plus the specification."""

    @classmethod
    def namespace(cls, base: type[nn.Module], spec: Any) -> dict[str, Any]:
        return {"forward": wrap_forward(base, cls.forward), **blocked_methods(base, ("reset", "of_other_versions"))}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.aim_spec or 0) - super().forward(*args, **kwargs)


class Plain(Patched):
    """Change nothing."""


class Stateful(nn.Linear):
    """Choose what is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "cache": "made anew"})


def patched(spec: Any = None) -> Scaler:
    module = Scaler(3, 3)
    patch(module, Negated, spec)
    return module


# The class


def test_object_stays_the_same() -> None:
    module = Scaler(3, 3)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before, values, parameters = id(module), dict(module.state_dict()), [id(p) for p in module.parameters()]
    patch(module, Negated)
    module(torch.zeros(1, 3))
    assert id(module) == before
    assert [id(p) for p in module.parameters()] == parameters
    assert module.state_dict().keys() == values.keys()
    assert calls == [1]


def test_is_an_instance_of_its_own_class_and_of_the_mixin() -> None:
    module = patched()
    assert isinstance(module, Scaler)
    assert isinstance(module, Negated)
    assert type(module) is not Scaler
    assert (type(module).aim_base, type(module).aim_mixin) == (Scaler, Negated)


@pytest.mark.parametrize("base", [Scaler, Outer.Inner])
def test_class_keeps_the_names_that_libraries_match(base: type[nn.Module]) -> None:
    cls = patched_class(Plain, base, None)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(cls, attribute) == getattr(base, attribute), attribute


def test_repr_says_that_it_is_adapted() -> None:
    assert repr(patched()).startswith("AIM(Scaler)(")


def test_mixin_stands_before_the_modules_own_class() -> None:
    module = Scaler(3, 3)
    x = torch.randn(2, 3)
    expected = module(x, gain=3.0)
    patch(module, Negated, 1.0)
    torch.testing.assert_close(module(x, gain=3.0), 1.0 - expected)


def test_equal_modules_share_one_class() -> None:
    assert type(patched()) is type(patched())
    assert type(patched(("a", 1))) is type(patched(("a", 1)))
    assert patched_class(Negated, Scaler, None) is type(patched())


def test_another_mixin_base_or_specification_is_another_class() -> None:
    classes = [
        patched_class(Negated, Scaler, None),
        patched_class(Negated, Scaler, 1),
        patched_class(Plain, Scaler, None),
        patched_class(Plain, nn.Linear, None),
    ]
    assert len(set(classes)) == 4
    assert classes[1].aim_spec == 1


# Undo


def test_unpatch_gives_back_the_exact_class() -> None:
    module, x = patched(), torch.randn(2, 3)
    negated = module(x)
    unpatch(module)
    assert type(module) is Scaler
    torch.testing.assert_close(module(x), -negated)


def test_unpatch_gives_back_a_class_made_at_run_time() -> None:
    dynamic = type("Dynamic", (Scaler,), {})
    module = dynamic(2, 2)
    patch(module, Plain)
    unpatch(module)
    assert type(module) is dynamic


def test_class_that_fails_to_be_made_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Scaler(2, 2)

    def fail(*args: Any) -> None:
        raise MemoryError("half-way")

    with monkeypatch.context() as patching_fails:
        patching_fails.setattr(Negated, "namespace", fail)
        with pytest.raises(MemoryError):
            patch(module, Negated, "never seen before")
    assert type(module) is Scaler
    patch(module, Negated, "never seen before")
    assert isinstance(module, Negated)


# Copies


def copied(module: nn.Module, how: str) -> nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(module)
    if how == "pickle":
        return pickle.loads(pickle.dumps(module))
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_the_same_class_and_their_own_parameters(how: str) -> None:
    module, x = patched(0.5), torch.randn(2, 3)
    module.note = "kept"  # type: ignore[assignment]
    module.eval().weight.requires_grad_(False)
    other = copied(module, how)
    assert type(other) is type(module)
    assert other.note == "kept"
    assert not other.training
    assert [p.requires_grad for p in other.parameters()] == [False, True]
    assert not {id(p) for p in other.parameters()} & {id(p) for p in module.parameters()}
    assert torch.equal(other(x), module(x))
    unpatch(other)
    assert type(other) is Scaler
    assert isinstance(module, Negated)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_loads_where_the_class_was_never_made(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = patched(), torch.randn(2, 3)
    data, expected, cls = pickle.dumps(module, protocol), module(x), type(module)
    monkeypatch.setattr(patching, "_classes", {})  # as in another process
    other = pickle.loads(data)
    assert type(other) is not cls
    assert type(other) is patched_class(Negated, Scaler, None)
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_modules_that_choose_their_own_state_still_do(how: str) -> None:
    module = Stateful(2, 2)
    patch(module, Plain)
    module.cache = "warm"  # type: ignore[assignment]
    assert copied(module, how).cache == "made anew"


# Methods


def test_forward_keeps_the_signature_and_the_documentation() -> None:
    module = patched()
    assert inspect.signature(module.forward) == inspect.signature(Scaler(3, 3).forward)
    assert type(module).forward.__name__ == "forward"
    assert type(module).forward.__doc__ == Scaler.forward.__doc__


def test_tools_that_undo_what_is_around_a_forward_stop_at_ours() -> None:
    module, x = patched(0.5), torch.randn(2, 3)
    expected, forward = module(x), type(module).forward
    while hasattr(forward, "__wrapped__"):  # as Accelerate's `unwrap_model` does, which then leaves it on the module
        forward = forward.__wrapped__
    module.forward = MethodType(forward, module)  # type: ignore[assignment]
    assert torch.equal(module(x), expected)
    assert foreign_forward(module) is None
    unpatch(module)
    assert "forward" not in vars(module)
    torch.testing.assert_close(module(x), 0.5 - expected)


def test_a_forward_that_another_tool_put_on_a_module_stays_its_own() -> None:
    module = patched()
    module.forward = MethodType(Scaler.forward, module)  # type: ignore[assignment]
    assert foreign_forward(module) is vars(module)["forward"]
    unpatch(module)
    assert "forward" in vars(module)


def test_blocked_method_says_what_to_do_until_unpatched() -> None:
    module = patched()
    with pytest.raises(
        StateError, match=r"reset\(\) would replace, cut, reset or freeze.*call unwrap_image_model\(model\) first"
    ) as e:
        module.reset(3)
    assert isinstance(e.value, AIMError)
    assert module.reset.__name__ == "reset"
    assert not hasattr(module, "of_other_versions")
    unpatch(module)
    assert module.reset(3) == 3
