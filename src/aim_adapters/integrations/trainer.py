"""The callback for transformers' ``Trainer``, which keeps checkpoints whole and puts adapters into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from aim_adapters.checkpoint import save_adapters
from aim_adapters.core import is_own_name, is_sharded
from aim_adapters.errors import StateError, warn
from aim_adapters.integrations.decay import warn_decayed

# Not in the checkpoint itself, where transformers would take the config of the adapters for one of peft.
_FOLDER = "aim"


class AdapterCallback(TrainerCallback):
    """A callback for transformers' ``Trainer``: ``Trainer(model, ..., callbacks=[AdapterCallback()])``.

    Each checkpoint gets a folder ``aim`` with the adapters, which `load_adapters` reads; so does the output directory
    before it is pushed to the Hub. To resume, and for the best model, the trainer reads its own ``model.safetensors``.
    The callback sees to it that this file holds every tensor by the name that the trainer looks for, also where
    another model of transformers contains the wrapped one.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if weight decay is applied to the temporal embedding.

        Args:
            args: The trainer's arguments.
            state: The trainer's state.
            control: The trainer's flow.
            **kwargs: What else the trainer hands over: of it, ``model`` and ``optimizer`` are read.
        """
        warn_decayed(
            kwargs["model"],
            [kwargs["optimizer"]],
            "the trainer's own optimizer decays the temporal embedding, which it does not know; pass "
            "optimizers=(torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=...)), None)",
        )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written. If weights are sharded, every process must call.

        Args:
            args: The trainer's arguments.
            state: The trainer's state.
            control: The trainer's flow.
            **kwargs: What else the trainer hands over: of it, ``model`` is read.
        """
        model, sharded = kwargs["model"], _is_sharded(kwargs["model"])
        if args.should_save or sharded:
            if isinstance(model, PreTrainedModel) and not sharded:
                _keep_names(model, _checkpoint(args, state))
            _save(model, _checkpoint(args, state))

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete what is about to be pushed to the Hub; not if weights are sharded, as one process pushes.

        Args:
            args: The trainer's arguments.
            state: The trainer's state.
            control: The trainer's flow.
            **kwargs: What else the trainer hands over: of it, ``model`` is read.
        """
        if args.should_save and not _is_sharded(kwargs["model"]):
            if _checkpoint(args, state).is_dir():
                self.on_save(args, state, control, **kwargs)
            _save(kwargs["model"], Path(str(args.output_dir)))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    out, name = Path(str(args.output_dir)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    if state.is_hyper_param_search:  # each trial has a directory of its own
        return max(out.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)
    return out / name


def _save(model: nn.Module, directory: Path) -> None:
    try:
        save_adapters(model, directory / _FOLDER)
    except StateError as error:
        # The trainer's own file holds the whole model, so training may go on.
        warn(f"{directory} gets no folder {_FOLDER!r} with the adapters alone: {error}")


def _keep_names(model: PreTrainedModel, checkpoint: Path) -> None:
    """Write the weights of a checkpoint again if the names of ours were changed."""
    file = checkpoint / SAFE_WEIGHTS_NAME
    if file.is_file():
        with safe_open(file, "pt") as weights:
            held = set(weights.keys())
        if any(name not in held for name, _ in model.named_parameters() if is_own_name(name)):
            model.save_pretrained(checkpoint, save_original_format=False)


def _is_sharded(model: nn.Module) -> bool:
    return any(map(is_sharded, model.parameters()))
