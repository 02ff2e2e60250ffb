"""Run spatial attention as Triton kernels, on a packed projection as it was written, its gradient packed alike.

Three kinds, by the length of the sequences. *Window*: one tile holds a sequence; the backward pass makes all three
gradients of it at once. *Resident*: a program keeps one side of a head (keys and values, or queries and the gradients
of what came of them) in shared memory, in up to five pieces whose sizes are powers of two, and walks over the tiles of
the other side. *Streaming*: a program owns one tile and walks over all of the other side. Probabilities never leave
the registers: where a product needs them transposed, they are computed transposed. Heads vary fastest in the grid, as
they lie side by side.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointer, rows, stride, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(pointer + offsets, mask=(rows < TOKENS)[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store(pointer, tile, rows, stride, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    inside = (rows < TOKENS)[:, None] & (columns < D)[None, :]
    tl.store(pointer + offsets, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _load_row(pointer, rows, TOKENS: tl.constexpr):
    return tl.load(pointer + rows, mask=rows < TOKENS, other=0.0)


@triton.jit
def _delta(o, g, rows, stride, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Return what the softmax's gradient subtracts in each row: the sum of probabilities times their gradients."""
    return tl.sum(_load(o, rows, stride, TOKENS, D, WIDTH).to(tl.float32) * g.to(tl.float32), 1)


@triton.jit
def _pairs(
    scores, bias, mask, queries, keys, scale, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr
):
    """Scale products and add what was given for each pair, in units of log2; one of queries and keys is a column."""
    scores *= scale * 1.4426950408889634
    inside = (queries < TOKENS) & (keys < TOKENS)
    if HAS_BIAS:
        scores += tl.load(bias + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    if HAS_MASK:
        scores += tl.load(mask + queries * TOKENS + keys, mask=inside, other=0.0).to(tl.float32) * 1.4426950408889634
    return scores


@triton.jit
def _attend(
    peak, total, out, q, k, v, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Take some keys into the softmax of a tile of queries."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        scores = tl.dot(q, tl.trans(k))
        scores = _pairs(scores, bias, mask, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        if EDGE:
            scores = tl.where((columns < TOKENS)[None, :], scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1))
        shift = top
        if HAS_BIAS or HAS_MASK:  # all keys so far may be hidden
            shift = tl.where(top == float("-inf"), 0.0, top)
        powers = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(peak - shift)
        out = tl.dot(powers.to(v.dtype), v, out * fade[:, None])
        total = total * fade + tl.sum(powers, 1)
        peak = top
    return peak, total, out


@triton.jit
def _d_query(
    d_q, q, g, k, v, peak, delta, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, EDGE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what some keys give to the gradient of a tile of queries, but for the scale."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        scores = tl.dot(q, tl.trans(k))
        scores = _pairs(scores, bias, mask, rows[:, None], columns[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(scores - peak[:, None])
        if EDGE:
            p = tl.where((columns < TOKENS)[None, :], p, 0.0)
        d_p = tl.dot(g, tl.trans(v))
        d_q = tl.dot((p * (d_p - delta[:, None])).to(k.dtype), k, d_q)
    return d_q


@triton.jit
def _d_key(
    d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, start, scale,
    SIZE: tl.constexpr, TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what some queries, the columns, give to the gradients of a tile of keys (but for the scale) and values."""
    if SIZE > 0:
        columns = start + tl.arange(0, SIZE)
        peak = _load_row(lse, columns, TOKENS) * 1.4426950408889634
        scores = tl.dot(k, tl.trans(q))
        scores = _pairs(scores, bias, mask, columns[None, :], rows[:, None], scale, TOKENS, HAS_BIAS, HAS_MASK)
        p = tl.exp2(scores - peak[None, :])
        d_v = tl.dot(p.to(g.dtype), g, d_v)
        d_p = tl.dot(v, tl.trans(g)) - _load_row(delta, columns, TOKENS)[None, :]
        d_k = tl.dot((p * d_p).to(q.dtype), q, d_k)
    return d_k, d_v


@triton.jit
def _finish(o, lse, peak, total, out, rows, heads, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    _store(o, out / total[:, None], rows, heads * D, TOKENS, D, WIDTH)
    tl.store(lse + rows, (peak + tl.log2(total)) * 0.6931471805599453, mask=rows < TOKENS)


# Window: one tile holds a sequence; a program goes through the same head of GROUP frames.


@triton.jit
def _softmax(
    q, k, bias, mask, frame, rows, windows, scale,
    TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    scores = tl.dot(q, tl.trans(k))
    scores = _pairs(scores, bias, mask, rows[:, None], rows[None, :], scale, TOKENS, HAS_BIAS, HAS_MASK)
    scores = tl.where((rows < TOKENS)[None, :], scores, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def window_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = (tl.program_id(0) // heads).to(tl.int64) * GROUP
    rows = tl.arange(0, ROWS)
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    for index in range(GROUP):
        frame = tl.minimum(first + index, frames - 1)  # the last one again, where GROUP does not divide them
        q_head = qkv + frame * s_f + head * s_h
        k_head = q_head + s_3
        v_head = k_head + s_3
        q = _load(q_head, rows, s_n, TOKENS, D, WIDTH)
        k = _load(k_head, rows, s_n, TOKENS, D, WIDTH)
        v = _load(v_head, rows, s_n, TOKENS, D, WIDTH)
        p = _softmax(q, k, bias, mask, frame, rows, windows, scale, TOKENS, HAS_BIAS, HAS_MASK)
        out = tl.dot(p.to(v.dtype), v)
        _store(o + (frame * TOKENS * heads + head) * D, out, rows, heads * D, TOKENS, D, WIDTH)


@triton.jit
def window_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = (tl.program_id(0) // heads).to(tl.int64) * GROUP
    rows = tl.arange(0, ROWS)
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    for index in range(GROUP):
        frame = tl.minimum(first + index, frames - 1)  # the last one again, where GROUP does not divide them
        q_head = qkv + frame * s_f + head * s_h
        k_head = q_head + s_3
        v_head = k_head + s_3
        q = _load(q_head, rows, s_n, TOKENS, D, WIDTH)
        k = _load(k_head, rows, s_n, TOKENS, D, WIDTH)
        v = _load(v_head, rows, s_n, TOKENS, D, WIDTH)
        g = _load(d_out + frame * g_f + head * g_h, rows, g_n, TOKENS, D, WIDTH)
        into = d_qkv + (frame * TOKENS * 3 * heads + head) * D
        # Queries beyond the tokens count for nothing: the gradient of what they got is zero.
        p = _softmax(q, k, bias, mask, frame, rows, windows, scale, TOKENS, HAS_BIAS, HAS_MASK)
        d_v = tl.dot(tl.trans(p.to(g.dtype)), g)
        _store(into + 2 * heads * D, d_v, rows, 3 * heads * D, TOKENS, D, WIDTH)
        d_p = tl.dot(g, tl.trans(v))
        d_s = (p * (d_p - tl.sum(p * d_p, 1)[:, None])).to(k.dtype)
        d_q = tl.dot(d_s, k) * scale
        _store(into, d_q, rows, 3 * heads * D, TOKENS, D, WIDTH)
        d_k = tl.dot(tl.trans(d_s), q) * scale
        _store(into + heads * D, d_k, rows, 3 * heads * D, TOKENS, D, WIDTH)


# Resident: a program holds one side of a head in pieces of P0 to P4 rows and walks over the tiles of the other side.


@triton.jit
def _piece(x, y, x_n, y_n, start, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Load the same rows of two tensors; of a piece that is not there, nothing is used."""
    rows = start + tl.arange(0, SIZE if SIZE > 0 else 16)
    return _load(x, rows, x_n, TOKENS, D, WIDTH), _load(y, rows, y_n, TOKENS, D, WIDTH)


@triton.jit
def resident_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, P4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads).to(tl.int64)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    o += (frame * TOKENS * heads + head) * D
    lse += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    S1: tl.constexpr = P0
    S2: tl.constexpr = S1 + P1
    S3: tl.constexpr = S2 + P2
    S4: tl.constexpr = S3 + P3
    END: tl.constexpr = S4 + P4
    k0, v0 = _piece(k_head, v_head, s_n, s_n, 0, P0, TOKENS, D, WIDTH)
    k1, v1 = _piece(k_head, v_head, s_n, s_n, S1, P1, TOKENS, D, WIDTH)
    k2, v2 = _piece(k_head, v_head, s_n, s_n, S2, P2, TOKENS, D, WIDTH)
    k3, v3 = _piece(k_head, v_head, s_n, s_n, S3, P3, TOKENS, D, WIDTH)
    k4, v4 = _piece(k_head, v_head, s_n, s_n, S4, P4, TOKENS, D, WIDTH)
    for first in range(0, TOKENS, ROWS):
        rows = first + tl.arange(0, ROWS)
        q = _load(q_head, rows, s_n, TOKENS, D, WIDTH)
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        out = tl.zeros((ROWS, WIDTH), tl.float32)
        peak, total, out = _attend(
            peak, total, out, q, k0, v0, bias, mask, rows, 0, scale,
            P0, S1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend(
            peak, total, out, q, k1, v1, bias, mask, rows, S1, scale,
            P1, S2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend(
            peak, total, out, q, k2, v2, bias, mask, rows, S2, scale,
            P2, S3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend(
            peak, total, out, q, k3, v3, bias, mask, rows, S3, scale,
            P3, S4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        peak, total, out = _attend(
            peak, total, out, q, k4, v4, bias, mask, rows, S4, scale,
            P4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        _finish(o, lse, peak, total, out, rows, heads, TOKENS, D, WIDTH)


@triton.jit
def _save_delta(
    delta, o, g, start, stride, SIZE: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):
    if SIZE > 0:
        rows = start + tl.arange(0, SIZE)
        tl.store(delta + rows, _delta(o, g, rows, stride, TOKENS, D, WIDTH), mask=rows < TOKENS)


@triton.jit
def resident_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, P4: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // 2).to(tl.int64)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    g_head = d_out + frame * g_f + head * g_h
    o += (frame * TOKENS * heads + head) * D
    into = d_qkv + (frame * TOKENS * 3 * heads + head) * D
    lse += (frame * heads + head) * TOKENS
    delta += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    S1: tl.constexpr = P0
    S2: tl.constexpr = S1 + P1
    S3: tl.constexpr = S2 + P2
    S4: tl.constexpr = S3 + P3
    END: tl.constexpr = S4 + P4
    # Neighbouring programs make the gradients of keys and values, and of queries: they read the same.
    if tl.program_id(0) // heads % 2 == 0:
        q0, g0 = _piece(q_head, g_head, s_n, g_n, 0, P0, TOKENS, D, WIDTH)
        q1, g1 = _piece(q_head, g_head, s_n, g_n, S1, P1, TOKENS, D, WIDTH)
        q2, g2 = _piece(q_head, g_head, s_n, g_n, S2, P2, TOKENS, D, WIDTH)
        q3, g3 = _piece(q_head, g_head, s_n, g_n, S3, P3, TOKENS, D, WIDTH)
        q4, g4 = _piece(q_head, g_head, s_n, g_n, S4, P4, TOKENS, D, WIDTH)
        # Through memory, which only this program reads: kept in registers, too many would be taken for good.
        _save_delta(delta, o, g0, 0, heads * D, P0, TOKENS, D, WIDTH)
        _save_delta(delta, o, g1, S1, heads * D, P1, TOKENS, D, WIDTH)
        _save_delta(delta, o, g2, S2, heads * D, P2, TOKENS, D, WIDTH)
        _save_delta(delta, o, g3, S3, heads * D, P3, TOKENS, D, WIDTH)
        _save_delta(delta, o, g4, S4, heads * D, P4, TOKENS, D, WIDTH)
        tl.debug_barrier()
        for first in range(0, TOKENS, ROWS):
            rows = first + tl.arange(0, ROWS)
            k, v = _piece(k_head, v_head, s_n, s_n, first, ROWS, TOKENS, D, WIDTH)
            d_k = tl.zeros((ROWS, WIDTH), tl.float32)
            d_v = tl.zeros((ROWS, WIDTH), tl.float32)
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q0, g0, lse, delta, bias, mask, rows, 0, scale,
                P0, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q1, g1, lse, delta, bias, mask, rows, S1, scale,
                P1, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q2, g2, lse, delta, bias, mask, rows, S2, scale,
                P2, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q3, g3, lse, delta, bias, mask, rows, S3, scale,
                P3, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q4, g4, lse, delta, bias, mask, rows, S4, scale,
                P4, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            _store(into + heads * D, d_k * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
            _store(into + 2 * heads * D, d_v, rows, 3 * heads * D, TOKENS, D, WIDTH)
    else:
        k0, v0 = _piece(k_head, v_head, s_n, s_n, 0, P0, TOKENS, D, WIDTH)
        k1, v1 = _piece(k_head, v_head, s_n, s_n, S1, P1, TOKENS, D, WIDTH)
        k2, v2 = _piece(k_head, v_head, s_n, s_n, S2, P2, TOKENS, D, WIDTH)
        k3, v3 = _piece(k_head, v_head, s_n, s_n, S3, P3, TOKENS, D, WIDTH)
        k4, v4 = _piece(k_head, v_head, s_n, s_n, S4, P4, TOKENS, D, WIDTH)
        for first in range(0, TOKENS, ROWS):
            rows = first + tl.arange(0, ROWS)
            q, g = _piece(q_head, g_head, s_n, g_n, first, ROWS, TOKENS, D, WIDTH)
            own = _delta(o, g, rows, heads * D, TOKENS, D, WIDTH)
            peak = _load_row(lse, rows, TOKENS) * 1.4426950408889634
            d_q = tl.zeros((ROWS, WIDTH), tl.float32)
            d_q = _d_query(
                d_q, q, g, k0, v0, peak, own, bias, mask, rows, 0, scale,
                P0, S1 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = _d_query(
                d_q, q, g, k1, v1, peak, own, bias, mask, rows, S1, scale,
                P1, S2 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = _d_query(
                d_q, q, g, k2, v2, peak, own, bias, mask, rows, S2, scale,
                P2, S3 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = _d_query(
                d_q, q, g, k3, v3, peak, own, bias, mask, rows, S3, scale,
                P3, S4 > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            d_q = _d_query(
                d_q, q, g, k4, v4, peak, own, bias, mask, rows, S4, scale,
                P4, END > TOKENS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
            _store(into, d_q * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)


# Streaming: a program owns one tile and walks over the other side, in blocks of COLUMNS rows and a smaller REST.


@triton.jit
def streaming_forward(
    qkv, o, lse, bias, mask, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    FULL: tl.constexpr = TOKENS // COLUMNS * COLUMNS
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // TILES).to(tl.int64)
    rows = tl.program_id(0) // heads % TILES * ROWS + tl.arange(0, ROWS)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    q = _load(q_head, rows, s_n, TOKENS, D, WIDTH)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, FULL, COLUMNS):
        k, v = _piece(k_head, v_head, s_n, s_n, start, COLUMNS, TOKENS, D, WIDTH)
        peak, total, out = _attend(
            peak, total, out, q, k, v, bias, mask, rows, start, scale,
            COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
    k, v = _piece(k_head, v_head, s_n, s_n, FULL, REST, TOKENS, D, WIDTH)
    peak, total, out = _attend(
        peak, total, out, q, k, v, bias, mask, rows, FULL, scale,
        REST, True, TOKENS, HAS_BIAS, HAS_MASK,
    )  # fmt: skip
    o += (frame * TOKENS * heads + head) * D
    _finish(o, lse + (frame * heads + head) * TOKENS, peak, total, out, rows, heads, TOKENS, D, WIDTH)


@triton.jit
def streaming_backward(
    d_out, qkv, o, lse, delta, bias, mask, d_qkv, g_f, g_n, g_h, s_f, s_n, s_3, s_h, frames, heads, windows, scale,
    OF_KEYS: tl.constexpr,
    TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, REST: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    FULL: tl.constexpr = TOKENS // COLUMNS * COLUMNS
    head = (tl.program_id(0) % heads).to(tl.int64)
    frame = (tl.program_id(0) // heads // TILES).to(tl.int64)
    first = tl.program_id(0) // heads % TILES * ROWS
    rows = first + tl.arange(0, ROWS)
    q_head = qkv + frame * s_f + head * s_h
    k_head = q_head + s_3
    v_head = k_head + s_3  # no multiple of a stride, which may pass 32 bits
    g_head = d_out + frame * g_f + head * g_h
    into = d_qkv + (frame * TOKENS * 3 * heads + head) * D
    lse += (frame * heads + head) * TOKENS
    delta += (frame * heads + head) * TOKENS
    if HAS_BIAS:
        bias += head * TOKENS * TOKENS
    if HAS_MASK:
        mask += (frame % windows) * TOKENS * TOKENS
    if OF_KEYS:
        k, v = _piece(k_head, v_head, s_n, s_n, first, ROWS, TOKENS, D, WIDTH)
        d_k = tl.zeros((ROWS, WIDTH), tl.float32)
        d_v = tl.zeros((ROWS, WIDTH), tl.float32)
        for start in range(0, FULL, COLUMNS):
            q, g = _piece(q_head, g_head, s_n, g_n, start, COLUMNS, TOKENS, D, WIDTH)
            d_k, d_v = _d_key(
                d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, start, scale,
                COLUMNS, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        q, g = _piece(q_head, g_head, s_n, g_n, FULL, REST, TOKENS, D, WIDTH)
        d_k, d_v = _d_key(
            d_k, d_v, k, v, q, g, lse, delta, bias, mask, rows, FULL, scale,
            REST, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        _store(into + heads * D, d_k * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
        _store(into + 2 * heads * D, d_v, rows, 3 * heads * D, TOKENS, D, WIDTH)
    else:
        q, g = _piece(q_head, g_head, s_n, g_n, first, ROWS, TOKENS, D, WIDTH)
        own = _delta(o + (frame * TOKENS * heads + head) * D, g, rows, heads * D, TOKENS, D, WIDTH)
        tl.store(delta + rows, own, mask=rows < TOKENS)
        peak = _load_row(lse, rows, TOKENS) * 1.4426950408889634
        d_q = tl.zeros((ROWS, WIDTH), tl.float32)
        for start in range(0, FULL, COLUMNS):
            k, v = _piece(k_head, v_head, s_n, s_n, start, COLUMNS, TOKENS, D, WIDTH)
            d_q = _d_query(
                d_q, q, g, k, v, peak, own, bias, mask, rows, start, scale,
                COLUMNS, False, TOKENS, HAS_BIAS, HAS_MASK,
            )  # fmt: skip
        k, v = _piece(k_head, v_head, s_n, s_n, FULL, REST, TOKENS, D, WIDTH)
        d_q = _d_query(
            d_q, q, g, k, v, peak, own, bias, mask, rows, FULL, scale,
            REST, True, TOKENS, HAS_BIAS, HAS_MASK,
        )  # fmt: skip
        _store(into, d_q * scale, rows, 3 * heads * D, TOKENS, D, WIDTH)
