"""Projections and settings of the attention modules that several families share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_adapters.anatomy import require_called
from aim_adapters.errors import UnsupportedModelError


def refuse_masks(**masks: Any) -> None:
    """Refuse attention masks passed to an adapted block: they have no meaning along time.

    Args:
        **masks: The masks by the name of their argument.

    Raises:
        UnsupportedModelError: A mask is not None or False.
    """
    passed = [name for name, mask in masks.items() if not _says_nothing(mask)]
    if passed:
        raise UnsupportedModelError(
            f"an attention mask was passed to an adapted block ({', '.join(passed)}); it has no meaning along time: "
            "call the model without it"
        )


def _says_nothing(mask: Any) -> bool:
    if isinstance(mask, Tensor):  # the ONNX exporter by tracing hands over a default of False as a tensor
        return mask.ndim == 0 and mask.dtype == torch.bool and not mask
    return mask is None or mask is False


def num_heads(attn: Any) -> int:
    """Return the number of query heads H of an attention module."""
    return int(attn.num_attention_heads if hasattr(attn, "num_attention_heads") else attn.num_heads)


def softmax_scale(attn: Any) -> float:
    """Return the factor on the scores: the attribute ``scale`` (timm) or ``scaling`` (transformers) of an attention."""
    return float(attn.scaling if hasattr(attn, "scaling") else attn.scale)


def project_qkv(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens as timm and transformers do: by one packed layer, or by three.

    Args:
        attn: The attention. Its layers are ``qkv``, with biases possibly in ``q_bias``, ``k_bias`` and ``v_bias``, or
            ``q_proj``, ``k_proj`` and ``v_proj``. Queries and keys may have norms ``q_norm`` and ``k_norm``.
        h: Tokens ``[B*T, N, D]``.

    Returns:
        Queries ``[B*T, N, H, d]``, and keys and values ``[B*T, N, G, d]`` with G heads, in the dtype of the values.
    """
    if getattr(attn, "qkv", None) is not None:
        q, k, v = _project_fused(attn, h).unbind(-3)
    else:
        layers = (attn.q_proj, attn.k_proj, attn.v_proj)
        # The EvaAttention of timm 1.0.24 does not tell the width of a head.
        width = attn.head_dim if hasattr(attn, "head_dim") else attn.q_proj.out_features // attn.num_heads
        q, k, v = (layer(h).unflatten(-1, (-1, width)) for layer in layers)
    if hasattr(attn, "q_norm"):
        # Under autocast a norm returns float32; the family's own attention call casts it back.
        q, k = attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype)
    return q, k, v


def project_packed(attn: Any, h: Tensor) -> Tensor | None:
    """Project tokens as `project_qkv` does, into one tensor.

    Args:
        attn: The attention.
        h: Tokens ``[B*T, N, D]``.

    Returns:
        Queries, keys and values ``[B*T, N, 3, H, d]``, or None for an attention without a packed layer, or with norms
        of queries and keys.
    """
    norms = (getattr(attn, "q_norm", None), getattr(attn, "k_norm", None))
    if getattr(attn, "qkv", None) is None or not all(isinstance(norm, (nn.Identity, type(None))) for norm in norms):
        return None
    return _project_fused(attn, h)


def _project_fused(attn: Any, h: Tensor) -> Tensor:
    if getattr(attn, "q_bias", None) is None:
        packed = attn.qkv(h)  # [B*T, N, 3*H*d]
    else:
        require_called(attn.qkv, "the qkv layer of an attention")
        packed = F.linear(h, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
    out: Tensor = packed.unflatten(-1, (3, attn.num_heads, -1))  # [B*T, N, 3, H, d]
    return out


def project_out(attn: Any, o: Tensor, h: Tensor) -> Tensor:
    """Project attended values as timm and transformers do, with an inner norm and a sigmoid gate if there are any.

    Args:
        attn: The attention; its output projection is ``proj``, ``out_proj`` or ``o_proj``.
        o: Attended values ``[B*T, N, H, d]``.
        h: Tokens that the attention read, ``[B*T, ..., D]``.

    Returns:
        The attention's output, in the shape of ``h``.
    """
    o = o.flatten(-2)  # [B*T, N, H*d]
    if isinstance(getattr(attn, "norm", None), nn.Module):
        o = attn.norm(o)
    if getattr(attn, "gate", None) is not None:
        o = o * attn.gate(h).sigmoid()
    layer = next(getattr(attn, name) for name in ("proj", "out_proj", "o_proj") if hasattr(attn, name))
    out: Tensor = layer(o)
    return out.view(h.shape)


def project_packed_weights(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens by the packed weights of ``nn.MultiheadAttention``.

    That module takes a native fast path in evaluation without gradients and another path otherwise, so the kernel would
    change from call to call. Adapted blocks read its weights instead, and run the same fused attention in all cases.

    Args:
        attn: The attention.
        h: Tokens ``[B*T, N, D]``.

    Returns:
        Queries, keys and values ``[B*T, N, H, d]``, views of one tensor.
    """
    q, k, v = packed_weights(attn, h).unbind(-3)
    return q, k, v


def packed_weights(attn: Any, h: Tensor) -> Tensor:
    """Project tokens as `project_packed_weights` does, into one tensor.

    Args:
        attn: The attention.
        h: Tokens ``[B*T, N, D]``.

    Returns:
        Queries, keys and values ``[B*T, N, 3, H, d]``.
    """
    packed = F.linear(h, attn.in_proj_weight, attn.in_proj_bias)  # [B*T, N, 3*D]
    out: Tensor = packed.unflatten(-1, (3, attn.num_heads, -1))  # [B*T, N, 3, H, d]
    return out


def inverse_root_scale(attn: Any) -> float:
    """Return ``d ** -0.5`` for the head width d of an attention: the factor on the scores."""
    return float(attn.head_dim**-0.5)


def unit_scale(attn: Any) -> float:
    """Return 1: the factor on the scores of cosine attention, whose queries are scaled already."""
    return 1.0


def require_plain_multi_head(attn: nn.MultiheadAttention, *, where: str) -> None:
    """Refuse options of ``nn.MultiheadAttention`` that no vision transformer uses.

    Args:
        attn: The attention.
        where: Its path, for messages.

    Raises:
        UnsupportedModelError: It is not batch-first with one packed projection and no extra keys.
    """
    options = {
        "batch_first=False": not attn.batch_first,
        "separate key/value widths": not attn._qkv_same_embed_dim,
        "bias_k/bias_v": attn.bias_k is not None or attn.bias_v is not None,
        "add_zero_attn": attn.add_zero_attn,
    }
    used = [name for name, is_used in options.items() if is_used]
    if used:
        raise UnsupportedModelError(
            f"{where} uses {', '.join(used)}; expected nn.MultiheadAttention with batch_first=True, one packed "
            "projection and no extra keys"
        )
