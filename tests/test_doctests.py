"""The examples in the docstrings run, under the backend in use; every public name has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import pycompress
from pycompress import kernels

ROOT = Path(pycompress.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)
PUBLIC = [f"pycompress.{name}" for name in pycompress._HOME]
PUBLIC += [f"pycompress.kernels.{name}" for name in kernels.__all__]


@pytest.mark.sizes
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:pycompress was installed without")
def test_examples_of(name, capsys, tmp_path, monkeypatch):
    if name == "pycompress.kernels.native" and "native" not in kernels.available_backends():
        pytest.skip("the native backend is not installed")
    if name == "pycompress.kernels.numba_cpu":
        pytest.importorskip("numba")
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not failed, capsys.readouterr().out


def find(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("dotted", PUBLIC)
def test_public_names_are_typed_and_documented_with_an_example(dotted):
    value = find(dotted)
    if not callable(value):
        return
    doc = inspect.getdoc(value) or ""
    assert ">>> " in doc, f"{dotted} needs an example in its docstring"
    function = value.__init__ if inspect.isclass(value) else value
    if inspect.isfunction(function):
        for parameter in list(inspect.signature(function).parameters.values())[inspect.isclass(value) :]:
            assert parameter.annotation is not parameter.empty, f"{dotted}({parameter.name}) needs a type"
