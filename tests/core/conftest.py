"""What the tests of fused branches look at."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from aim_adapters.core import block, fusion
from aim_adapters.ops.branches import AttentionPlan, BranchTensors, ChainPlan


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the chains of branches that run fused from here on."""
    seen: list[list[str]] = []

    def noted(x: Tensor, branches: list[BranchTensors], plan: ChainPlan) -> Tensor:
        seen.append([each.over if isinstance(each, AttentionPlan) else "mlp" for each in plan.branches])
        return run(x, branches, plan)

    run = fusion.run_branches
    monkeypatch.setattr(fusion, "run_branches", noted)
    return seen


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of tokens from which the [class] token alone attends from here on."""
    seen: list[tuple[int, ...]] = []

    def noted(x: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return run(x, *args, **options)

    run = block.attend_from_first
    monkeypatch.setattr(block, "attend_from_first", noted)
    return seen
