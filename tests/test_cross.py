"""Kernels at levels that the CPU of the tests may lack: Arm under qemu, x86 by replaced instructions.

C++ programs (native/*_levels.cpp) compare every level with the scalar kernel bit for bit, patches of images also with
a plain convolution (native/patches.h), sparse fp32 sums with a chain of fused multiply-adds. Their digests of all
outputs must not depend on the architecture.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycompress import kernels

_native = pytest.importorskip("pycompress._native")

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
CROSS = "aarch64-linux-gnu-g++"
ARM_LEVELS = {
    "cortex-a53": ["scalar", "neon"],
    "cortex-a76": ["scalar", "neon", "neondot"],
    "max": ["scalar", "neon", "neondot", "i8mm"],
}

STAND_INS = {"avxvnni": "avx512vnni", "amx": "avx512icl"}  # level: where its replacement runs


def need(request, levels, *programs):
    """Skip where a program is missing, or fail where one of the levels is required."""
    for program in programs:
        if shutil.which(program) is None:
            required = set(levels) & set(request.config.getoption("--require-backend"))
            (pytest.fail if required else pytest.skip)(f"{program} is not installed")


def compile_all(compiler, sources, folder, *flags):
    """Object files of sources, which all programs of a machine are linked from."""

    def compile_one(source):
        made = folder / source.replace("/", "_").replace(".cpp", ".o")
        done = subprocess.run(
            [compiler, *FLAGS, *flags, "-c", source, "-o", made], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert "warning" not in done.stderr, done.stderr[-4000:]
        return str(made)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def link(compiler, program, folder, objects, *flags):
    [main] = compile_all(compiler, [f"tests/native/{program}.cpp"], folder, *flags)
    subprocess.run([compiler, *flags, main, *objects, "-pthread", "-o", folder / program], cwd=ROOT, check=True)
    return folder / program


def run(*command):
    """The levels that were compared, the number of problems, and the digest."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    levels, counts, digest = done.stdout.splitlines()[-3:]
    return levels.split()[1:], int(counts.split()[1].rstrip(",")), digest


def kernel_sources():
    operations = ("int8_linear", "int8_rnn", "codebook_linear", "binary_linear", "sparse_linear", "bf16_linear")
    operations += ("sparse_conv",)
    folders = ("csrc", *(f"csrc/{operation}" for operation in operations))
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in ROOT.glob(f"{folder}/*.cpp"))


OPERATIONS = {
    "int8_levels": "int8_linear",
    "rnn_levels": "int8_rnn",
    "codebook_levels": "codebook_linear",
    "binary_levels": "binary_linear",
    "sparse_levels": "sparse_linear",
    "bf16_levels": "bf16_linear",
    "sparse_conv_levels": "sparse_conv",
}
ENOUGH = {"int8_levels": 830, "rnn_levels": 290, "codebook_levels": 290, "binary_levels": 290}
ENOUGH |= {"sparse_levels": 500, "bf16_levels": 500, "sparse_conv_levels": 520}
# Of the argument: problems for each number of rows, or in all.
SCALE = {"int8_levels": 1, "rnn_levels": 23, "codebook_levels": 23, "binary_levels": 23}
SCALE |= {"sparse_levels": 1, "bf16_levels": 1, "sparse_conv_levels": 40}
# Levels of Arm that run the version of neon.
WITHOUT = dict.fromkeys(("binary_levels", "sparse_levels", "bf16_levels", "sparse_conv_levels"), ("neondot", "i8mm"))


@pytest.fixture(scope="module", params=OPERATIONS)
def program(request):
    return request.param


EMULATED = ["-include", "tests/native/emulated.h"] if platform.machine() == "x86_64" else []


@pytest.fixture(scope="module")
def objects_here(tmp_path_factory):
    """The kernels for this machine, with replacements for instructions that it may lack."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return compile_all("g++", kernel_sources(), tmp_path_factory.mktemp("here"), *EMULATED)


@pytest.fixture(scope="module")
def objects_arm(request, tmp_path_factory):
    """Everything of csrc that needs no Python in it, for Arm: all of it must compile."""
    need(request, ARM_LEVELS["max"], CROSS, "qemu-aarch64")
    sources = [path for path in ROOT.glob("csrc/**/*.cpp") if path.parent.name != "bind"]
    relative = sorted(str(path.relative_to(ROOT)) for path in sources)
    return compile_all(CROSS, relative, tmp_path_factory.mktemp("arm"))


@pytest.fixture(scope="module")
def here(program, objects_here, tmp_path_factory):
    return link("g++", program, tmp_path_factory.mktemp("here"), objects_here, *EMULATED)


@pytest.fixture(scope="module")
def arm(program, objects_arm, tmp_path_factory):
    return link(CROSS, program, tmp_path_factory.mktemp("arm"), objects_arm, "-static")


def test_every_level_of_this_machine(here, program):
    levels, problems, _ = run(here, 20 * SCALE[program])
    assert problems >= ENOUGH[program]
    present = set(kernels.isa_levels()) & set(_native.kernels()[OPERATIONS[program]])
    assert present <= set(levels)
    for level, stand_in in STAND_INS.items():
        if level not in _native.kernels()[OPERATIONS[program]]:
            continue
        assert stand_in not in present or level in levels


@pytest.mark.parametrize("cpu", ARM_LEVELS)
def test_arm_levels_give_the_bits_of_this_machine(here, arm, program, cpu):
    each = (13 if cpu == "max" else 3) * SCALE[program]
    levels, problems, digest = run("qemu-aarch64", "-cpu", cpu, arm, each)
    assert levels == [level for level in ARM_LEVELS[cpu] if level not in WITHOUT.get(program, ())]
    assert (problems, digest) == run(here, each)[1:]
    if cpu == "max":
        assert problems >= ENOUGH[program]
