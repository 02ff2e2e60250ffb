"""Hold the names of kernels to the parts of a step."""

from __future__ import annotations

import re

import pytest

from benchmarks.harness import PARTS, ROOT, Kernel, breakdown, part_of

LAUNCHED = re.compile(r"^@triton\.jit\ndef ([a-z]\w*_(?:kernel|forward|backward))\(", re.MULTILINE)
POINTWISE = {"add_kernel"}  # of no part
OPS = ROOT / "src" / "aim_adapters" / "ops"
FOLDERS = {
    "bottleneck": {"adapter"},
    "frozen": {"norms", "activation", "copies and casts"},
    "heads": {"norms"},
    "spatial_attention": {"spatial attention"},
    "temporal_attention": {"temporal attention"},
}


def part(name: str, grid: tuple[int, ...] = ()) -> str:
    return part_of(Kernel(name, 1.0, grid), sequences=32 * 197, heads=12)


def test_every_kernel_of_ours_has_its_part() -> None:
    found: dict[str, set[str]] = {}
    for path in OPS.rglob("*.py"):
        names = LAUNCHED.findall(path.read_text(encoding="utf-8"))
        if names:
            found.setdefault(path.relative_to(OPS).parts[0], set()).update(map(part, {*names} - POINTWISE))
    assert found == FOLDERS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>", "norms"),
        ("triton_per_fused__to_copy_add_native_layer_norm_3", "norms"),
        ("triton_poi_fused_addmm_gelu_view_5", "activation"),
        ("void at::native::elementwise_kernel<128, 2, direct_copy_kernel_cuda>", "copies and casts"),
        ("Memcpy DtoD (Device -> Device)", "copies and casts"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", "other"),
    ],
)
def test_kernels_of_libraries(name: str, expected: str) -> None:
    assert part(name) == expected


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ((1, 32 * 197, 12), "temporal attention"),
        ((32 * 197 * 12, 1, 1), "temporal attention"),
        ((2, 256, 12), "spatial attention"),
    ],
)
def test_attention_of_libraries_is_told_apart_by_its_grid(grid: tuple[int, ...], expected: str) -> None:
    assert part("void pytorch_flash::flash_fwd_kernel<cutlass::bfloat16_t>", grid) == expected


def test_a_breakdown_is_for_one_step() -> None:
    kernels = [Kernel("nvjet_a", 2.0, ()), Kernel("nvjet_b", 1.0, ()), Kernel("forward_kernel", 0.5, ())] * 2
    found = breakdown(kernels, steps=2, sequences=1, heads=1)
    assert list(found["seconds"]) == list(PARTS)
    assert {part: took for part, took in found["seconds"].items() if took} == {
        "matrix products": 3.0,
        "temporal attention": 0.5,
    }
    assert found["launches"] == 3
    assert [each["kernel"] for each in found["longest"]] == ["nvjet_a", "nvjet_b", "forward_kernel"]
