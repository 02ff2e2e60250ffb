"""How much does saving and loading an adapter cost beyond moving its bytes?

``python -m benchmarks.timing.checkpoint_io``. The adapter of ViT-L/14 (8 frames, 400 classes), and with ``--model``
another's, is saved and loaded by this library and by safetensors alone, alternately, in the same directory. Raw
saving is ``save_file`` and the ``fsync`` without which a file is not yet on the disk; raw loading is ``load_file``
and a copy into the model's parameters, without which no byte has been read. What is loaded was saved long ago: a file
that is two seconds old may still be written, and is read twice. A model that is not wrapped yet is measured too.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import aim_adapters as aim
from benchmarks.harness import Timing, in_turn, report

# Loading reads twice, as nothing may be filled before all is known to be finite.
TARGETS = {"save": 1.2, "load": 1.5, "load and wrap": 1.2}
PEERS = {"save": "raw save", "load": "raw load", "load and wrap": "wrap and raw load"}
NAME = "vit_large_patch14_clip_224"


def make(model: nn.Module) -> nn.Module:
    """Return the model wrapped, with every parameter of the adapter random, as after training."""
    aim.wrap_image_model(model, num_frames=8, num_classes=400)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):
            parameter.normal_()
    return model


def save_raw(state: Mapping[str, Tensor], path: Path) -> None:
    """Write the same tensors, and see them on the disk."""
    save_file(dict(state), path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def load_raw(targets: Mapping[str, Tensor], path: Path) -> None:
    """Read the same tensors into the same parameters."""
    state = load_file(path)
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(state[key])


def wrap_and_load_raw(model: nn.Module, path: Path) -> None:
    """Wrap first, and then read the same tensors."""
    aim.wrap_image_model(model, num_frames=8, num_classes=400)
    load_raw(aim.adapter_state_dict(model), path)


def main() -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", default=NAME)
    arguments = parser.parse_args()
    plain = timm.create_model(arguments.model)
    model = make(copy.deepcopy(plain))
    state = aim.adapter_state_dict(model)
    with tempfile.TemporaryDirectory() as folder:
        ours, old = Path(folder) / "ours", Path(folder) / "old"
        raw, old_raw = Path(folder) / "raw.safetensors", Path(folder) / "old.safetensors"
        aim.save_adapters(model, old)
        save_raw(state, old_raw)
        os.utime(old / "adapter_model.safetensors", (0, 0))
        seconds = in_turn(
            {
                "save": lambda: aim.save_adapters(model, ours),
                "raw save": lambda: save_raw(state, raw),
                "load": lambda: aim.load_adapters(model, old),
                "raw load": lambda: load_raw(state, old_raw),
                "load and wrap": lambda: aim.load_adapters(plain, old),
                "wrap and raw load": lambda: wrap_and_load_raw(plain, old_raw),
            },
            undo=lambda: aim.unwrap_image_model(plain) if aim.is_wrapped(plain) else None,
            repeats=arguments.repeats,
        )
    median = {name: statistics.median(times) for name, times in seconds.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    print(f"  {size / 2**20:.0f} MiB of adapters")
    ratios = {name: median[name] / median[peer] for name, peer in PEERS.items()}
    worst = max(ratios, key=lambda name: ratios[name] / TARGETS[name])
    print("  " + ", ".join(f"{name} {ratio:.2f} of raw" for name, ratio in ratios.items()))
    return report(
        "checkpoint_io",
        f"{worst} the adapter of {arguments.model}, as a multiple of safetensors alone",
        ratio=ratios[worst],
        target=TARGETS[worst],
        details={name: Timing.of(times) for name, times in seconds.items()},
        also={"ratios": ratios, "targets": TARGETS},
    )


if __name__ == "__main__":
    sys.exit(main())
