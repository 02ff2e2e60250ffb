"""What was saved loads to the bit, and nothing of the image model changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import aim_adapters as aim
from aim_adapters.config import Execution
from aim_adapters.errors import StateError
from aim_adapters.storage import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME
from tests.backbones.cases import wake
from tests.checkpoint.cases import assert_refused, config_of, names, rewrite, watch_opens
from tests.tiny import FRAMES, base, run, trained, wrapped


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bottleneck": 0.1, "scale": 1.5, "num_classes": 7, "temporal_input_adapter": True},
        {"layers": [-1, 0], "components": ("joint", "temporal"), "train_norm": False},
        {"layers": "top_half", "tubelet_size": 2, "num_classes": 0},
        {"components": (), "num_classes": 9, "input_layout": "BTCHW"},
        {"adapter_activation": "none"},
    ],
    ids=["defaults", "new_head", "some_blocks", "tubelets", "head_only", "linear"],
)
@pytest.mark.parametrize("start", ["unwrapped", "wrapped"])
def test_outputs_are_the_same_to_the_bit(arguments: dict[str, Any], start: str, tmp_path: Path) -> None:
    model = trained(**arguments)
    aim.save_adapters(model, tmp_path)
    other = base() if start == "unwrapped" else wrapped(**arguments)
    assert aim.load_adapters(other, str(tmp_path)) == aim.LoadReport((), (), ())
    assert other.aim.config == model.aim.config
    assert torch.equal(run(other), run(model))
    assert not torch.equal(run(other), run(wrapped(**arguments)))


def test_files_from_before_linear_adapters_load(saved: Path) -> None:
    rewrite(saved, config=lambda config: config.pop("adapter_activation"))
    model = base()
    aim.load_adapters(model, saved)
    assert model.aim.config.adapter_activation == "gelu"
    assert torch.equal(run(model), run(trained()))


def test_weights_alone_load(saved: Path) -> None:
    (saved / CONFIG_NAME).unlink()
    (saved / CARD_NAME).unlink()
    model = base()
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), run(trained()))


@pytest.mark.parametrize("name", [None, "another"])
def test_source_is_opened_once(name: str | None, fresh: VisionTransformer, saved: Path) -> None:
    with watch_opens(saved) as opened:
        aim.load_adapters(fresh, saved, name=name)
        assert opened() == {CONFIG_NAME: 1, WEIGHTS_NAME: 1}
    assert opened() == {CONFIG_NAME: 1, WEIGHTS_NAME: 1}


def test_loading_leaves_the_base_alone(saved: Path) -> None:
    model = base()
    aim.load_adapters(model, saved)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base().state_dict().items())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in state if ".aim." in f".{name}"}


def test_half_precision_round_trip(tmp_path: Path) -> None:
    model = wake(aim.wrap_image_model(base().to(torch.bfloat16), FRAMES))
    aim.save_adapters(model, tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    same = base().to(torch.bfloat16)
    aim.load_adapters(same, tmp_path)
    assert torch.equal(run(same, dtype=torch.bfloat16), run(model, dtype=torch.bfloat16))
    wide = base()
    aim.load_adapters(wide, tmp_path)
    ours = aim.adapter_state_dict(wide)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert all(torch.equal(ours[key], tensor.float()) for key, tensor in state.items())


def test_settings_of_training_alone_may_differ(saved: Path) -> None:
    model = wrapped(drop_path=0.5, head_dropout=0.5, attention="eager", input_layout="BTCHW")
    assert aim.load_adapters(model, saved) == aim.LoadReport((), (), ())
    assert (model.aim.config.drop_path, model.aim.execution.attention) == (0.5, "eager")


@pytest.mark.parametrize("attention", ["triton", "sdpa", "flash", None])
def test_attention_that_earlier_versions_saved_is_ignored(
    attention: Any, fresh: VisionTransformer, saved: Path, tmp_path: Path, no_triton: None
) -> None:
    """How a model runs is chosen where it runs, whether the file's choice could run here or not."""
    rewrite(saved, config=lambda config: config.update(attention=attention))
    assert aim.load_adapters(fresh, saved) == aim.LoadReport((), (), ())
    assert fresh.aim.execution == Execution()
    assert torch.equal(run(fresh), run(trained()))
    assert "attention" not in config_of(aim.save_adapters(fresh, tmp_path / "again"))


def test_same_blocks_by_other_names_are_the_same(saved: Path) -> None:
    model = wrapped(layers=[2, 0, -2])
    aim.load_adapters(model, saved)
    assert torch.equal(run(model), run(trained()))


def test_same_weights_under_another_librarys_name_load(tmp_path: Path) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path)
    rewrite(tmp_path, config=lambda c: c.update(base_model_library="open_clip", base_model_name_or_path="ViT-X"))
    assert not any(aim.load_adapters(base("vit_x.in1k"), tmp_path))


@pytest.mark.parametrize(
    "call",
    [
        aim.adapter_state_dict,
        lambda model: aim.load_adapter_state_dict(model, {}),
        lambda model: aim.save_adapters(model, "never"),
    ],
)
def test_what_is_not_one_wrapped_model_is_refused(
    call: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError, match=r"VisionTransformer is not wrapped; call wrap_image_model"):
        call(base())
    with pytest.raises(StateError, match=r"several wrapped models found, at \['0', '1'\]"):
        call(nn.Sequential(wrapped(), wrapped()))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        call({})
    assert names(tmp_path) == []


def test_loading_into_several_wrapped_models_is_refused(saved: Path) -> None:
    assert_refused(nn.Sequential(wrapped(), wrapped()), saved, "several wrapped models", error=StateError)
