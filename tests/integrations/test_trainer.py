"""transformers' Trainer resumes and finds its best model exactly, whatever it trains; adapters lie beside."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import aim_adapters as aim
from tests.backbones.cases import scramble
from tests.tiny import FRAMES, wrapped

pytest.importorskip("accelerate")
from aim_adapters.integrations import AdapterCallback

SIZE: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
EPOCHS, STEPS, CLASSES = 3, 2, 3
State = dict[str, Tensor]


class Clips(Dataset):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(FRAMES, 3, 16, 16, generator=generator), "labels": index % CLASSES}


class Net(nn.Module):
    """A module of the caller's own around a tower, with a layer behind it or not."""

    def __init__(self, tower: nn.Module, width: int | None = None) -> None:
        super().__init__()
        self.tower, self.fc = tower, nn.Identity() if width is None else nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.tower(pixel_values)
        logits = self.fc(out if isinstance(out, Tensor) else out.pooler_output)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Outer(hf.PreTrainedModel):
    """A model of transformers around another one, of which only a part is wrapped."""

    config_class, base_model_prefix = hf.ViTConfig, "vit"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vit, self.fc = hf.ViTModel(config), nn.Linear(config.hidden_size, CLASSES)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.fc(self.vit(pixel_values).pooler_output)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def wrap(model: nn.Module, **arguments: Any) -> nn.Module:
    return aim.wrap_image_model(scramble(model), FRAMES, **arguments)


def vit() -> nn.Module:
    return wrap(hf.ViTForImageClassification(hf.ViTConfig(**SIZE, num_labels=5)), num_classes=CLASSES)


def dinov2() -> nn.Module:
    return wrap(hf.Dinov2ForImageClassification(hf.Dinov2Config(**SIZE, num_labels=CLASSES)))


def clip_in_a_net() -> nn.Module:
    return Net(wrap(hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZE))), 32)


def timm_in_a_net() -> nn.Module:
    return Net(wrapped(num_classes=CLASSES))


def part_of_another(folder: Path | None = None, **arguments: Any) -> nn.Module:
    outer = scramble(Outer(hf.ViTConfig(**SIZE)))
    if folder is not None:  # a model that remembers how its keys were renamed when it was read
        outer.save_pretrained(folder)
        outer = Outer.from_pretrained(folder)
    aim.wrap_image_model(outer.vit, FRAMES, **arguments)
    return outer


def trainer(model: nn.Module, out: Path, *callbacks: Any, **arguments: Any) -> hf.Trainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "num_train_epochs": EPOCHS, "save_strategy": "epoch", "learning_rate": 0.01,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    groups = aim.adapter_param_groups(model, weight_decay=0.05, others=True)
    return hf.Trainer(
        model,
        hf.TrainingArguments(str(out), **{**settings, **arguments}),
        train_dataset=Clips(),
        eval_dataset=Clips(),
        callbacks=[*callbacks],
        optimizers=(torch.optim.AdamW(groups, lr=0.01), None),
    )


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())


class Spy(hf.TrainerCallback):
    """Remember the state of the model at each checkpoint."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def on_save(self, args: Any, state: Any, control: Any, *, model: nn.Module, **other: Any) -> None:
        self.states[state.global_step] = state_of(model)


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.filterwarnings(
    "ignore:parameters beside the wrapped model train:UserWarning"
)  # and the trainer saves them
@pytest.mark.parametrize("make", [vit, dinov2, clip_in_a_net, timm_in_a_net, part_of_another])
def test_resuming_and_the_best_model_are_exact(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    if make is part_of_another:
        make = lambda: part_of_another(tmp_path / "outer")  # noqa: E731
    spy, scores = Spy(), iter([0, 2, 1])
    best = trainer(
        build(make), tmp_path, AdapterCallback(), spy, load_best_model_at_end=True, eval_strategy="epoch",
        metric_for_best_model="score", greater_is_better=True, save_total_limit=2,
    )  # fmt: skip
    best.compute_metrics = lambda _: {"score": next(scores)}
    best.train()
    second, last = spy.states[2 * STEPS], spy.states[3 * STEPS]
    assert not same(second, last)
    assert same(state_of(best.model), second)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]

    resumed = trainer(build(make), tmp_path / "other", AdapterCallback())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(state_of(resumed.model), last)  # the optimizer's state too was that of the same parameters

    loaded = build(make)
    aim.load_adapters(loaded, tmp_path / "checkpoint-4" / "aim")
    expected = aim.adapter_state_dict(best.model)
    assert same(dict(aim.adapter_state_dict(loaded)), dict(expected))


def test_without_the_callback_it_is_exact(tmp_path: Path) -> None:
    spy = Spy()
    trainer(build(vit), tmp_path, spy).train()
    resumed = trainer(build(vit), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(state_of(resumed.model), spy.states[3 * STEPS])


@pytest.mark.parametrize("arguments", [{}, {"components": ("spatial",), "train_norm": False}])
def test_without_the_callback_renamed_keys_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    trainer(part_of_another(**arguments), tmp_path, max_steps=1).train()
    with pytest.raises(aim.CheckpointError, match=r"callbacks=\[aim.integrations.AdapterCallback\(\)\]"):
        trainer(part_of_another(**arguments), tmp_path).train(resume_from_checkpoint=True)


def test_weights_alone_are_enough_to_go_on_from(tmp_path: Path) -> None:
    first = trainer(build(vit), tmp_path, AdapterCallback(), max_steps=1, save_only_model=True)
    first.train()
    other = trainer(build(vit), tmp_path, AdapterCallback())
    other._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert same(state_of(other.model), state_of(first.model))


def test_what_is_pushed_has_the_adapters_too(tmp_path: Path) -> None:
    one = trainer(build(vit), tmp_path, AdapterCallback(), max_steps=1)
    one.train()
    one.callback_handler.on_push_begin(one.args, one.state, one.control)  # before it uploads its folder
    assert same(*(state_of_adapters(tmp_path / folder) for folder in ("aim", "checkpoint-1/aim")))


def test_a_trial_of_a_search_has_its_checkpoints_in_a_directory_of_its_own(tmp_path: Path) -> None:
    one = trainer(build(vit), tmp_path, AdapterCallback())
    (tmp_path / "run-7" / "checkpoint-0").mkdir(parents=True)
    one.state.is_hyper_param_search = True
    one.callback_handler.on_save(one.args, one.state, one.control)
    assert [path.parent.name for path in tmp_path.rglob("aim")] == ["checkpoint-0"]


def state_of_adapters(folder: Path) -> State:
    model = build(vit)
    aim.load_adapters(model, folder)
    return dict(aim.adapter_state_dict(model))


@pytest.mark.filterwarnings("ignore:parameters of the image model require a gradient:UserWarning")
def test_what_adapters_alone_cannot_give_back_is_said_and_training_goes_on(tmp_path: Path) -> None:
    model = build(vit)
    model.vit.layers[0].layernorm_before.weight.requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"checkpoint-1 gets no folder 'aim' with the adapters alone: .*image model were trained"
    ):
        trainer(model, tmp_path, AdapterCallback(), max_steps=1).train()
    assert not (tmp_path / "checkpoint-1" / "aim").exists()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_decay_of_the_temporal_embedding_is_said(tmp_path: Path) -> None:
    own = trainer(build(vit), tmp_path, AdapterCallback(), max_steps=1, weight_decay=0.05)
    own.optimizer = None  # as if none had been given
    with pytest.warns(UserWarning, match="the trainer's own optimizer decays the temporal embedding"):
        own.train()


def test_a_missing_library_and_a_wrong_name_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("aim_adapters.integrations")
    with pytest.raises(AttributeError, match="has no attribute 'Callback'"):
        _ = room.Callback
    monkeypatch.setitem(sys.modules, "aim_adapters.integrations.trainer", None)
    with pytest.raises(ImportError, match=r"install aim-adapters\[transformers,train\]"):
        _ = room.AdapterCallback
