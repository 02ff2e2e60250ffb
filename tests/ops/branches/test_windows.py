"""Windows by position are those that Swin makes by rolling and cutting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from aim_adapters.ops.branches import tile
from aim_adapters.ops.branches import windows as module

CPU = torch.device("cpu")
SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(SIDES, SIDES, st.data())
def test_windows_are_those_of_a_rolled_frame(
    size: tuple[int, int], number: tuple[int, int], data: st.DataObject
) -> None:
    height, width = size[0] * number[0], size[1] * number[1]
    shift = tuple(data.draw(st.integers(0, side - 1)) for side in size)
    by = [0 if n == 1 else s for n, s in zip(number, shift, strict=True)]  # one window along a side is not shifted
    index, mask = tile(height, width, size, shift, CPU)  # type: ignore[arg-type]
    assert index.dtype == torch.int32
    assert index.shape == (number[0] * number[1], size[0] * size[1])
    places = [divmod(token, width) for window in index.tolist() for token in window]
    expected = [
        ((i * size[0] + a + by[0]) % height, (j * size[1] + b + by[1]) % width)
        for i in range(number[0])
        for j in range(number[1])
        for a in range(size[0])
        for b in range(size[1])
    ]
    assert places == expected
    if not any(by):
        assert mask is None
        return
    assert mask is not None
    for window, added in zip(index.tolist(), mask, strict=True):
        # Tokens that the roll brought in from the other side are no neighbors of those that were there.
        part = [(token // width < by[0], token % width < by[1]) for token in window]
        assert [[-100.0 if one != other else 0.0 for other in part] for one in part] == added.tolist()


def test_made_once_and_fit_for_training_wherever_they_were_made() -> None:
    module._tile_once.cache_clear()
    with torch.inference_mode():
        first = tile(4, 6, (2, 3), (1, 1), CPU)
    again = tile(4, 6, (2, 3), (1, 1), CPU)
    assert all(one is other for one, other in zip(first, again, strict=True))
    weight = torch.ones(2, requires_grad=True)
    for each in again:
        assert each is not None and not each.is_inference()
        (weight.sum() * each).sum().backward()  # kept for the backward pass


def test_tensors_without_memory_are_not_kept() -> None:
    module._tile_once.cache_clear()
    with FakeTensorMode():
        tile(4, 6, (2, 3), (1, 1), CPU)
    assert all(type(each) is torch.Tensor for each in tile(4, 6, (2, 3), (1, 1), CPU))


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_compiled_equals_eager(shift: tuple[int, int]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(tile, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(4, 6, (2, 3), shift, CPU), tile(4, 6, (2, 3), shift, CPU), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
