"""Options and fixtures of the tests."""

import os

import cases
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--require-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="fail instead of skipping where this backend or level (numba, native, avx2, ...) is missing",
    )


def pytest_configure(config):
    known = {part for implementation in cases.implementations() for part in implementation.split("/")}
    for name in config.getoption("--require-backend"):
        if name not in known:
            raise pytest.UsageError(f"--require-backend must name one of {sorted(known)}, got {name!r}")


def pytest_collection_modifyitems(config, items):
    if "soak" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="runs with -m soak"))


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
