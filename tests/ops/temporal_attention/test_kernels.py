"""The kernels compile for every kind of GPU, which needs none of them, and their tiles are chosen to be filled."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")  # whose compiler takes its arguments otherwise
kernels = pytest.importorskip("aim_adapters.ops.temporal_attention.kernels")

COMPILE = """
import torch
torch.version.hip = {hip!r}
from triton import next_power_of_2
from triton.compiler import ASTSource, compile
from triton.backends.compiler import GPUTarget
from aim_adapters.ops.temporal_attention import kernels, tiles, triton

def check(target, frames, dim, dtype, biased):
    q = torch.empty(frames, 1, 2, dim, dtype=dtype)
    _, constants = triton._grid_and_constants(q, q, q if biased else None, frames, tiles=1)
    constants |= {{"BLOCK_ROWS": tiles.smallest_tile(frames), "BLOCK_FRAMES": max(16, next_power_of_2(frames))}}
    constants |= {{"BIAS_DOT_PRECISION": triton._EXACT, "TILES": 8 if biased else 1}}
    pointer = {{2: "*bf16", 4: "*fp32"}}[dtype.itemsize]
    names = ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "d_out_ptr", "d_q_ptr", "d_k_ptr", "d_v_ptr")
    kinds = dict.fromkeys(names, pointer)
    kinds |= {{"scale": "fp32", "bias_ptr": "*fp32", "d_bias_ptr": "*fp32"}}
    if not biased:
        constants |= {{"bias_ptr": None, "d_bias_ptr": None}}
    kinds |= dict.fromkeys(constants, "constexpr")
    promised = tiles.shared_memory(frames, dim, dtype.itemsize)
    for kernel in (kernels.forward_kernel, kernels.backward_kernel):
        names = kernel.arg_names
        signature = {{name: kinds.get(name, "i32") for name in names}}
        given = {{(i,): constants[name] for i, name in enumerate(names) if name in constants}}
        options = {{"num_warps": 1 if constants["BLOCK_ROWS"] == 32 else 4, "num_stages": 1}}
        taken = compile(ASTSource(kernel, signature, given), target=GPUTarget(*target), options=options).metadata.shared
        assert taken <= promised, f"{{kernel.__name__}} takes {{taken}} bytes, promised are {{promised}}"

for case in {cases}:
    print(case, flush=True)
    check(*case)
"""
CUDA = """[
    (("cuda", 80, 32), 8, 64, torch.bfloat16, False),
    (("cuda", 89, 32), 64, 16, torch.bfloat16, True),
    (("cuda", 90, 32), 32, 80, torch.bfloat16, False),
    (("cuda", 90, 32), 64, 128, torch.bfloat16, True),
    (("cuda", 90, 32), 8, 32, torch.float32, True),
]"""
HIP = """[
    (("hip", "gfx90a", 64), 8, 64, torch.bfloat16, False),
    (("hip", "gfx942", 64), 8, 32, torch.float32, True),
]"""


CONFIGS = [
    SimpleNamespace(kwargs={"BLOCK_ROWS": rows}, num_warps=warps)
    for rows, warps in ((32, 1), (32, 2), (64, 4), (128, 4), (128, 8))
]


@pytest.mark.parametrize(("hip", "cases"), [(None, CUDA), ("6.4", HIP)], ids=["cuda", "hip"])
def test_compiles_within_the_shared_memory_that_the_table_counts_with(hip: str | None, cases: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = COMPILE.format(hip=hip, cases=cases)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("frames", "dim", "dtype", "biased", "tiles"),
    [
        (8, 64, torch.bfloat16, False, [(32, 1), (64, 4)]),
        (8, 80, torch.bfloat16, False, [(32, 1), (32, 2), (64, 4)]),
        (24, 64, torch.bfloat16, False, [(32, 1), (64, 4)]),  # a quarter of both is empty; of the largest, less
        (18, 64, torch.float16, False, [(64, 4)]),
        (100, 64, torch.bfloat16, False, [(128, 4), (128, 8)]),
        (8, 64, torch.bfloat16, True, [(32, 1)]),
        (8, 32, torch.float32, False, [(32, 1)]),
        (8, 64, torch.float32, False, [(32, 1), (32, 2)]),
    ],
)
def test_tiles_that_are_tried(
    frames: int, dim: int, dtype: torch.dtype, biased: bool, tiles: list[tuple[int, int]]
) -> None:
    tensors = {"q_ptr": torch.empty(1, dtype=dtype)}
    fitting = kernels._fitting(CONFIGS, tensors, FRAMES=frames, HEAD_DIM=dim, HAS_BIAS=biased)
    assert [(config.kwargs["BLOCK_ROWS"], config.num_warps) for config in fitting] == tiles


def test_some_tile_is_tried_for_every_number_of_frames() -> None:
    tensors = {"q_ptr": torch.empty(1, dtype=torch.bfloat16)}
    for frames in range(1, 129):
        assert kernels._fitting(CONFIGS, tensors, FRAMES=frames, HEAD_DIM=64, HAS_BIAS=False)
