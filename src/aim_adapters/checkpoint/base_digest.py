"""A digest of a base model's values, which does not depend on the library, dtype or quantization that holds them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from aim_adapters.anatomy import BackboneAnatomy
from aim_adapters.core import plain_values, within_rounding
from aim_adapters.errors import CheckpointError, warn

_VERSION = "1"
_VALUES = 8  # of each tensor


def base_digest(root: nn.Module, anatomy: BackboneAnatomy) -> str | None:
    """Return values of a few small tensors of a base model, each as the four hexadecimal digits of its bfloat16.

    These are evenly spaced elements of the norms of the first, middle and last block, and of the patch embedding.
    Quantization leaves them alone, and libraries do not lay them out in different ways. It is no hash, as an image
    model held in float16 gives other last digits: there, a value is rounded twice.

    Args:
        root: The image model, wrapped or not. If it is sharded, every rank must call.
        anatomy: Its anatomy.

    Returns:
        ``"1:"`` and the digits; None if none of these tensors can be read.
    """
    values = _values(root, anatomy)
    if values.isnan().all():
        return None
    bits = values.to(torch.bfloat16).view(torch.int16).tolist()
    return f"{_VERSION}:" + "".join(f"{each & 0xFFFF:04x}" for each in bits)


def differs(root: nn.Module, anatomy: BackboneAnatomy, digest: str) -> bool:
    """Return whether a base model has other values than a digest records.

    Args:
        root: The image model, wrapped or not. If it is sharded, every rank must call.
        anatomy: Its anatomy.
        digest: What `base_digest` returned for the other one.

    Raises:
        CheckpointError: ``digest`` is not a digest.
    """
    version, _, digits = digest.partition(":")
    if re.fullmatch(r"[0-9]{1,9}", version) and version != _VERSION:
        warn(
            f"the base_digest in the config is of version {version}, this library reads {_VERSION}: whether this image "
            "model holds the weights that the adapters were trained on was not checked; update aim-adapters"
        )
        return False
    actual = _values(root, anatomy)
    if version != _VERSION or not re.fullmatch(rf"[0-9a-f]{{{4 * len(actual)}}}", digits):
        raise CheckpointError(f"the config has base_digest={digest!r:.80}, which is damaged; nothing was loaded")
    bits = torch.tensor(
        [int(digits[at : at + 4], 16) for at in range(0, len(digits), 4)], dtype=torch.int32, device="cpu"
    )
    recorded = (bits << 16).view(torch.float32)
    known = ~(recorded.isnan() | actual.isnan())  # what one of the two does not have, or holds quantized
    recorded, actual = recorded[known], actual[known]
    differing = ~within_rounding(recorded, actual)
    # Values held in bfloat16 that were rounded to float16 before are one step off, about one in sixteen.
    rounded = actual.bfloat16()
    steps = (recorded.bfloat16().view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
    explained = (rounded == actual) & (steps <= 1)
    return bool((differing & ~explained).any()) or 4 * int(differing.sum()) > len(actual)


def _values(root: nn.Module, anatomy: BackboneAnatomy) -> Tensor:
    """Return the values that the digest is made of ``[n]``, float32 on the CPU; NaN for what cannot be read."""
    parts: list[Tensor] = []
    with torch.no_grad():
        for tensor in _tensors(root, anatomy):
            plain = None if tensor is None else plain_values(tensor.detach(), most_dims=4)
            if plain is None:
                parts.append(torch.full((_VALUES,), torch.nan, device="cpu"))
                continue
            rows = torch.tensor([index * len(plain) // _VALUES for index in range(_VALUES)], device=plain.device)
            picked = plain[rows]
            while picked.ndim > 1:
                picked = picked[:, picked.shape[1] // 2]
            parts.append(picked.to("cpu", torch.float32))
    return torch.cat(parts)


def _tensors(root: nn.Module, anatomy: BackboneAnatomy) -> Iterator[Tensor | None]:
    """Yield the tensors that the digest samples: always as many, None for what the model does not have."""
    last = len(anatomy.blocks) - 1
    for index in (0, last // 2, last):
        path, block = anatomy.blocks[index]
        module = root.get_submodule(path)
        for names in ((block.pre_attention, block.post_attention), (block.pre_mlp, block.post_mlp)):
            norm = next((part for name in names if (part := _norm(module, name)) is not None), None)
            yield getattr(norm, "weight", None)
            yield getattr(norm, "bias", None)
    yield None if anatomy.patch_conv is None else getattr(root.get_submodule(anatomy.patch_conv), "weight", None)


def _norm(block: nn.Module, name: str | tuple[str, ...] | None) -> nn.Module | None:
    for each in (name,) if isinstance(name, str) else name or ():
        part = getattr(block, each, None)
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Module) and isinstance(weight, Tensor) and weight.ndim == 1:
            return part
    return None
