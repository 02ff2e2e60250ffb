"""Whether a GPU multiplies float8 is tried, as versions of PyTorch differ in it."""

from __future__ import annotations

import pytest
import torch

from aim_adapters.core import fp8


@pytest.mark.parametrize(
    ("capability", "error", "reason"),
    [
        ((8, 0), None, "compute capability 8.9 or more"),
        ((8, 9), "Rowwise scaling is not currently supported on your device\nfrom a file", "8.9; on Ada it needs 2.7"),
        ((8, 9), None, None),
        ((12, 0), "CUBLAS_STATUS_NOT_SUPPORTED", "12.0; on Ada it needs 2.7 and Linux: CUBLAS_STATUS_NOT_SUPPORTED"),
        ((9, 0), None, None),
    ],
)
def test_it_is_tried_where_it_may_work(
    capability: tuple[int, int], error: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(device: str) -> torch.Tensor:
        if error is not None:
            raise RuntimeError(error)
        return torch.empty(0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(fp8, "_multiply", multiply)
    monkeypatch.setattr(fp8, "_fp8_missing", [])
    found = fp8.fp8_missing()
    assert found is None if reason is None else reason in str(found)
    assert "from a file" not in str(found)
    assert fp8.fp8_missing() == found


def test_what_is_tried_is_a_product() -> None:
    assert torch.equal(fp8._multiply("cpu"), torch.full((16, 16), 16.0, dtype=torch.bfloat16))
