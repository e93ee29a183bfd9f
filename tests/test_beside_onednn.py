"""Our kernels and oneDNN take turns in the same threads; both configure the tiles of AMX, which are the thread's."""

import platform
import shutil
import subprocess
from pathlib import Path

import cases
import numpy as np
import pytest
import torch

from pycompress import kernels
from pycompress.formats import Int8

ROOT = Path(__file__).parent.parent

TILES = """
#include "csrc/isa.h"
PYCOMPRESS_BEGIN_AMX
using pycompress::TileConfig;
extern "C" __attribute__((noinline)) void ours(char* p, long s, const TileConfig* c) {
  PYCOMPRESS_TILES_CONFIGURE(*c);
  PYCOMPRESS_TILE_LOAD(6, p, s);
  PYCOMPRESS_TILE_LOAD_ONCE(4, p, s);
  PYCOMPRESS_TILE_ZERO(0);
  PYCOMPRESS_TILE_DOT(0, 4, 6);
  PYCOMPRESS_TILE_STORE(3, p, s);
  PYCOMPRESS_TILES_RELEASE();
}
extern "C" __attribute__((noinline)) void theirs(char* p, long s, const TileConfig* c) {
  _tile_loadconfig(c);
  _tile_loadd(6, p, s);
  _tile_stream_loadd(4, p, s);
  _tile_zero(0);
  _tile_dpbssd(0, 4, 6);
  _tile_stored(3, p, s);
  _tile_release();
}
PYCOMPRESS_END
"""


@pytest.mark.parametrize("level", ["avx512vnni", "amx"])
def test_taking_turns_with_torch_keeps_the_bits(request, level):
    reason = cases.missing(f"native/{level}")
    if reason:
        required = level in request.config.getoption("--require-backend")
        (pytest.fail if required else pytest.skip)(reason)
    rng = np.random.default_rng(5)
    weights = [rng.normal(size=(out, width)).astype(np.float32) for out, width in ((515, 300), (260, 515), (97, 260))]
    inputs = [rng.normal(size=(rows, 300)).astype(np.float32) for rows in (5, 33, 128)]
    with kernels.use_backend("native"), kernels.use_isa("scalar"):
        layers = [kernels.pack(weight, Int8()) for weight in weights]
        expected = [kernels.linear_chain(x, layers, ["relu", "gelu", None]) for x in inputs]
    a, b = torch.randn(256, 256).bfloat16(), torch.randn(256, 256).bfloat16()
    q = torch.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(256, 256)), {torch.nn.Linear})
    theirs, theirs_int8 = a @ b, q(a.float())
    with kernels.use_backend("native"), kernels.use_isa(level):
        layers = [kernels.pack(weight, Int8()) for weight in weights]
        assert all(layer.kernel == f"native/{level}" for layer in layers)
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            try:
                for _ in range(30):
                    for x, y in zip(inputs, expected, strict=True):
                        got = kernels.linear_chain(x, layers, ["relu", "gelu", None])
                        assert (cases.bits(got) == cases.bits(y)).all()
                        assert torch.equal(a @ b, theirs)
                        assert torch.equal(q(a.float()), theirs_int8)
            finally:
                kernels.set_num_threads(None)


def test_tile_macros_are_the_instructions_of_the_intrinsics(tmp_path):
    if platform.machine() != "x86_64":
        pytest.skip("AMX is an extension of x86-64")
    for program in ("g++", "objdump"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    (tmp_path / "tiles.cpp").write_text(TILES)
    build = ["g++", "-std=c++17", "-O2", "-I", ROOT, "-c", tmp_path / "tiles.cpp", "-o", tmp_path / "tiles.o"]
    subprocess.run(build, check=True)
    text = subprocess.run(["objdump", "-d", tmp_path / "tiles.o"], capture_output=True, text=True, check=True).stdout
    ours, theirs = (
        [line.split("\t")[1:] for line in part.splitlines() if "\tt" in line or "\tldtile" in line]
        for part in text.split("<theirs>:")
    )
    assert len(ours) == 7 and ours == theirs
