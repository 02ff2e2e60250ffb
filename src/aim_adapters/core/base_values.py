"""Samples of a base model's weights: whether it looks untrained, and whether it changed after it was wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.core.foreign import canonical_path, is_own_name, is_sharded
from aim_adapters.errors import warn

Samples = dict[str, tuple[float, ...]]

_SAMPLES = 4  # of each parameter
_MERGED = "aim_merged"  # attribute of an image model
# Below, half precision rounds to multiples of this.
_SMALLEST_HALF = 2.0**-24


def sample_weights(root: nn.Module) -> Samples:
    """Return a few values of each parameter of an image model, by its name without what other tools add.

    A row of each is read, so this takes about a millisecond, also where weights are the pages of a file. Adapters are
    left out, as are quantized weights, weights on the meta device, and sharded matrices. If norms are sharded, every
    rank must call.

    Args:
        root: The image model, wrapped or not.
    """
    return _sample(_base_tensors(root))


def sample_norms(root: nn.Module, anatomy: BackboneAnatomy) -> Samples:
    """Return those values of `sample_weights` that show whether an image model looks untrained.

    Args:
        root: The image model, wrapped or not. If it is sharded, every rank must call.
        anatomy: Its anatomy.
    """
    weights = (
        (name, getattr(getattr(root.get_submodule(path), norm, None), "weight", None))
        for name, (path, norm) in _norms(anatomy)
    )
    return _sample((name, weight.detach()) for name, weight in weights if isinstance(weight, nn.Parameter))


def _norms(anatomy: BackboneAnatomy) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the name of the weight of each norm of blocks, with the block's path and the norm's name there."""
    for path, block in anatomy.blocks:
        for part in (block.pre_attention, block.post_attention, block.pre_mlp, block.post_mlp):
            for norm in (part,) if isinstance(part, str) else part or ():
                yield canonical_path(f"{path}.{norm}.weight"), (path, norm)


def update_samples(samples: Samples, root: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Take over values that are loaded into an image model on purpose.

    Args:
        samples: What `sample_weights` returned; changed in place.
        root: The image model.
        loaded: Tensors by the names of the model's parameters; others are left out.
    """
    taken = {
        name: loaded[name].detach()
        for name, parameter in _base_tensors(root)
        if name in loaded and loaded[name].shape == parameter.shape
    }
    for name in taken:
        samples.pop(name, None)  # of a shard nothing is known afterwards: other ranks may not be here
    samples.update(_sample((name, tensor) for name, tensor in taken.items() if not is_sharded(tensor)))


def find_changes(samples: Samples, root: nn.Module) -> list[str]:
    """Return the names of parameters that are gone, or changed by more than rounding to half precision explains.

    Args:
        samples: What `sample_weights` returned before.
        root: The image model, wrapped or not. If norms are sharded, every rank must call.
    """
    present, names = sample_weights(root), {name for name, _ in _base_tensors(root)}
    compared = [name for name in samples if len(present.get(name, ())) == len(samples[name])]  # no quantized ones
    owners = [name for name in compared for _ in samples[name]]
    before, now = (
        torch.tensor([value for name in compared for value in values[name]], dtype=torch.float32, device="cpu")
        for values in (samples, present)
    )
    changed = {owners[index] for index in (~within_rounding(before, now)).nonzero().flatten().tolist()}
    return [name for name in samples if name in changed or name not in names]


def mark_merged(root: nn.Module) -> None:
    """Note on an image model that adapters were merged into its weights, which samples may not show.

    Args:
        root: The image model, wrapped or not; the mark stays when it is unwrapped, copied or pickled.
    """
    setattr(root, _MERGED, True)


def is_merged(root: nn.Module) -> bool:
    """Return whether adapters were merged into the weights of an image model.

    Args:
        root: The image model, wrapped or not.
    """
    return getattr(root, _MERGED, False) is True


def within_rounding(first: Tensor, second: Tensor) -> Tensor:
    """Return for each pair of values whether one may be the other, rounded to half precision, perhaps twice.

    Args:
        first: Values ``[n]``, float32.
        second: Values ``[n]``, float32.

    Returns:
        Truth values ``[n]``.
    """
    largest = torch.maximum(first.abs(), second.abs())
    half_step = torch.exp2(torch.frexp(largest).exponent - 9.0)  # of bfloat16; that of float16 is an eighth
    near = (first - second).abs() <= half_step * 1.125 + _SMALLEST_HALF
    return near | (first == second) | (first.isnan() & second.isnan())


def looks_untrained(samples: Samples, anatomy: BackboneAnatomy) -> bool:
    """Return whether the norms of all blocks are as initialization leaves them: all weights 1, or 0 (Swin v2).

    Args:
        samples: Result of `sample_weights`, or `sample_norms`.
        anatomy: The image model's anatomy.
    """
    weights = [samples[name] for name, _ in _norms(anatomy) if name in samples]
    return len(weights) > 1 and all(value in (0.0, 1.0) for values in weights for value in values)


def warn_untrained(samples: Samples, anatomy: BackboneAnatomy) -> None:
    """Warn about a base model that looks as if it had not been trained.

    Args:
        samples: Result of `sample_weights`, or `sample_norms`.
        anatomy: The image model's anatomy.
    """
    if looks_untrained(samples, anatomy):
        warn(
            "the image model looks untrained: the norm weights of all blocks are exactly 1, as after random "
            "initialization. AIM freezes the image model; build it with pretrained=True, or load its weights with "
            "load_state_dict"
        )


def _base_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in root.named_parameters():
        if not is_own_name(name):
            yield canonical_path(name), parameter.detach()


def _sample(tensors: Iterable[tuple[str, Tensor]]) -> Samples:
    rows: dict[str, Tensor] = {}
    for name, tensor in tensors:
        row = plain_values(tensor, most_dims=1)
        if row is None:
            continue
        while row.ndim > 1:
            row = row[row.shape[0] // 2]
        rows[name] = row.reshape(-1)[:_SAMPLES]
    if not rows:
        return {}
    device = next(iter(rows.values())).device
    values = torch.cat([row.to(device, torch.float32) for row in rows.values()]).tolist()  # one copy from a GPU
    sampled: Samples = {}
    for name, row in rows.items():
        sampled[name], values = tuple(values[: len(row)]), values[len(row) :]
    return sampled


def plain_values(tensor: Tensor, *, most_dims: int) -> Tensor | None:
    """Return a tensor whose values can be read, or None: quantized, without storage, or sharded and large.

    Args:
        tensor: A detached parameter.
        most_dims: Sharded tensors of more dimensions are not gathered. Every rank must call for those that are.
    """
    if is_sharded(tensor):
        if tensor.ndim > most_dims:
            return None
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.layout == torch.strided
    return tensor if plain and not tensor.is_meta and tensor.numel() else None
