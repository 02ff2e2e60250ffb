"""How far a peer's numbers may be from float64: what is further computes something else and is not timed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-3}


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Return the error of a tensor relative to one of the same shape in float64, in the norm."""
    return float((got.double() - exact).norm() / exact.norm())


def check_errors(errors: Sequence[float], dtype: str) -> None:
    """Hold relative errors against what rounding to a dtype makes of them.

    Raises:
        ArithmeticError: One is more than rounding.
    """
    if not all(error <= TOLERANCE[dtype] for error in errors):  # which one that is no number fails too
        raise ArithmeticError(f"relative errors against float64 are {list(errors)}")
