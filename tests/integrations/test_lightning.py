"""Lightning's checkpoints hold what trains alone, load strictly, and go on to the bit; adapters lie beside them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import aim_adapters as aim
from aim_adapters.integrations import LightningAdapterCallback
from tests import processes
from tests.tiny import base, video, wrapped

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Found [0-9]+ module.s. in eval mode"),  # the frozen ones
]
CLASSES = 3


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(video(4), torch.arange(4) % CLASSES), batch_size=2)


def make_net(module: Any = L, **arguments: Any) -> Any:
    """Return a LightningModule of either package."""

    class Net(module.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = wrapped(num_classes=CLASSES, **arguments)
            self.own = nn.Linear(CLASSES, CLASSES)

        def forward(self, clips: Tensor) -> Tensor:
            return self.own(self.model(clips))

        def training_step(self, batch: Any, index: int) -> Tensor:
            return cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(aim.adapter_param_groups(self, 0.05, others=True), lr=0.01)

    net = Net()
    net.train()
    return net


def trainer(out: Path, *callbacks: Any, module: Any = L, **settings: Any) -> Any:
    settings = {
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **settings,
    }
    return module.Trainer(default_root_dir=out, accelerator="cpu", callbacks=[*callbacks], **settings)


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def saver(out: Path, **settings: Any) -> ModelCheckpoint:
    return ModelCheckpoint(out, filename="{epoch}", save_top_k=-1, **settings)


@pytest.mark.filterwarnings("ignore:parameters beside the wrapped model train:UserWarning")
@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_hold_what_trains_and_training_goes_on_to_the_bit(tmp_path: Path, weights_only: bool) -> None:
    net = make_net()
    trainer(tmp_path, LightningAdapterCallback(), saver(tmp_path, save_weights_only=weights_only)).fit(net, data())
    found = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert {"model.blocks.0.attn.qkv.weight", "own.weight"} & found["state_dict"].keys() == {"own.weight"}
    assert found["state_dict"].keys() == trains

    loaded = wrapped(num_classes=CLASSES)
    aim.load_adapters(loaded, tmp_path / "epoch=2.aim")
    assert same(dict(aim.adapter_state_dict(loaded)), dict(aim.adapter_state_dict(net)))
    other = make_net()
    if weights_only:
        trainer(tmp_path / "other", LightningAdapterCallback()).validate(other, data(), tmp_path / "epoch=2.ckpt")
    else:
        trainer(tmp_path / "other", LightningAdapterCallback()).fit(other, data(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert same(state_of(other), state_of(net))


@pytest.mark.filterwarnings("ignore:parameters beside the wrapped model train:UserWarning")
def test_the_best_checkpoint_is_tested_and_old_ones_go_with_their_adapters(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="best", monitor="loss", save_top_k=1, enable_version_counter=False)
    one = trainer(tmp_path, LightningAdapterCallback(), keep)
    one.fit(make_net(), data(), data())
    one.validate(ckpt_path="best", dataloaders=data())
    names = {path.stem for path in tmp_path.iterdir()}
    assert len(names) == 1 and {path.suffix for path in tmp_path.iterdir()} == {".ckpt", ".aim"}
    one.save_checkpoint(tmp_path / "by-hand.ckpt")
    assert (tmp_path / "by-hand.aim" / "adapter_model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:parameters beside the wrapped model train:UserWarning")
def test_another_image_model_and_a_checkpoint_that_lacks_something_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path, LightningAdapterCallback(), saver(tmp_path), max_epochs=1).fit(make_net(), data())
    file, other = tmp_path / "epoch=0.ckpt", make_net()
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    with pytest.raises(aim.CheckpointError, match=r"another image model at 'model': .*norm.weight.* differ"):
        trainer(tmp_path, LightningAdapterCallback()).validate(other, data(), file)
    found = torch.load(file, weights_only=True)
    del found["state_dict"]["own.weight"]
    torch.save(found, tmp_path / "part.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key.*own\.weight"):
        trainer(tmp_path, LightningAdapterCallback()).validate(make_net(), data(), tmp_path / "part.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):  # without the callback
        trainer(tmp_path).validate(make_net(), data(), file)


@pytest.mark.filterwarnings("ignore:parameters of the image model require a gradient:UserWarning")
def test_weights_of_the_image_model_that_train_or_trained_are_kept(tmp_path: Path) -> None:
    net = make_net()
    net.model.blocks[0].norm1.weight.requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"no folder .*epoch=0\.aim with the adapters alone: .*image model were trained"
    ):
        trainer(tmp_path, LightningAdapterCallback(), saver(tmp_path), max_epochs=1).fit(net, data())
    net.model.blocks[0].norm1.weight.requires_grad_(False)
    again = trainer(tmp_path, LightningAdapterCallback())
    with pytest.warns(UserWarning, match="with the adapters alone"):
        again.validate(net, data())
        again.save_checkpoint(tmp_path / "later.ckpt")
    for name in ("epoch=0", "later"):
        other = make_net()
        trainer(tmp_path, LightningAdapterCallback()).validate(other, data(), tmp_path / f"{name}.ckpt")
        assert same(state_of(other), state_of(net))


@pytest.mark.filterwarnings("ignore:parameters beside the wrapped model train:UserWarning")
def test_evaluation_mode_and_decay_of_the_temporal_embedding_are_said(tmp_path: Path) -> None:
    net = make_net(head_dropout=0.5)
    net.model.eval()
    with pytest.warns(UserWarning, match="'model' was in evaluation mode"):
        trainer(tmp_path, LightningAdapterCallback(), max_steps=1, enable_checkpointing=False).fit(net, data())
    assert net.model.training and not net.model.blocks[0].attn.training
    net.configure_optimizers = lambda: torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    with pytest.warns(UserWarning, match="the optimizer decays the temporal embedding"):
        trainer(tmp_path, LightningAdapterCallback(), max_steps=1, enable_checkpointing=False).fit(net, data())
    net.model = base()
    with pytest.raises(aim.StateError, match="is not wrapped"):
        trainer(tmp_path, LightningAdapterCallback(), max_steps=1, enable_checkpointing=False).fit(net, data())


@pytest.mark.filterwarnings("ignore:parameters beside the wrapped model train:UserWarning")
def test_the_older_name_of_the_package_works_too(tmp_path: Path) -> None:
    net = make_net(pytorch_lightning)
    one = trainer(tmp_path, LightningAdapterCallback(), module=pytorch_lightning, max_epochs=1)
    one.fit(net, data())
    (file,) = tmp_path.rglob("*.ckpt")
    assert "model.blocks.0.attn.qkv.weight" not in torch.load(file, weights_only=True)["state_dict"]
    other = make_net(pytorch_lightning)
    trainer(tmp_path, LightningAdapterCallback(), module=pytorch_lightning).validate(other, data(), file)
    assert same(state_of(other), state_of(net))


def fork_two(_: int, folder: Path) -> None:
    settings: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    whole, rest = make_net(), make_net()
    trainer(folder, LightningAdapterCallback(), saver(folder), max_epochs=2, **settings).fit(whole, data())
    one = trainer(folder / "other", LightningAdapterCallback(), max_epochs=2, **settings)
    one.fit(rest, data(), ckpt_path=folder / "epoch=0.ckpt")
    assert same(state_of(rest), state_of(whole))  # a launcher that forks brings weights back through the callback too
    assert (folder / "epoch=1.aim" / "adapter_model.safetensors").is_file()


def test_two_processes_write_one_checkpoint_and_go_on(tmp_path: Path) -> None:
    """In a fresh process: none that has run a backward pass inside of another may fork and train."""
    processes.start(fork_two, (tmp_path,), nprocs=1)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("aim_adapters.integrations")
    monkeypatch.setitem(sys.modules, "aim_adapters.integrations.lightning", None)
    with pytest.raises(ImportError, match="needs Lightning; pip install lightning"):
        _ = room.LightningAdapterCallback
