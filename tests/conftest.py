"""Options and fixtures of the tests."""

import os
import signal
import sys
from pathlib import Path

import cases
import pytest

import pycompress


def pytest_addoption(parser):
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="fail instead of skipping where this backend or level (numba, native, avx2, ...) is missing",
    )


def pytest_configure(config):
    # Processes that tests start must import the package that is tested, not a source tree that they happen to stand in.
    here = [Path(pycompress.__file__).parent.parent, Path(__file__).parent]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, here))
    os.environ["PYTHONSAFEPATH"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts the tests in the background
    known = {part for implementation in cases.implementations() for part in implementation.split("/")}
    known |= {"neon", "neondot", "i8mm"}  # in test_cross.py, under qemu
    for name in config.getoption("--require-backend"):
        if name not in known:
            raise pytest.UsageError(f"--require-backend must name one of {sorted(known)}, got {name!r}")


def pytest_collection_modifyitems(config, items):
    if "soak" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="runs with -m soak"))


@pytest.fixture(autouse=True)
def _no_layer_is_too_small(request, monkeypatch):
    """Models of tests are small: what quantize_dynamic leaves alone for its size is tested with the mark `sizes`."""
    if "torch" in sys.modules and not request.node.get_closest_marker("sizes"):
        monkeypatch.setattr("pycompress.dynamic.too_small", lambda layer: "")


@pytest.fixture(autouse=True, scope="session")
def _no_progress():
    os.environ.setdefault("PYCOMPRESS_PROGRESS", "0")


@pytest.fixture(params=cases.implementations())
def implementation(request):
    """Each implementation in turn, in use; one that cannot run here is skipped (or fails: --require-backend)."""
    reason = cases.missing(request.param)
    if reason:
        required = set(request.param.split("/")) & set(request.config.getoption("--require-backend"))
        (pytest.fail if required else pytest.skip)(reason)
    with cases.using(request.param):
        yield request.param
