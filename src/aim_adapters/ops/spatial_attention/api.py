"""Entry to spatial attention: validation of its arguments and choice of its implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from aim_adapters.errors import InputError
from aim_adapters.ops.choice import Choice, automatic, by_name
from aim_adapters.ops.device import exporting, shared_memory, triton_missing
from aim_adapters.ops.spatial_attention import reference, sdpa
from aim_adapters.ops.spatial_attention.tiles import MAX_WINDOW_TOKENS, tiles_for

_PLAIN = {"sdpa": sdpa.spatial_attention, "eager": reference.spatial_attention}
# What the Triton kernels support.
_DTYPES = (torch.bfloat16, torch.float16)
_MAX_HEAD_DIM = 128


class Case(NamedTuple):
    """Facts that the choice of an implementation depends on.

    Args:
        device: Type of the device: ``"cuda"``, ``"cpu"``.
        dtype: Dtype of queries, keys and values.
        head_dim: d.
        tokens: N.
        missing: Why Triton cannot run here at all, or None if it can.
        shared_memory: Bytes of shared memory that a kernel may use.
        exporting: Whether the model is being exported, to run where our operators may not be known.
        added: Whether there is a bias or a mask.
        trained: Whether one of them requires a gradient.
        indexed: Whether windows are given by the indices of their tokens.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    tokens: int
    missing: str | None
    shared_memory: int = 2**20
    exporting: bool = False
    added: bool = False
    trained: bool = False
    indexed: bool = False


def choose(requested: str, case: Case) -> Choice:
    """Choose the implementation.

    ``"auto"`` may fall back; a name never does.

    Args:
        requested: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``.
        case: Facts of the call.

    Raises:
        ConfigError: The name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    named = by_name(requested, lambda: _unsupported(case))
    return automatic(_unsupported(case), case.device, exporting=case.exporting) if named is None else named


def _unsupported(case: Case) -> str | None:
    """Return why the Triton kernels cannot compute this, or None if they can."""
    if case.missing is not None:
        return case.missing
    if case.trained:
        return "its kernels give bias and mask no gradient, and one of them requires it"
    if case.dtype not in _DTYPES:
        return f"its kernels compute in {', '.join(map(str, _DTYPES))}, got {case.dtype}"
    if case.head_dim > _MAX_HEAD_DIM:
        return f"its kernels take heads up to {_MAX_HEAD_DIM} wide, got {case.head_dim}"
    if case.indexed and case.tokens > MAX_WINDOW_TOKENS:
        return f"its kernels take windows of up to {MAX_WINDOW_TOKENS} tokens by index, got {case.tokens}"
    for backward in (False, True):
        if not tiles_for(case.tokens, case.head_dim, added=case.added, backward=backward, shared=case.shared_memory):
            return (
                f"no tile of {case.tokens} tokens, {case.head_dim} wide, fits in the "
                f"{case.shared_memory // 1024} KiB of shared memory that this device has"
            )
    return None


def case_of(
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    tokens: int,
    *,
    added: bool = False,
    trained: bool = False,
    indexed: bool = False,
) -> Case:
    """Gather the facts that the choice of an implementation depends on.

    Args:
        device: Type of the device.
        dtype: Dtype of queries, keys and values.
        head_dim: d.
        tokens: N.
        added: Whether there is a bias or a mask.
        trained: Whether one of them requires a gradient.
        indexed: Whether windows are given by the indices of their tokens.
    """
    missing, memory = triton_missing(device), shared_memory(device)
    return Case(device, dtype, head_dim, tokens, missing, memory, exporting(), added, trained, indexed)


def spatial_attention(
    qkv: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    index: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Let every token attend to the tokens of its own frame, or window.

    S-MSA of Eq. 4. Any strides; a kernel reads the packed projection as it is, and returns its gradient packed.

    Args:
        qkv: Queries, keys and values ``[F, N, 3, H, d]``, floating point; F frames or windows. With an index,
            ``[F, W*N, 3, H, d]``: W windows of N tokens in each of F frames.
        scale: Factor on the scores; ``d ** -0.5`` when None.
        bias: Added to the scores before the softmax, ``[H, N, N]``, floating point, or None.
        mask: Added too, ``[W, N, N]``, floating point, -inf where a query must not see a key; window f takes
            ``mask[f % W]``, or with an index, window w of every frame takes ``mask[w]``; or None.
        index: Indices of the tokens of each window of a frame, int32 ``[W, N]``, every token in exactly one window
            (which is not checked); or None. Saves the copies that cutting a frame into windows takes.
        implementation: ``"auto"``, ``"triton"``, ``"sdpa"`` or ``"eager"``. Only the kernels give a bias and a mask no
            gradient; where one of them requires it, ``"auto"`` does without them.

    Returns:
        ``[F, N, H, d]`` in the dtype of ``qkv``; with an index, ``[F, W*N, H, d]``.

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
        ConfigError: The implementation's name is unknown.
        UnsupportedKernelError: The named implementation cannot run here, or cannot compute this.
    """
    tokens, dim = _validate(qkv, bias, mask, index), qkv.shape[4]
    scale = dim**-0.5 if scale is None else scale
    extra = [x for x in (bias, mask) if x is not None]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in extra)
    case = case_of(
        qkv.device.type, qkv.dtype, dim, tokens, added=bool(extra), trained=trained, indexed=index is not None
    )
    name = choose(implementation, case).implementation
    if name == "triton":
        from aim_adapters.ops.spatial_attention import triton  # not at the top: it imports Triton

        return triton.spatial_attention(qkv, scale=scale, bias=bias, mask=mask, index=index)
    if index is None:
        return _PLAIN[name](qkv, scale=scale, bias=bias, mask=mask)
    order, sizes = index.flatten(), {"w": index.shape[0], "n": index.shape[1]}
    windows = rearrange(qkv.index_select(1, order), "f (w n) qkv h d -> (f w) n qkv h d", **sizes)
    out = _PLAIN[name](windows, scale=scale, bias=bias, mask=mask)
    out = rearrange(out, "(f w) n h d -> f (w n) h d", f=qkv.shape[0], **sizes)
    return out.index_select(1, order.argsort())


def _validate(qkv: Tensor, bias: Tensor | None, mask: Tensor | None, index: Tensor | None) -> int:
    """Return the number of tokens of a sequence, N, after checking that the arguments fit together.

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[3:]:
        raise InputError(f"a packed projection is [F, N, 3, H, d], got {tuple(qkv.shape)}")
    if not qkv.is_floating_point():
        raise InputError(f"a packed projection is floating point, got {qkv.dtype}")
    sequences, tokens, _, heads, _ = qkv.shape
    if index is not None:
        if index.dtype != torch.int32 or index.ndim != 2 or index.numel() != tokens or index.device != qkv.device:
            raise InputError(
                f"index must be int32 [W, N] with W * N = {tokens} and on {qkv.device} as qkv is, got {index.dtype} "
                f"{tuple(index.shape)} on {index.device}"
            )
        sequences, tokens = sequences * index.shape[0], index.shape[1]
    for name, added in (("bias", bias), ("mask", mask)):
        if added is None:
            continue
        first = heads if name == "bias" else added.shape[0] if added.ndim else 0
        if tuple(added.shape) != (first, tokens, tokens):
            letter = f"H, N, N] = [{heads}" if name == "bias" else "W, N, N] = [W"
            raise InputError(f"{name} must be [{letter}, {tokens}, {tokens}], got {tuple(added.shape)}")
        if not added.is_floating_point() or added.device != qkv.device:
            raise InputError(
                f"{name} must be floating point and on {qkv.device} as qkv is, got {added.dtype} on {added.device}"
            )
    if mask is not None and (mask.shape[0] == 0 or sequences % mask.shape[0]):
        raise InputError(f"{sequences} windows are no multiple of the {mask.shape[0]} that the mask tells apart")
    if mask is not None and index is not None and len(mask) != len(index):
        raise InputError(f"mask must be [W, N, N] = [{len(index)}, ...] as the index has it, got {tuple(mask.shape)}")
    return tokens
