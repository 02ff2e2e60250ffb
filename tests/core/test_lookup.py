"""What is ours is found once, whatever other tools have put around it, and handed on by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.core.lookup import FoundAdapter, WrappedModel, find_roots, is_wrapped, only_root
from aim_adapters.errors import ConfigError, StateError
from tests.several import NAMES, several
from tests.tiny import base, wrapped


def test_root_is_found_with_its_path_and_state() -> None:
    model = wrapped()
    assert only_root(model) == WrappedModel("", model, model.aim)
    held = nn.ModuleDict({"video": torch.compile(model, backend="eager"), "text": nn.Linear(2, 2)})
    path, root, state = only_root(held)
    assert (path, root, state) == ("video._orig_mod", model, model.aim)
    assert held.get_submodule(path) is model


def test_every_root_is_found_in_the_order_of_modules() -> None:
    pair = nn.ModuleList([wrapped(), base(), wrapped()])
    assert [(found.path, found.root) for found in find_roots(pair)] == [("0", pair[0]), ("2", pair[2])]
    with pytest.raises(StateError, match=r"several wrapped models found, at \['0', '2'\]; take them one by one"):
        only_root(pair)


def test_idle_adapters_are_no_roots() -> None:
    assert len(find_roots(several())) == 1


def test_what_is_not_wrapped_is_told_from_what_is_no_module() -> None:
    assert is_wrapped(nn.Sequential(wrapped())) and not is_wrapped(base())
    for find in (find_roots, only_root):
        with pytest.raises(StateError, match="this VisionTransformer is not wrapped; call wrap_image_model"):
            find(base())
    for thing in (None, "vit", torch.zeros(1)):
        for call in (is_wrapped, find_roots, only_root):
            with pytest.raises(TypeError, match=rf"torch\.nn\.Module, got {type(thing).__name__}"):
                call(thing)  # type: ignore[operator]


@pytest.mark.parametrize("running", NAMES)
def test_adapters_are_found_by_name_whether_they_run_or_not(running: str) -> None:
    model = several()
    expected = {name: aim.adapter_state_dict(model, name=name) for name in NAMES}
    aim.set_adapter(model, running)
    found = only_root(model)
    assert found.names()[0] == running
    assert sorted(found.names()) == sorted(NAMES)
    assert found.find(None).state is found.find(running).state is model.aim
    for name in NAMES:
        adapter = found.find(name)
        assert isinstance(adapter, FoundAdapter)
        assert adapter.state.name == name
        assert adapter.tensors.keys() == expected[name].keys()
        assert all(torch.equal(adapter.tensors[key], value) for key, value in expected[name].items())


@pytest.mark.parametrize("name", ["absent", "", 3])
def test_unknown_names_are_refused_with_those_there_are(name: Any) -> None:
    found = only_root(several())
    for call in (found.find, found.require_known):
        with pytest.raises(ConfigError, match=f"no adapter is named {name!r}; this model has 'default', 'same', 'ot"):
            call(name)


def test_several_wrapped_models_are_told_apart() -> None:
    pair = nn.ModuleList([wrapped(), wrapped()])
    with pytest.raises(StateError, match="one by one"):
        aim.unwrap_image_model(pair)
    aim.unwrap_image_model(pair[0])
    aim.unwrap_image_model(pair)
    assert not aim.is_wrapped(pair)
