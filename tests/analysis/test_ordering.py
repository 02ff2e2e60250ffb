"""The order of frames matters to a model whose temporal adapters are trained, and to no fresh one."""

from __future__ import annotations

import json

import pytest
import torch

import aim_adapters as aim
from aim_adapters.analysis import frame_order
from aim_adapters.errors import ConfigError, UnsupportedModelError
from tests.tiny import trained, video, wrapped


def test_it_is_what_the_model_says_of_the_clips_in_these_orders() -> None:
    model, clips = trained().train(), video(3)
    found = frame_order(model, clips, shuffles=5)
    assert model.training
    model.eval()
    with torch.no_grad():
        answers = [model(each).double().softmax(1) for each in (clips, clips.flip(1), clips[:, [2] * 4])]
    rows, index = torch.arange(3), answers[0].argmax(1)
    assert torch.equal(found.targets, index)
    for name, answer in zip(("original", "reversed", "still"), answers, strict=True):
        torch.testing.assert_close(getattr(found, name), answer[rows, index], atol=1e-5, rtol=0)
    assert torch.equal(found.changed["reversed"], answers[1].argmax(1) != index)
    assert found.shuffled.shape == found.changed["shuffled"].shape == (3, 5)
    assert not torch.isclose(found.shuffled, found.original[:, None], atol=1e-5).any()  # no order is the clip's own
    back = frame_order(model, clips.flip(1), target=index.tolist())
    torch.testing.assert_close(back.reversed, found.original, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.original, found.reversed, atol=1e-5, rtol=0)


def test_no_order_changes_the_answer_of_fresh_temporal_adapters() -> None:
    clips = video()
    for model in (wrapped(), trained(components=("spatial", "joint"))):
        found = frame_order(model, clips)
        torch.testing.assert_close(found.reversed, found.original, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.shuffled, found.original[:, None].expand(-1, 8), atol=1e-6, rtol=0)
        assert not found.changed["reversed"].any() and not found.changed["shuffled"].any()
        assert "does not matter to the model for these 2 clips" in found.verdict


def test_it_says_in_words_and_in_numbers_what_it_found() -> None:
    model = trained(labels=["left", "right"])
    found = frame_order(model, video(1), target="right", shuffles=3)
    text = str(found).replace("\n", " ")
    assert "Probability of 'right'" in text and found.verdict in text and "reversed" in text
    kept = json.loads(json.dumps(found.to_dict()))
    assert kept["names"] == ["right"] and len(kept["shuffled"][0]) == 3 and kept["verdict"] == found.verdict
    assert torch.equal(found.shuffled, frame_order(model, video(1), target="right", shuffles=3).shuffled)


def test_what_has_no_order_or_no_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 frame"):
        frame_order(trained(num_frames=1), video(frames=1))
    with pytest.raises(ConfigError, match="shuffles"):
        frame_order(trained(), video(), shuffles=0)
    with pytest.raises(UnsupportedModelError, match="no classes"):
        frame_order(wrapped(num_classes=0), video())
    with pytest.raises(TypeError):
        frame_order(aim, video())  # type: ignore[arg-type]
