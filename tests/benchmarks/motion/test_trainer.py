"""Training by recorded steps, without a GPU: each step runs on its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.motion.trainer import WARM, Clips, Plan, Training, predict, rate_at, train_together


class Mean(nn.Module):
    """A classifier of the mean of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, video: Tensor) -> Tensor:
        return self.head(video.flatten(1).mean(1, keepdim=True))


def as_float(frames: Tensor) -> Tensor:
    return frames.float() / 255 - 0.5


@pytest.fixture
def clips() -> Clips:
    labels = torch.arange(24) % 2
    dark = torch.randint(0, 100, (24, 2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    return Clips((dark + 150 * labels.view(-1, 1, 1, 1, 1)).to(torch.uint8), labels)


def training(clips: Clips, plan: Plan, *, seed: int = 0) -> Training:
    torch.manual_seed(0)
    model = Mean()
    groups = [{"params": list(model.parameters()), "share": 1.0}]
    return Training(model, groups, clips, plan, seed=seed, normalize=as_float)


def test_the_rate_rises_then_falls_to_zero() -> None:
    plan = Plan(steps=100, batch=1, rate=2.0, warmup=0.1)
    rates = [rate_at(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == max(rates) == 2.0
    assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] < 0.01


def test_each_pass_shows_every_clip_once_in_another_order(clips: Clips) -> None:
    order = training(clips, Plan(steps=12, batch=4, rate=0.1)).order.flatten()
    first, second = order.split(24)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24)) and not first.equal(second)


def test_models_learn_side_by_side_and_take_all_their_steps(clips: Clips) -> None:
    plan = Plan(steps=60, batch=8, rate=0.3)
    both = [training(clips, plan, seed=seed) for seed in (0, 1)]
    train_together(both)
    for each in both:
        assert int(each.step) == plan.steps > WARM
        assert each.losses[-1] < 0.5 * each.losses[0]
        assert predict(each.model, clips, normalize=as_float).equal(clips.labels)
    assert not both[0].losses.equal(both[1].losses)


def test_averaged_weights_lag_behind_and_are_those_tested(clips: Clips) -> None:
    last, averaged = (training(clips, Plan(steps=20, batch=8, rate=0.3, ema=ema)) for ema in (0.0, 0.9))
    start = last.model.head.weight.detach().clone()
    train_together([last])
    train_together([averaged])
    assert last.losses.equal(averaged.losses)  # training itself is the same
    moved = [float((each.model.head.weight.detach() - start).norm()) for each in (averaged, last)]
    assert 0 < moved[0] < moved[1]


def test_a_loss_that_is_not_finite_is_an_error(clips: Clips) -> None:
    with pytest.raises(ArithmeticError, match="finite"):
        train_together([training(clips, Plan(steps=5, batch=8, rate=float("nan")))])
