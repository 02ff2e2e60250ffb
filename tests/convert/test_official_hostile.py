"""Whatever a file says instead of one tensor, the answer is a library error, and the model is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_adapters.core import is_wrapped
from aim_adapters.errors import CheckpointError
from aim_adapters.wrapping import unwrap_image_model
from tests.convert.cases import clip_base, clip_file, load, small_swin_file, swin_base

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:.*quant")

CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "one more dimension": lambda t: t[None],
    "two more": lambda t: t[None, None],
    "one behind": lambda t: t.unsqueeze(-1),
    "one less": lambda t: t[0],
    "flat": lambda t: t.reshape(-1),
    "turned": lambda t: t.T if t.ndim == 2 else t[..., None].transpose(0, -1),
    "half": lambda t: t[: max(1, len(t) // 2)] if len(t) > 1 else t[:0],
    "twice": lambda t: torch.cat((t, t)),
    "empty": lambda t: t[:0],
    "a large shape of nothing": lambda t: torch.empty(1, 10**12, 0),
    "rows of nothing": lambda t: torch.empty(10**12, 0),
    "integers": lambda t: t.long(),
    "booleans": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "nested": lambda t: torch.nested.nested_tensor([t]),
    "jagged": lambda t: torch.nested.nested_tensor([t], layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "text": lambda t: "x",
    "nothing": lambda t: None,
    "nan": lambda t: t * float("nan"),
}
FILES: dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[[], nn.Module]]] = {
    "clip": (clip_file, clip_base),
    "swin": (lambda: dict(small_swin_file()), lambda: swin_base("timm")),
}
KINDS = (
    "conv1", "class_embedding", "positional_embedding", "ln_pre.weight", "resblocks.1.attn.in_proj_weight",
    "resblocks.1.ln_1.weight", "resblocks.1.T_Adapter.D_fc1.weight", "resblocks.1.S_Adapter.D_fc2.bias",
    "temporal_embedding", "ln_post.weight", "fc_cls.weight",
    "patch_embed.proj.weight", "layers.0.downsample.reduction.weight", "layers.1.blocks.0.T_Adapter.D_fc1.weight",
    "layers.1.blocks.0.attn.relative_position_bias_table",
)  # fmt: skip


def describe(model: nn.Module) -> Any:
    tensors = [(name, p.shape, p.requires_grad, p._version) for name, p in model.named_parameters()]
    return tensors, [type(module) for module in model.modules()], model.training


@pytest.mark.parametrize("kind", FILES)
def test_one_tensor_is_something_else(kind: str) -> None:
    file, base = FILES[kind]
    state, model = file(), base()
    before, accepted = describe(model), []
    for key in state:
        # Every change where roles differ; the most deceptive one, which broadcasting hides, everywhere.
        changes = CHANGES if any(each in key for each in KINDS) else {"one more dimension": lambda t: t[None]}
        for name, change in changes.items():
            try:
                load(model, {**state, key: change(state[key])})
            except CheckpointError:
                assert describe(model) == before, (key, name)
            else:
                unwrap_image_model(model)
                if not (name == "flat" and state[key].ndim == 1):
                    accepted.append((key.rpartition(".")[2], name))
    # Libraries add ones to [class] token and position table, so these are compared without them; buffers are not read.
    read = ("weight", "bias", "temporal_embedding", "relative_position_bias_table", "temporal_position_bias_table")
    assert not [case for case in accepted if case[0] in read]
    assert {name for _, name in accepted} <= {"one more dimension", "two more", "flat", "one less", "turned"}


def test_keys_and_shapes_come_before_values() -> None:
    """Thousands of keys may share one storage, and each value that is read takes time."""
    bad = torch.full((4,), float("nan"))
    for more, message in (
        ({f"unknown.{i}": bad for i in range(2000)}, "2000 keys have no meaning"),
        ({"backbone.transformer.resblocks.0.T_Adapter.D_fc1.bias": bad}, "of another shape"),
        ({"backbone.ln_pre.weight": bad}, r"pre_norm\.weight is \[4\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(clip_base(), {**clip_file(), **more})


def test_settings_that_ask_for_far_more_than_the_file_holds() -> None:
    """One adapter sets the width of all, and classes may have no columns."""
    state = clip_file()
    wide = {key: torch.zeros(10**6, t.shape[1]) for key, t in state.items() if key.endswith("T_Adapter.D_fc1.weight")}
    narrow = {key: t for key, t in state.items() if not key.endswith("D_fc1.weight")}
    with pytest.raises(CheckpointError, match="many times the image model's"):
        load(clip_base(), {**narrow, **wide})
    for classes, message in ((10**9, "many times the image model's"), (10**12, "settings that no model has")):
        with pytest.raises(CheckpointError, match=message):
            load(clip_base(), {**state, "cls_head.fc_cls.weight": torch.empty(classes, 0)})


def test_model_is_unwrapped_on_every_error() -> None:
    model, state = clip_base(), clip_file()
    with pytest.raises(CheckpointError, match="NaN"):
        load(model, {**state, "cls_head.fc_cls.bias": state["cls_head.fc_cls.bias"] * float("nan")})
    assert not is_wrapped(model)
