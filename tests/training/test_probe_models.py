"""Probes compute what they say, leave the image model as it is, and refuse features of another shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.training import AttentiveProbe, MeanProbe
from tests.backbones import test_open_clip_vit
from tests.tiny import FRAMES, video
from tests.training.test_baselines import IMAGE_MODELS, build, clips

WIDTH, HEADS, TOKENS = 8, 2, 5


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, FRAMES, TOKENS, WIDTH)), generator=torch.Generator().manual_seed(0))


def attentive(**settings: Any) -> AttentiveProbe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AttentiveProbe(WIDTH, 4, FRAMES, HEADS, **settings)


def test_a_mean_probe_classifies_the_mean_over_frames_and_tokens() -> None:
    probe, x = MeanProbe(WIDTH, 4), tokens()
    torch.testing.assert_close(probe(x), probe.head(x.mean((1, 2))))
    torch.testing.assert_close(probe(x[:, :, 0]), probe.head(x[:, :, 0].mean(1)))
    assert probe(x.bfloat16()).dtype == torch.float32


def test_an_attentive_probe_is_cross_attention_with_one_query() -> None:
    probe, x = attentive().double(), tokens().double()
    read = probe.norm(x + probe.time).flatten(1, 2)  # [B, T*N, D]
    keys, values = probe.kv_proj(read).chunk(2, -1)
    query, found = probe.q_proj(probe.query[0, 0]), []
    for head in torch.arange(WIDTH).chunk(HEADS):
        scores = keys[..., head] @ query[head] / len(head) ** 0.5  # [B, T*N]
        found.append(torch.einsum("bn,bnd->bd", scores.softmax(1), values[..., head]))
    pooled = probe.query[0] + torch.cat(found, 1)
    pooled = pooled + probe.mlp(probe.mlp_norm(pooled))
    torch.testing.assert_close(probe(x), probe.head(pooled))


def test_only_an_attentive_probe_sees_the_order_of_frames() -> None:
    x = tokens()
    probe = attentive()
    nn.init.normal_(probe.time)
    torch.testing.assert_close(MeanProbe(WIDTH, 4).eval()(x).shape, probe(x.flip(1)).shape)
    assert not torch.allclose(probe(x), probe(x.flip(1)), atol=1e-5)
    torch.testing.assert_close(probe(x), probe(x.flip(2)))  # tokens of a frame know their places themselves
    torch.testing.assert_close(probe(x[:, :, 0]), probe(x[:, :, :1]))


@pytest.mark.parametrize("name", ["probe", "attentive-probe"])
def test_training_runs_the_image_model_as_in_evaluation_and_without_recording(name: str) -> None:
    model = build(name).train()
    assert not any(module.training for module in model.image_model.modules()) and model.probe.training
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"probe"}
    read = model.read(video().requires_grad_())
    assert not read.requires_grad and read.shape[:2] == (2, FRAMES)


def attention_pool() -> nn.Module:
    return next(case for case in test_open_clip_vit.CASES if case.name == "attentional_pool").build()


@pytest.mark.parametrize("make", [*IMAGE_MODELS, attention_pool])
def test_an_attentive_probe_reads_every_token_behind_the_final_norm(make: Callable[[], nn.Module]) -> None:
    model = build("attentive-probe", make).eval()
    read = model.read(clips(model))
    assert read.ndim == 4 and torch.isfinite(model(clips(model))).all()
    if hasattr(model.image_model, "forward_features"):
        frames = model.image_model.forward_features(clips(model).flatten(0, 1))
        torch.testing.assert_close(read.flatten(0, 1), frames.flatten(1, -2))
    model(clips(model)[:1])  # nothing of the last call is left
    assert model._tokens is None


@pytest.mark.parametrize("shape", [(3, FRAMES + 1, WIDTH), (3, FRAMES, TOKENS, WIDTH + 1), (FRAMES, WIDTH), (1,) * 5])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(aim.InputError, match=rf"must be \[B, {FRAMES}, {WIDTH}\].*got \["):
        attentive()(tokens(*shape))


@pytest.mark.parametrize("shape", [(3, 0, WIDTH), (3, FRAMES, 0, WIDTH)])
def test_a_mean_of_nothing_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(aim.InputError, match=r"with T and N >= 1, got \[3, "):
        MeanProbe(WIDTH, 4)(tokens(*shape))


@pytest.mark.parametrize("x", [[1.0], torch.ones(3, FRAMES, WIDTH, dtype=torch.int64)])
def test_what_is_no_feature_is_refused(x: Any) -> None:
    with pytest.raises(aim.InputError, match=r"must be a floating-point tensor, got (list|torch\.int64)"):
        MeanProbe(WIDTH, 4)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "heads must divide the width, 8, got 3"),
        ({"heads": 0}, "heads must be an integer >= 1"),
        ({"frames": "4"}, "frames must be"),
        ({"width": 0}, "width must be"),
        ({"classes": 0}, "classes must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"mlp_ratio": 0}, "mlp_ratio must be"),
        ({"mlp_ratio": 0.1}, "mlp_ratio must leave the MLP a unit, >= 1 / 8, got 0.1"),
    ],
)
def test_wrong_settings_of_a_probe_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(aim.ConfigError, match=message):
        AttentiveProbe(**{"width": 8, "classes": 3, "frames": 4, "heads": 2, **arguments})
