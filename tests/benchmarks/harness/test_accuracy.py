"""Hold the check against float64 to what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import TOLERANCE, check_errors, relative_error


def test_an_error_is_relative_to_the_norm() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_more_than_rounding_is_refused(dtype: str) -> None:
    limit = TOLERANCE[dtype]
    check_errors([0.0, limit], dtype)
    for worst in (1.01 * limit, float("nan")):
        with pytest.raises(ArithmeticError, match="relative errors against float64"):
            check_errors([0.0, worst], dtype)
