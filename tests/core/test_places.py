"""What spatial attention reads of places: fused it does what modules do, and what does not fit runs as modules."""

from __future__ import annotations

import re

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva

from aim_adapters.anatomy import Positions
from aim_adapters.core import by_modules
from tests.core.cases import ALL, UNFROZEN, answers, block_of, model_of, tokens, video


def test_attention_with_rotary_positions_runs_fused(chains: list[list[str]]) -> None:
    model = model_of(Eva, use_rot_pos_emb=True, init_values=0.1)
    assert answers(model.blocks[0]) == ["fused"] * 3
    out = model(video())
    assert chains == [ALL, ALL]
    with by_modules(model.aim):
        torch.testing.assert_close(out, model(video()), rtol=1e-9, atol=1e-10)
    model.blocks[0].attn.register_forward_hook(lambda *_: None)  # as modules, with what the model passes down
    chains.clear()
    torch.testing.assert_close(out, model(video()), rtol=1e-9, atol=1e-10)
    assert chains == [["mlp"], ALL]


def test_positions_are_those_of_each_call() -> None:
    block = model_of(Eva, use_rot_pos_emb=True).blocks[0]
    for seed in range(2):
        rope = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        out = block(tokens(), rope=rope)
        with by_modules(block.aim.root_state):
            torch.testing.assert_close(out, block(tokens(), rope=rope), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        (Positions("halves", torch.ones(4, 8), torch.ones(4, 8)), r"its rotary positions are \[4, 8\], for 5 tokens"),
        (Positions("halves", torch.ones(6, 16), torch.ones(6, 16)), r"its rotary positions are \[6, 16\]"),
        (Positions("halves", torch.ones(3, 4, 16), torch.ones(3, 4, 16)), r"and 2 heads of 16"),
        (Positions(bias=torch.ones(2, 4, 4)), r"its position bias is \[2, 4, 4\], not \[H, N, N\] = \[2, 5, 5\]"),
        (Positions(bias=torch.ones(2, 5, 5, requires_grad=True)), UNFROZEN),
    ],
)
def test_positions_that_do_not_fit_run_as_modules(positions: Positions, reason: str) -> None:
    temporal, spatial_one, mlp = answers(block_of(), positions=positions)
    assert temporal == mlp == "fused"
    assert re.search(reason, str(spatial_one))


def test_attention_with_a_position_bias_runs_fused(chains: list[list[str]]) -> None:
    for shared in (False, True):
        model = model_of(Beit, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
        out = model(video())
        assert chains == [ALL, ALL]
        with by_modules(model.aim):
            torch.testing.assert_close(out, model(video()), rtol=1e-9, atol=1e-10)
        chains.clear()
    table = model.rel_pos_bias.relative_position_bias_table.requires_grad_()
    model(video()).sum().backward()
    assert table.grad is not None and table.grad.any()
    assert chains == [["frames"], ["mlp"]] * 2
