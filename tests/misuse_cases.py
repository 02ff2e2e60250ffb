"""Values that no argument is made for, and one correct call of every public function to put them into."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import aim_adapters as aim
from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.video import VideoDataset
from tests.convert.test_convert import WIDE
from tests.oracle import holders
from tests.oracle.reference import vit_file
from tests.oracle.vit import random_weights
from tests.tiny import base, trained, video
from tests.video.videos import write


class Evil:
    """An object of which every question is answered by an error."""

    def _raise(self, *arguments: Any) -> Any:
        raise ZeroDivisionError("evil")

    __eq__ = __str__ = __repr__ = __len__ = __iter__ = __bool__ = __fspath__ = __getitem__ = __contains__ = _raise
    __float__ = __int__ = __index__ = __hash__ = __lt__ = __add__ = _raise


class Vast:
    """An object that says yes to everything, at great length."""

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "vast" * 10**6

    def __len__(self) -> int:
        return 10**9

    def __fspath__(self) -> str:
        return "\0"

    def __iter__(self) -> Iterator[str]:
        return iter(["temporal", "temporal"])

    __hash__ = object.__hash__


class EvilList(list[Any]):
    """A list that is none."""

    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError("evil")


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "two": lambda: 2,
    "half": lambda: 0.5,
    "huge": lambda: 10**400,
    "beyond printing": lambda: 10**5000,
    "large": lambda: 2**31,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "complex": lambda: 1j,
    "empty text": lambda: "",
    "word": lambda: "x",
    "long text": lambda: "x" * 5000,
    "NUL": lambda: "\0",
    "surrogate": lambda: "\ud800",
    "bytes": lambda: b"x",
    "empty list": list,
    "list": lambda: [1],
    "huge in a list": lambda: [10**400, 1],
    "words": lambda: ["x", "x"],
    "surrogates": lambda: ["\ud800"],
    "lists in a list": lambda: [[1], {}],
    "dict": lambda: {"x": 1},
    "number by number": lambda: {1: 2},
    "set": lambda: {"temporal"},
    "NumPy integer": lambda: np.int64(2),
    "NumPy float": lambda: np.float32(0.5),
    "NumPy bool": lambda: np.bool_(True),
    "NumPy text": lambda: np.str_("x"),
    "NumPy array, 0-d": lambda: np.array(3),
    "NumPy array": lambda: np.array(["x", "y"]),
    "NumPy arrays in a list": lambda: [np.arange(3), np.arange(3)],
    "tensor, 0-d": lambda: torch.tensor(1),
    "tensor": lambda: torch.ones(2),
    "tensor on meta": lambda: torch.empty(2, device="meta"),
    "a class": lambda: aim.AIMConfig,
    "a module class": lambda: nn.Linear,
    "another module": lambda: nn.Linear(2, 2),
    "function": lambda: len,
    "path": lambda: Path("x"),
    "generator": lambda: (index for index in [0]),
    "endless generator": lambda: iter(int, 1),
    "object": object,
    "evil": Evil,
    "evil in a list": lambda: [Evil(), Evil()],
    "evil list": lambda: EvilList([1, 2]),
    "evil by name": lambda: {"x": Evil()},
    "vast": Vast,
}


@dataclass
class Stage:
    """What the calls are made on; `renew` makes it anew."""

    folder: Path
    model: nn.Module = field(init=False)
    bare: nn.Module = field(init=False)
    clip: nn.Module = field(init=False)
    linear: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.fresh = {"model": trained(), "bare": base(), "clip": holders.timm(random_weights(WIDE), WIDE)}
        self.fresh["linear"] = trained(components=("spatial",), adapter_activation="none")
        aim.add_adapter(self.fresh["model"], "other", aim.AIMConfig(4))
        self.file = vit_file(random_weights(WIDE), WIDE, 4)
        self.renew(self.fresh)
        write(self.folder / "0.mp4", count=4, height=16, width=16)
        labels = tuple("abcde")
        self.videos = VideoDataset([(self.folder / "0.mp4", 0)], 4, labels=labels)
        self.spec = aim.ClipSpec(4, None, (16, 16), (0.5,) * 3, (0.5,) * 3, labels)
        self.saved = aim.save_adapters(self.model, self.folder / "saved")

    def renew(self, names: Iterable[str]) -> None:
        for name in names:
            setattr(self, name, copy.deepcopy(self.fresh[name]))

    def state(self) -> dict[str, Any]:
        """Return what a call that fails must leave as it was, by what it belongs to."""
        models = {name: getattr(self, name) for name in self.fresh}
        return {
            **{name: _state_of(model) for name, model in models.items()},
            "backbones": aim.list_backbones(),
            "files": sorted((path, path.stat().st_mtime_ns) for path in self.folder.rglob("*")),
        }

    def changed(self, before: dict[str, Any]) -> set[str]:
        """Return what has changed, and make the models among it anew."""
        found = {name for name, value in self.state().items() if value != before[name]}
        self.renew(found & self.fresh.keys())
        return found


def _state_of(model: nn.Module) -> Any:
    modules = [(name, type(module), module.training, [*vars(module)]) for name, module in model.named_modules()]
    tensors = [
        (name, id(tensor), tensor._version, tensor.data_ptr(), tensor.dtype, tensor.requires_grad)
        for name, tensor in model.state_dict(keep_vars=True).items()
    ]
    return modules, tensors, aim.list_adapters(model) if aim.is_wrapped(model) else None


def read(model: nn.Module) -> BackboneAnatomy | None:
    return None


# The correct arguments of each function.
CALLS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "adapter_param_groups": lambda on: {"model": on.model, "weight_decay": 0.05, "others": False},
    "adapter_state_dict": lambda on: {"model": on.model, "name": "other"},
    "add_adapter": lambda on: {"model": on.model, "name": "new", "config": aim.AIMConfig(4)},
    "attention_maps": lambda on: {
        "model": on.model, "video": video(1), "blocks": [0], "components": ["temporal"], "target": 0,
    },
    "average_adapters": lambda on: {
        "model": on.model, "names": ["default", "default"], "into": "mean", "weights": [1, 2],
    },
    "clip_spec": lambda on: {"model": on.model},
    "convert_official_checkpoint": lambda on: {
        "model": on.clip, "source": on.file, "directory": on.folder / "converted", "base_model_name_or_path": "x",
        "base_model_revision": "x", "frame_stride": 2, "labels": None, "scale": 0.5,
    },
    "count_flops": lambda on: {"model": on.model, "image_size": 16},
    "count_parameters": lambda on: {"model": on.model},
    "delete_adapter": lambda on: {"model": on.model, "name": "other"},
    "disable_adapters": lambda on: {"model": on.model},
    "explain": lambda on: {
        "model": on.model, "source": on.folder / "0.mp4", "top": 1, "variants": False, "blocks": [0], "target": 0,
        "checks": False, "spec": on.spec,
    },
    "explain_attention": lambda on: {"model": on.model},
    "explain_execution": lambda on: {"model": on.model},
    "explain_graphs": lambda on: {"model": on.model},
    "evaluate": lambda on: {
        "model": on.model, "dataset": on.videos, "views": "1x1", "batch_size": 1, "workers": 0, "device": "cpu",
        "precision": "fp32", "spec": on.spec, "max_skipped": 0.5, "progress": False,
    },
    "extract_features": lambda on: {"model": on.model, "video": video(1)[0], "stride": 4, "batch_size": 1},
    "fit": lambda on: {
        "model": on.model, "train": on.videos, "test": on.videos, "out": on.folder / "run", "recipe": "small-data",
        "epochs": 1, "resume": "auto", "batch_size": 1, "accumulate": 1, "learning_rate": 1e-3, "max_norm": 1.0,
        "ema": 0.5, "precision": "fp32", "execution": "eager", "sharding": "ddp", "workers": 0, "seed": 0,
        "views": "1x1", "evaluate_every": 1, "save_every": 1, "keep": 1, "max_skipped": 0.05, "dummy_data": True,
        "log_with": None, "callbacks": [], "spec": on.spec, "progress": False,
    },
    "graph": lambda on: {"model": on.model, "example": video(1), "max_graphs": 8},
    "is_wrapped": lambda on: {"model": on.model},
    "list_adapters": lambda on: {"model": on.model},
    "load_adapter_state_dict": lambda on: {
        "model": on.model, "state": aim.adapter_state_dict(on.model), "strict": True, "name": "default",
    },
    "load_adapters": lambda on: {
        "model": on.model, "source": on.saved, "strict": True, "name": "default", "resize_frames": False,
        "allow_nonfinite": False, "allow_other_base": False, "revision": None, "subfolder": None, "token": None,
        "cache_dir": None, "local_files_only": False, "force_download": False,
    },
    "load_official_checkpoint": lambda on: {
        "model": on.clip, "source": on.file, "backbone": "verify", "strict": True, "num_classes": None, "scale": 0.5,
        "drop_path": 0.0, "head_dropout": 0.0, "head_width": 64,
    },
    "load_video_model": lambda on: {
        "source": on.saved, "base_model": "x", "base_model_revision": None, "pretrained": False, "revision": None,
        "subfolder": None, "token": None, "cache_dir": None, "local_files_only": False, "force_download": False,
    },
    "merge_adapters": lambda on: {"model": on.linear},
    "predict": lambda on: {
        "model": on.model, "source": on.folder / "0.mp4", "top": 1, "views": "1x1", "device": "cpu",
        "precision": "fp32", "spec": on.spec,
    },
    "print_trainable_parameters": lambda on: {"model": on.model},
    "push_to_hub": lambda on: {
        "model": on.model, "repo_id": "me/aim", "name": "default", "private": None, "token": None, "branch": None,
        "create_pr": False, "commit_message": "x", "commit_description": None, "subfolder": None, "license": "mit",
        "datasets": ["k400"], "metrics": {"accuracy": 0.5}, "tags": ["x"], "frame_stride": 2, "labels": None,
        "base_model_name_or_path": "x", "base_model_revision": "x", "allow_nonfinite": False,
    },
    "register_backbone": lambda on: {"backbone": aim.Backbone("mine", "", "mine", read)},
    "save_adapters": lambda on: {
        "model": on.model, "directory": on.folder / "out", "name": "default", "base_model_name_or_path": "x",
        "base_model_revision": "x", "frame_stride": 2, "labels": None, "allow_nonfinite": False,
    },
    "set_adapter": lambda on: {"model": on.model, "name": "other"},
    "set_attention": lambda on: {"model": on.model, "attention": "eager"},
    "set_base_dtype": lambda on: {"model": on.model, "dtype": torch.float32},
    "set_execution": lambda on: {"model": on.model, "fused": True, "memory": "fast", "frozen_precision": "auto"},
    "set_num_frames": lambda on: {"model": on.model, "num_frames": 4},
    "trainable_parameters": lambda on: {"model": on.model},
    "ungraph": lambda on: {"model": on.model},
    "unwrap_image_model": lambda on: {"model": on.model},
    "wrap_image_model": lambda on: {
        "model": on.bare, "num_frames": 4, "bottleneck": 0.25, "scale": 0.5, "num_classes": None,
        "components": ["temporal", "spatial"], "layers": "all", "temporal_input_adapter": False, "drop_path": 0.0,
        "head_dropout": 0.0, "train_norm": True, "tubelet_size": 1, "attention": "auto", "input_layout": "auto",
        "adapter_activation": "none",
    },
    "AIMConfig.adapted_blocks": lambda on: {"self": aim.AIMConfig(4), "depth": 3},
    "AIMConfig.adapter_width": lambda on: {"self": aim.AIMConfig(4), "dim": 32},
    "AIMConfig.from_dict": lambda on: {"fields": {"num_frames": 4}},
    "AIMConfig.from_json": lambda on: {"text": json.dumps({"num_frames": 4})},
    "Backbone": lambda on: {
        "name": "mine", "library": "", "describes": "mine", "read": read, "build": None, "hub_id": None, "call": None,
    },
}  # fmt: skip
