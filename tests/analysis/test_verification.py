"""Whether the checks of a machine pass on this one, and notice what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aim_adapters as aim
from aim_adapters.analysis import Verification, verify
from aim_adapters.errors import StateError
from aim_adapters.ops.temporal_attention import api
from tests.backbones.cases import assert_same, snapshot
from tests.tiny import base, wrapped


def failed(found: Verification) -> list[str]:
    return [check.check for check in found.checks if check.result == "failed"]


def test_this_machine_passes_and_the_model_is_unchanged() -> None:
    model = base().train()
    before, draws = snapshot(model), torch.get_rng_state()
    found = verify(model)
    assert failed(found) == []
    assert found.ok
    assert_same(before, snapshot(model))
    assert torch.equal(draws, torch.get_rng_state())
    names = " ".join(check.check for check in found.checks)
    for what in ("averaged over frames", "temporal attention, sdpa, cpu, bfloat16", "adapted blocks", "torch >="):
        assert what in names
    assert str(found).endswith("nothing failed")


def test_a_wrong_kernel_and_an_old_package_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = api._PLAIN["sdpa"]

    def wrong(*arguments: Any, **options: Any) -> Any:
        return right(*arguments, **options) * 1.01

    monkeypatch.setitem(api._PLAIN, "sdpa", wrong)
    monkeypatch.setattr("aim_adapters.analysis.verification.requires", lambda _: ["torch>=99", "nothing-like-it>=1"])
    found = verify()
    assert not found.ok
    assert [name for name in failed(found) if "float32" in name] == ["temporal attention, sdpa, cpu, float32"]
    assert {"torch >=99", "nothing-like-it >=1"} <= set(failed(found))


def test_a_wrapped_model_is_refused_and_says_what_to_pass() -> None:
    model = wrapped()
    with pytest.raises(StateError, match="pass the image model, not wrapped"):
        verify(model)
    assert aim.is_wrapped(model)
