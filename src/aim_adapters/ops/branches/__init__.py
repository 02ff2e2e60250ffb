"""Residual branches around frozen layers as one step of autograd."""

from aim_adapters.ops.branches.attention import flash_takes
from aim_adapters.ops.branches.chain import run_branches, without_base
from aim_adapters.ops.branches.first_token import attend_from_first
from aim_adapters.ops.branches.plan import AttentionPlan, ChainPlan, MlpPlan
from aim_adapters.ops.branches.tensors import (
    AdapterTensors,
    AttentionTensors,
    BranchTensors,
    MlpTensors,
    PositionTensors,
    TrainedTensors,
    WindowTensors,
)
from aim_adapters.ops.branches.windows import tile

__all__ = [
    "AdapterTensors",
    "AttentionPlan",
    "AttentionTensors",
    "BranchTensors",
    "ChainPlan",
    "MlpPlan",
    "MlpTensors",
    "PositionTensors",
    "TrainedTensors",
    "WindowTensors",
    "attend_from_first",
    "flash_takes",
    "run_branches",
    "tile",
    "without_base",
]
