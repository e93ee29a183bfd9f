"""int8_linear at levels that the CPU of the tests may lack: Arm under qemu, x86 by replaced instructions.

A C++ program (native/int8_levels.cpp) compares every level with the scalar kernel bit for bit. Its digest of all
outputs must not depend on the architecture.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pycompress import kernels

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
CROSS = "aarch64-linux-gnu-g++"
ARM_LEVELS = {
    "cortex-a53": ["scalar", "neon"],
    "cortex-a76": ["scalar", "neon", "neondot"],
    "max": ["scalar", "neon", "neondot", "i8mm"],
}

STAND_INS = {"avxvnni": "avx512vnni", "amx": "avx512vnni"}  # level: where its replacement runs


def need(request, levels, *programs):
    """Skip where a program is missing, or fail where one of the levels is required."""
    for program in programs:
        if shutil.which(program) is None:
            required = set(levels) & set(request.config.getoption("--require-backend"))
            (pytest.fail if required else pytest.skip)(f"{program} is not installed")


def build(compiler, program, sources, *flags):
    command = [compiler, *FLAGS, *flags, "tests/native/int8_levels.cpp", *sources, "-pthread", "-o", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr, done.stderr[-4000:]
    return program


def run(*command):
    """The levels that were compared, the number of problems, and the digest."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    levels, counts, digest = done.stdout.splitlines()[-3:]
    return levels.split()[1:], int(counts.split()[1].rstrip(",")), digest


def kernel_sources():
    return sorted(map(str, [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/int8_linear/*.cpp")]))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The program for this machine, with replacements for instructions that it may lack."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    emulated = ["-include", "tests/native/emulated.h"] if platform.machine() == "x86_64" else []
    return build("g++", tmp_path_factory.mktemp("here") / "int8_levels", kernel_sources(), *emulated)


@pytest.fixture(scope="module")
def arm(request, tmp_path_factory):
    """The program for Arm, with everything of csrc that needs no Python in it: all of it must compile."""
    need(request, ARM_LEVELS["max"], CROSS, "qemu-aarch64")
    sources = [path for path in ROOT.glob("csrc/**/*.cpp") if path.parent.name != "bind"]
    return build(CROSS, tmp_path_factory.mktemp("arm") / "int8_levels", sorted(map(str, sources)), "-static")


def test_every_level_of_this_machine(here):
    levels, problems, _ = run(here, 20)
    assert problems >= 500
    present = set(kernels.isa_levels())
    assert present <= set(levels)
    for level, stand_in in STAND_INS.items():
        assert stand_in not in present or level in levels


@pytest.mark.parametrize("cpu", ARM_LEVELS)
def test_arm_levels_give_the_bits_of_this_machine(here, arm, cpu):
    each = 13 if cpu == "max" else 3
    levels, problems, digest = run("qemu-aarch64", "-cpu", cpu, arm, each)
    assert levels == ARM_LEVELS[cpu]
    assert (problems, digest) == run(here, each)[1:]
    if cpu == "max":
        assert problems >= 500
