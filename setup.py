"""Builds the extension; everything else stands in pyproject.toml.

PYCOMPRESS_NO_NATIVE=1 leaves the extension out (the package then runs on Numba or NumPy). A compile error fails the
install. PYCOMPRESS_SANITIZE=address,undefined (or thread) builds for the sanitizers.
"""

import os
from glob import glob

from setuptools import setup

extensions = []
commands = {}
if os.environ.get("PYCOMPRESS_NO_NATIVE", "0") in ("", "0"):
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext

    ParallelCompile("PYCOMPRESS_BUILD_JOBS").install()
    flags = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-uninitialized"]
    flags += ["-Wno-maybe-uninitialized"]  # GCC 12 reports its own AVX-512 headers
    link = ["-pthread"]
    sanitizers = os.environ.get("PYCOMPRESS_SANITIZE")
    if sanitizers:
        flags += [f"-fsanitize={sanitizers}", "-g", "-O1", "-fno-omit-frame-pointer"]
        link += [f"-fsanitize={sanitizers}"]
    extensions = [
        Pybind11Extension(
            "pycompress._native",
            sorted(glob("csrc/*.cpp") + glob("csrc/*/*.cpp")),
            depends=sorted(glob("csrc/*.h") + glob("csrc/*.def") + glob("csrc/*/*.h") + glob("csrc/*/*.inc")),
            cxx_std=17,
            extra_compile_args=flags,
            extra_link_args=link,
        )
    ]
    commands = {"build_ext": build_ext}

setup(ext_modules=extensions, cmdclass=commands)
