"""Linear adapters run fused; without gradients, a spatial one is a part of the output projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import aim_adapters as aim
from aim_adapters.core import by_modules
from aim_adapters.core.fusion import fused_branches
from tests.backbones.cases import scramble, wake
from tests.core.cases import T, answers, assert_as_modules, block_of, model_of, tokens, video

SPATIAL: dict[str, Any] = {"components": ("spatial",), "adapter_activation": "none"}


def assert_folded(model: Any) -> None:
    with torch.no_grad():
        out = model(video())
        with by_modules(model.aim):
            torch.testing.assert_close(out, model(video()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"init_values": 0.1}, {"qk_norm": True, "scale_attn_norm": True}], ids=["plain", "scaled", "normed"]
)
def test_outputs_are_those_of_the_modules(
    options: dict[str, Any], chains: list[list[str]], narrowed: list[tuple[int, ...]]
) -> None:
    model = model_of(VisionTransformer, **options, **SPATIAL)
    assert_folded(model)
    assert chains[0] == ["tokens", "mlp"]
    if "qk_norm" not in options:
        assert narrowed  # the [class] token alone gets its adapter once


def test_outputs_in_windows_are_those_of_the_modules(chains: list[list[str]]) -> None:
    torch.manual_seed(0)
    swin = SwinTransformer(img_size=16, patch_size=2, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4)
    assert_folded(wake(aim.wrap_image_model(scramble(swin).double(), T, **SPATIAL)).eval())
    assert chains == [["windows", "mlp"]] * 2


@pytest.mark.parametrize("settings", [{}, {"temporal_input_adapter": True}], ids=["plain", "input"])
def test_what_is_folded_depends_on_gradients_and_on_the_branch(
    settings: dict[str, Any], chains: list[list[str]]
) -> None:
    block = block_of(adapter_activation="none", **settings)

    def folded_ones() -> list[bool]:
        return [branch.tensors.trained.adapter is None for branch in fused_branches(block, tokens())]

    assert answers(block) == ["fused"] * 3 and folded_ones() == [False] * 3
    assert_as_modules(block)
    chains.clear()
    with torch.no_grad():
        assert answers(block) == ["fused"] * 3 and folded_ones() == [False, True, False]
        before = block(tokens())
        block.aim.spatial.up_proj.bias.data += 1.0  # made anew at each call
        assert not torch.equal(block(tokens()), before)
        assert chains == [["frames", "tokens", "mlp"]] * 2
        block.aim.joint.linear = False
        assert answers(block)[2] == "its adapter is not as it was made: it was made linear, or no longer is"
        block.aim.spatial.register_forward_hook(lambda *_: None)
        assert "its adapter is not as it was made" in str(answers(block)[1])


def test_folded_branches_compile() -> None:
    model = model_of(**SPATIAL).float()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(video(dtype=torch.float32)), model(video(dtype=torch.float32)))
