"""Hold a model to an oracle: outputs, and the gradients of the video and of every declared parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import aim_adapters as aim
from tests.oracle.vit import Weights


def assert_agree(model: nn.Module, a: Weights, out: Tensor, expected: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Compare two runs in float64.

    Args:
        model: The wrapped model.
        a: What the oracle used of it, by checkpoint key, each with a gradient to come.
        out: The model's output for ``ours``.
        expected: The oracle's output for ``theirs``.
        ours: The model's video.
        theirs: The oracle's, equal to it.
    """
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)
    by_id = {t.data_ptr(): key for key, t in aim.adapter_state_dict(model).items()}
    grads = {by_id[p.data_ptr()]: p.grad for p in aim.trainable_parameters(model)}
    assert grads.keys() == a.keys()
    for key, tensor in a.items():
        torch.testing.assert_close(grads[key], tensor.grad, rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
