"""Checkpoints of adapters, on disk and on the Hub: saving, loading, comparing, describing."""

from aim_adapters.checkpoint.agreement import require_reasonable
from aim_adapters.checkpoint.hub import push_to_hub
from aim_adapters.checkpoint.inspection import (
    Inspection,
    describe_finite,
    describe_tensor,
    inspect_checkpoint,
)
from aim_adapters.checkpoint.loading import load_adapters
from aim_adapters.checkpoint.saving import save_adapters
from aim_adapters.checkpoint.snapshot import saved_facts
from aim_adapters.checkpoint.state_dict import LoadReport, adapter_state_dict, compare, load_adapter_state_dict
from aim_adapters.checkpoint.video_model import load_video_model

__all__ = [
    "Inspection",
    "LoadReport",
    "adapter_state_dict",
    "compare",
    "describe_finite",
    "describe_tensor",
    "inspect_checkpoint",
    "load_adapter_state_dict",
    "load_adapters",
    "load_video_model",
    "push_to_hub",
    "require_reasonable",
    "save_adapters",
    "saved_facts",
]
