"""The root takes videos, keeps the image model's own interface, and tells its blocks about one call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.core.records import RootCall
from aim_adapters.errors import InputError, StateError
from tests.backbones.cases import scramble, wake
from tests.tiny import FRAMES as T
from tests.tiny import base, trained, video, wrapped


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 5, 3, 16, 16), r"4 frames and 3 channels, got \[2, 5, 3, 16, 16\]"),
        ((2, 4, 1, 16, 16), r"4 frames and 3 channels, got \[2, 4, 1, 16, 16\]"),
        ((7, 3, 16, 16), r"multiple of 4\), got \[7, 3, 16, 16\]"),
        ((8, 1, 16, 16), r"3 channels"),
        ((4, 16, 16), r"got \[4, 16, 16\]"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        wrapped()(torch.randn(shape))


def test_an_ambiguous_layout_asks_which() -> None:
    model, clips = wake(aim.wrap_image_model(base(), 3)).eval(), video(frames=3)
    with pytest.raises(InputError, match=r"ambiguous.*'BTCHW' or 'BCTHW'"):
        model(clips)
    expected = model(clips.flatten(0, 1))
    for layout, given in (("BTCHW", clips), ("BCTHW", clips.transpose(1, 2))):
        other = base()
        aim.wrap_image_model(other, 3, input_layout=layout)
        aim.load_adapter_state_dict(other, aim.adapter_state_dict(model))
        assert torch.equal(other.eval()(given), expected)


@pytest.mark.parametrize(("num_classes", "width"), [(None, 5), (7, 7), (0, 32)])
def test_outputs(num_classes: int | None, width: int) -> None:
    model = base()
    aim.wrap_image_model(model, T, num_classes=num_classes)
    assert model(video()).shape == (2, width)
    assert ("head.weight" in aim.adapter_state_dict(model)) == (num_classes != 0)
    with aim.disable_adapters(model):
        assert model(video()).shape == (2, 5)


def test_types_names_and_signature_stay_those_of_the_image_model() -> None:
    model = base()
    signature, block = inspect.signature(model.forward), type(model.blocks[0])
    aim.wrap_image_model(model, T)
    assert isinstance(model, VisionTransformer)
    assert isinstance(model.blocks[0], block)
    assert type(model).__name__ == "VisionTransformer"
    assert type(model.blocks[0]) is type(model.blocks[1])
    assert inspect.signature(model.forward) == signature
    assert "AIM(VisionTransformer)" in repr(model)


def test_hooks_of_the_image_model_survive() -> None:
    model, seen = base(), []
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    aim.wrap_image_model(model, T)(video())
    assert seen == [(2 * T, 5, 32)]


def test_data_parallel_replicas_are_refused() -> None:
    model = wrapped()
    replica = model._replicate_for_data_parallel()
    with pytest.raises(StateError, match="DistributedDataParallel"):
        replica(video())


def test_base_weights_loaded_after_wrapping_reach_untrained_copies() -> None:
    other = scramble(base())
    clips = video()
    with torch.no_grad():
        expected = other(clips.flatten(0, 1)).unflatten(0, (2, T)).mean(1)
        model = wrapped().eval()
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(clips), expected, rtol=1e-5, atol=1e-6)
        wake(model)
        awake = {key: tensor.clone() for key, tensor in aim.adapter_state_dict(model).items()}
        model.load_state_dict(base().state_dict())
    assert all(torch.equal(tensor, awake[key]) for key, tensor in aim.adapter_state_dict(model).items())


def test_a_head_put_in_after_wrapping_is_refused() -> None:
    model = wrapped()
    model.head = nn.Linear(32, 7)
    with pytest.raises(StateError, match="'head' was replaced after wrapping"):
        model.train()


# One call, and others at the same time


def during_a_forward_pass(model: nn.Module, clips: Tensor, work: Callable[[], Any]) -> tuple[Tensor, Any]:
    """Return the output of a forward pass, and of some work that another thread does in the midst of it."""
    found: list[Any] = []

    def interrupt(*_: Any) -> None:
        if threading.current_thread() is main:
            with ThreadPoolExecutor(1) as other:
                found.append(other.submit(work).result())

    main = threading.current_thread()
    with model.blocks[0].register_forward_pre_hook(interrupt):
        out = model(clips)
    (result,) = found
    return out, result


@pytest.mark.parametrize("called", ["forward_features", "block", "function of a block"])
def test_another_thread_gets_every_token_while_a_call_reads_one(called: str) -> None:
    """What the root tells its blocks holds for its own call, not for whoever calls them meanwhile."""
    model, clips = trained(), video()
    frames, tokens = clips.flatten(0, 1), torch.randn(2 * T, 5, 32, generator=torch.Generator().manual_seed(5))
    last = model.blocks[-1]
    work = {
        "forward_features": lambda: model.forward_features(frames),
        "block": lambda: last(tokens),
        "function of a block": lambda: torch.func.functional_call(last, dict(last.named_parameters()), (tokens,)),
    }[called]
    expected_out, expected = model(clips), work()
    out, result = during_a_forward_pass(model, clips, work)
    assert result.shape == (2 * T, 5, 32)
    assert torch.equal(result, expected)
    assert last.aim.narrowed  # the forward pass itself was
    assert torch.equal(out, expected_out)
    assert work().shape == (2 * T, 5, 32)  # and nothing is left of it


def test_two_threads_may_run_one_model_at_the_same_time() -> None:
    model, (one, two) = trained(), video(clips=4).split(2)
    expected = model(one), model(two)
    for found, right in zip(during_a_forward_pass(model, one, lambda: model(two)), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_call_that_fails_is_over() -> None:
    model, clips = trained(), video()
    with model.blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("inside"))):
        with pytest.raises(KeyError, match="inside"):
            model(clips)
    assert model.aim.call is None
    assert model.forward_features(clips.flatten(0, 1)).shape == (2 * T, 5, 32)


def test_record_of_a_call_is_read_by_its_own_thread_alone() -> None:
    calls = [RootCall.here(class_token_only=only) for only in (True, False)]
    assert [call.reads_class_token_only() for call in calls] == [True, False]
    with ThreadPoolExecutor(1) as other:
        assert [other.submit(call.reads_class_token_only).result() for call in calls] == [False, False]
