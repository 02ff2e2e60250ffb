"""The mechanism: what is patched into an image transformer, and the adapted block."""

from aim_adapters.core.adapter_tensors import read_adapter
from aim_adapters.core.audit import (
    listed,
    note_thawed,
    other_parameters,
    require_parts,
    require_saveable,
    warn_once,
)
from aim_adapters.core.base_values import (
    find_changes,
    is_merged,
    looks_untrained,
    mark_merged,
    plain_values,
    sample_norms,
    sample_weights,
    update_samples,
    warn_untrained,
    within_rounding,
)
from aim_adapters.core.block import AdaptedBlock
from aim_adapters.core.build import build_adapter, place_of, require_place_for_head
from aim_adapters.core.calls import evaluating, pooled_output
from aim_adapters.core.foreign import (
    DISTRIBUTED_CLASSES,
    canonical_path,
    is_own_name,
    is_sharded,
    outermost_path,
    tuned_parameters,
)
from aim_adapters.core.fp8 import fp8_missing
from aim_adapters.core.fusion import ByModules, compute_dtype, fused_branches
from aim_adapters.core.graphs import GraphRow, Graphs
from aim_adapters.core.guards import (
    can_train,
    enough_memory,
    require_bare,
    require_local,
    require_memory,
    require_wrappable,
    warn_idle_taps,
)
from aim_adapters.core.inspection import inspecting
from aim_adapters.core.install import fill_adapter, install_adapter, remove, withdraw_adapter
from aim_adapters.core.lookup import FoundAdapter, WrappedModel, find_roots, is_wrapped, only_root
from aim_adapters.core.mixins import WholeModel
from aim_adapters.core.patching import patch
from aim_adapters.core.records import WrapRecord
from aim_adapters.core.root import VideoRoot
from aim_adapters.core.state import (
    AdapterSet,
    AIMState,
    BlockState,
    RootState,
    by_modules,
    own_parameters,
    states,
    without_classifiers,
)

__all__ = [
    "DISTRIBUTED_CLASSES",
    "AIMState",
    "AdaptedBlock",
    "AdapterSet",
    "BlockState",
    "ByModules",
    "FoundAdapter",
    "GraphRow",
    "Graphs",
    "RootState",
    "VideoRoot",
    "WholeModel",
    "WrapRecord",
    "WrappedModel",
    "build_adapter",
    "by_modules",
    "can_train",
    "canonical_path",
    "compute_dtype",
    "enough_memory",
    "evaluating",
    "fill_adapter",
    "find_changes",
    "find_roots",
    "fp8_missing",
    "fused_branches",
    "inspecting",
    "install_adapter",
    "is_merged",
    "is_own_name",
    "is_sharded",
    "is_wrapped",
    "listed",
    "looks_untrained",
    "mark_merged",
    "note_thawed",
    "only_root",
    "other_parameters",
    "outermost_path",
    "own_parameters",
    "patch",
    "place_of",
    "plain_values",
    "pooled_output",
    "read_adapter",
    "remove",
    "require_bare",
    "require_local",
    "require_memory",
    "require_parts",
    "require_place_for_head",
    "require_saveable",
    "require_wrappable",
    "sample_norms",
    "sample_weights",
    "states",
    "tuned_parameters",
    "update_samples",
    "warn_idle_taps",
    "warn_once",
    "warn_untrained",
    "withdraw_adapter",
    "within_rounding",
    "without_classifiers",
]
