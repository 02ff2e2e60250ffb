"""The parameters of an image model by their role, which does not depend on its library: compared and filled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.errors import CheckpointError

# Names of the attention's projections in all libraries; queries, keys and values in the order of a packed projection.
_ATTENTION = {
    "qkv": "qkv", "in_proj": "qkv", "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv",
    "proj": "out", "out_proj": "out", "o_proj": "out",
}  # fmt: skip

Roles = dict[str, list[str]]


def find_roles(root: nn.Module, anatomy: BackboneAnatomy) -> Roles:
    """Return the names of a model's parameters by role.

    The final norm and the classification layers have no role: the reference trained its own.

    Args:
        root: The module that the anatomy describes.
        anatomy: Its anatomy.

    Returns:
        The names of each role: one, or those of separate queries, keys and values. The role of an unknown parameter is
        its own name.
    """
    excluded = [path for path in (anatomy.norm, *(head.path for head in anatomy.heads)) if path]
    entries: list[tuple[str, int, str]] = []
    for name, parameter in root.named_parameters():
        if name in anatomy.hidden_when_headed or name.startswith(tuple(f"{path}." for path in excluded)):
            continue
        index = next((i for i, (path, _) in enumerate(anatomy.blocks) if name.startswith(f"{path}.")), None)
        role, rank = (
            (_outer_role(root, anatomy, name, parameter), 0)
            if index is None
            else _block_role(root, anatomy, index, name)
        )
        entries.append((role, rank, name))
    roles: Roles = {}
    for role, _, name in sorted(entries, key=lambda entry: entry[1]):  # stable: in order of registration, but q, k, v
        is_second = role in ("class", "position") and role in roles  # registers or a mask token
        roles.setdefault(name if is_second else role, []).append(name)
    return roles


def _block_role(root: nn.Module, anatomy: BackboneAnatomy, index: int, name: str) -> tuple[str, int]:
    """Return the role of a block's parameter, and its place among the parameters of that role."""
    path, block = anatomy.blocks[index]
    rest = name[len(path) + 1 :]
    part, _, inner = rest.partition(".")
    at = f"blocks.{index}."
    module, _, leaf = inner.replace("in_proj_", "in_proj.").rpartition(".")
    if part == block.attention and module in _ATTENTION:
        return f"{at}{_ATTENTION[module]}.{leaf}", list(_ATTENTION).index(module)
    if part == block.attention and inner == "relative_position_bias_table":
        return f"{at}spatial_bias", 0
    if part == block.mlp:
        mlp = root.get_submodule(f"{path}.{part}")
        linear = [name for name, child in mlp.named_modules() if isinstance(child, nn.Linear)]
        if module in linear and len(linear) == 2:
            return f"{at}fc{linear.index(module) + 1}.{leaf}", 0
    norms = {block.pre_attention: "norm1", block.pre_mlp: "norm2"}
    if part in norms and inner in ("weight", "bias"):
        return f"{at}{norms[part]}.{inner}", 0
    return f"{at}{rest}", 0


def _outer_role(root: nn.Module, anatomy: BackboneAnatomy, name: str, parameter: nn.Parameter) -> str:
    path, _, leaf = name.rpartition(".")
    owner, widths = root.get_submodule(path), sorted(set(anatomy.block_widths))
    merged = {4 * width: stage for stage, width in enumerate(widths[:-1])}
    if isinstance(owner, nn.Conv2d):
        return f"patch.{leaf}"
    if isinstance(owner, nn.LayerNorm):
        width = parameter.shape[-1]
        if path == anatomy.entry:
            return f"pre_norm.{leaf}"
        return f"merge.{merged[width]}.norm.{leaf}" if width in merged else f"patch_norm.{leaf}"
    if isinstance(owner, nn.Linear):
        stage = merged.get(owner.in_features)
        return name if stage is None else f"merge.{stage}.reduction.{leaf}"
    if parameter.ndim == 0 or parameter.shape[-1] != widths[0]:
        return name
    return "class" if parameter.numel() == widths[0] else "position"


def require_same_shapes(root: nn.Module, roles: Roles, base: Mapping[str, Tensor], hint: str) -> None:
    """Refuse a model of another architecture than the checkpoint's.

    Args:
        root: The model's root.
        roles: Its parameters by role.
        base: The checkpoint's tensors by role.
        hint: The models that fit, for messages.

    Raises:
        CheckpointError: The model and the checkpoint have different roles, or different shapes in a role.
    """
    missing = [role for role in roles if role not in base]
    extra = [role for role in base if role not in roles]
    if missing or extra:
        raise CheckpointError(
            f"the backbone in the checkpoint and this model are not built alike: "
            f"{_list('only the model has', missing)}{_list('only the checkpoint has', extra)}it fits {hint}"
        )
    for role, names in roles.items():
        parameters = [root.get_parameter(name) for name in names]
        rows, tensor = sum(parameter.shape[0] for parameter in parameters), base[role]
        shape = list(parameters[0].shape) if len(parameters) == 1 else [rows, *parameters[0].shape[1:]]
        if _squeezed(role, shape) != _squeezed(role, tensor.shape):
            why = ""
            if role == "position":
                why = "; the position table belongs to one image size: build the model for the checkpoint's"
            raise CheckpointError(
                f"{role} is {list(tensor.shape)} in the checkpoint and {shape} in the model ({names[0]}){why}. The "
                f"checkpoint fits {hint}"
            )


def _squeezed(role: str, shape: Sequence[int]) -> list[int]:
    """Return a shape without the leading ones that libraries add to the [class] token and the position table."""
    sizes = list(shape)
    while role in ("class", "position") and len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    return sizes


def _list(what: str, roles: Sequence[str]) -> str:
    return f"{what} {', '.join(roles[:5])}{f' and {len(roles) - 5} more' * (len(roles) > 5)}; " if roles else ""


def split(root: nn.Module, roles: Roles, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by the names, and in the shapes, of the model's parameters.

    Args:
        root: The model's root.
        roles: Its parameters by role.
        base: The checkpoint's tensors by role, of the same shapes.
    """
    values: dict[str, Tensor] = {}
    for role, names in roles.items():
        shapes = [root.get_parameter(name).shape for name in names]
        pieces = [base[role]] if len(names) == 1 else base[role].split([shape[0] for shape in shapes])
        values |= {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    return values


def require_same_values(root: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Refuse a model with other weights than the checkpoint's.

    They need to be equal in half precision only: some libraries publish in it what others publish in full precision.

    Args:
        root: The model's root.
        values: The checkpoint's tensors by the names of the model's parameters.

    Raises:
        CheckpointError: Weights differ; the message names those that differ most.
    """
    differing: dict[str, float] = {}
    for name, value in values.items():
        own, value = root.get_parameter(name).detach(), value.to(root.get_parameter(name).device)
        if torch.equal(own, value):
            continue
        largest = float(value.abs().max())
        error = float((own - value).abs().max()) / largest if largest else math.inf
        if not error <= max(2**-11, torch.finfo(own.dtype).eps, torch.finfo(value.dtype).eps):
            differing[name] = error
    if differing:
        worst = sorted(differing, key=lambda name: -differing[name])[:5]
        raise CheckpointError(
            f"{len(differing)} of {len(values)} backbone tensors of this model are not those of the checkpoint; the "
            f"worst, by relative difference: {', '.join(f'{name} ({differing[name]:.2g})' for name in worst)}. Load "
            "the model's pre-trained weights, those the checkpoint was trained on, or pass backbone='fill' to take "
            "the weights in the checkpoint"
        )


def fill(root: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model's parameters, which keep their dtype and device.

    Args:
        root: The model's root.
        values: Tensors by the names of its parameters.
    """
    with torch.no_grad():
        for name, value in values.items():
            root.get_parameter(name).copy_(value)
