"""Imports only go down, and the kernels need NumPy alone."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pycompress"

# A module may import from the rows below its own, and from its own folder; modules of one row never import each other.
ROWS = [
    "cli",
    "demo",
    "report",
    "pipeline",
    "profiling",
    "validation prune quantize structure distill packing dynamic rescaling",
    "images substitutes calibration rounding",
    "artifact training scores fusing explaining choosing",
    "cells heads conv_formats",
    "recurrent convolutions chains folding embeddings attention encoders sizes",
    "layers linears recording observers",
    "breakeven",
    "masks grids changes data timing progress schedules rows torch_ops",
    "selection undo calls sequences activations int8_images flows tables",
    "weight_bytes",
    "kernels",
    "formats codes",
]
RANK = {name: -row for row, names in enumerate(ROWS) for name in names.split()}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path):
    """The parts of this package that a module imports, anywhere in it: (first name, line)."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        for name in names:
            if name[0] == PACKAGE.name and len(name) > 1:
                yield name[1], node.lineno


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_only_go_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in RANK, f"{own} must have a place in ROWS"
    for name, line in imported(path):
        if name != own and name not in ("_native", "__version__"):
            assert RANK.get(name, 1) < RANK[own], f"{path}:{line} imports {name}, which is not below {own}"
        if name == "_native":
            assert own == "kernels", f"{path}:{line} goes past the kernels"


def test_validation_compares_any_two_models_and_needs_no_compression_code():
    names = {name for path in (PACKAGE / "validation").glob("*.py") for name, _ in imported(path)}
    assert names <= {"validation", "activations", "artifact", "calls", "data", "kernels", "progress", "timing"}


def test_the_check_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "pycompress")
    module = tmp_path / "pycompress" / "scores" / "taylor.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "import pycompress.prune\nfrom pycompress import cli\nfrom ..layers import a\nfrom .. import masks\n"
        "from . import magnitude\nimport numpy\ndef f():\n    from pycompress.kernels.ops import linear\n"
    )
    assert [name for name, _ in imported(module)] == ["prune", "cli", "layers", "masks", "scores", "kernels"]


def test_no_module_has_the_name_of_a_public_function():
    import pycompress

    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert not modules & set(pycompress._HOME)


def fresh(code, **environment):
    environment |= {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {"SYSTEMROOT": os.environ.get("SYSTEMROOT", "")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_need_numpy_alone():
    heavy = "'torch', 'numba', 'scipy', 'rich', 'safetensors', 'sklearn'"
    code = f"import sys, pycompress.kernels; print([m for m in ({heavy}) if m in sys.modules])"
    assert fresh(code) == "[]\n"
    use = "import numpy as np; from pycompress import kernels as k, Int8; a = np.eye(3, dtype=np.float32); "
    use += "k.linear(a, k.pack(a, Int8())); k.quantize(a); k.l1_scores(a); import sys; "
    assert fresh(f"{use}print([m for m in ({heavy}) if m in sys.modules])", PYCOMPRESS_BACKEND="reference") == "[]\n"


def test_importing_the_kernels_is_quick():
    code = "import numpy, time; t = time.perf_counter(); import pycompress.kernels; print(time.perf_counter() - t)"
    start = time.perf_counter()
    assert min(float(fresh(code)) for _ in range(3)) < 2  # ten times the promise: guards against an accident
    assert time.perf_counter() - start < 60


def test_public_names_are_loaded_when_first_used():
    code = "import sys, pycompress; print('torch' in sys.modules, 'numpy' in sys.modules, len(dir(pycompress)) > 20)"
    assert fresh(code) == "False False True\n"
