"""The kernels compile for the GPUs that they are for, within the shared memory that the table counts with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.3")  # whose compiler takes its arguments otherwise

COMPILE = """
import torch
from triton.compiler import ASTSource, compile
from triton.backends.compiler import GPUTarget
from aim_adapters.ops.spatial_attention import kernels, tiles, triton

# GPUs, alternatives of the table and sides meet in pairs: on each GPU an alternative is compiled for one side, in turns
# that begin otherwise on Hopper.
def check(of_keys, target, tokens, dim, added, backward):
    qkv = torch.empty(1, tokens, 3, 2, dim, dtype=torch.float16)
    extra = qkv if added else None
    for each in tiles.alternatives(tokens, dim, added=added, backward=backward):
        kernel = getattr(kernels, f"{each.kind}_{'backward' if backward else 'forward'}")
        index = torch.empty(1, tokens, dtype=torch.int32) if added and each.kind == "window" else None
        constants = triton._constants(qkv, extra, extra, index, each)
        if index is None and "index_ptr" in kernel.arg_names:
            constants["index_ptr"] = None
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        if not added:
            constants |= {"bias_ptr": None, "mask_ptr": None}
        if "OF_KEYS" in kernel.arg_names:
            constants["OF_KEYS"] = of_keys[0]
            of_keys.reverse()
        kinds = dict.fromkeys(("qkv_ptr", "out_ptr", "d_out_ptr", "d_qkv_ptr"), "*fp16")
        kinds |= dict.fromkeys(("lse_ptr", "delta_ptr", "bias_ptr", "mask_ptr"), "*fp32")
        kinds |= {"scale": "fp32", "index_ptr": "*i32"}
        kinds |= dict.fromkeys(constants, "constexpr")
        signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
        given = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
        sizes = ("num_frames", "num_heads", "num_windows", "scale")  # all others are multiples of 16, as in use
        aligned = [i for i, name in enumerate(kernel.arg_names) if name not in (*constants, *sizes)]
        source = ASTSource(kernel, signature, given, {(i,): [["tt.divisibility", 16]] for i in aligned})
        taken = compile(source, target=GPUTarget(*target), options=options).metadata.shared
        promised = tiles.shared_memory(each, tokens, dim, added=added)
        assert taken <= promised, f"{each} takes {taken} bytes, promised are {promised}"

for cases in CASES:
    on_hopper = cases[0][0][1] == 90
    of_keys = [on_hopper, not on_hopper]
    for case in cases:
        print(case, flush=True)
        check(of_keys, *case)
"""
AMPERE = """[
    (("cuda", 80, 32), 197, 64, False, False),
    (("cuda", 80, 32), 257, 64, False, True),
    (("cuda", 80, 32), 65, 32, True, True),
]"""
ADA_AND_HIP = """[
    (("cuda", 89, 32), 49, 32, True, True),
    (("cuda", 89, 32), 192, 64, True, True),
    (("hip", "gfx90a", 64), 49, 32, True, True),
    (("hip", "gfx942", 64), 197, 64, False, False),
]"""
HOPPER = """[
    (("cuda", 90, 32), 197, 64, False, True),
    (("cuda", 90, 32), 257, 80, True, False),
    (("cuda", 90, 32), 81, 64, True, True),
]"""


def test_compiles_within_the_shared_memory_that_the_table_counts_with() -> None:
    """All in one process, whose imports take longer than a few kernels; of a failure the last line names the case."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = COMPILE.replace("CASES", f"[{AMPERE}, {ADA_AND_HIP}, {HOPPER}]")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
