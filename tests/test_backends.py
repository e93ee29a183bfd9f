"""Which backend, level and number of threads run: defaults, environment, context managers."""

import os
import subprocess
import sys
import time
import warnings

import cases
import numpy as np
import pytest

from pycompress import kernels
from pycompress.formats import Int8, Sparse
from pycompress.kernels import backends

VARIABLES = ("PYCOMPRESS_BACKEND", "PYCOMPRESS_ISA", "PYCOMPRESS_NUM_THREADS")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(backends, "_warned", True)
    yield
    kernels.set_num_threads(None)


def run_python(code, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def test_the_reference_is_always_there_and_the_fastest_comes_first():
    names = kernels.available_backends()
    assert names == [name for name in ("native", "numba", "reference") if name in names]
    assert names[-1] == "reference"
    assert kernels.backend_name() == names[0]


def test_every_backend_has_the_names_of_the_reference(implementation):
    from pycompress.kernels import reference

    module = backends.backend()
    functions = [name for name, value in vars(reference).items() if value.__class__.__name__ == "function"]
    internal = {"quantize_rows", "as_output", "to_bfloat16", "dataclass", "cast"}
    missing = {name for name in functions if not name.startswith("_")} - set(dir(module)) - internal
    assert not missing


def test_use_backend_decides_what_pack_picks_and_a_packed_weight_keeps_it():
    weight = np.eye(3, dtype=np.float32)
    packed = {}
    for name in kernels.available_backends():
        with kernels.use_backend(name):
            assert kernels.backend_name() == name
            packed[name] = kernels.pack(weight, Int8())
    for name, weights in packed.items():
        assert weights.kernel.split("/")[0] == name
        with kernels.use_backend("reference"):
            assert kernels.linear(weight, weights).tolist() == weight.tolist()
            assert weights.kernel.split("/")[0] == name


def test_context_managers_nest_and_end_with_exceptions():
    before = kernels.backend_name()
    with kernels.use_backend("reference"):
        with pytest.raises(KeyError), kernels.use_backend(before):
            assert kernels.backend_name() == before
            raise KeyError
        assert kernels.backend_name() == "reference"
    assert kernels.backend_name() == before


def test_the_environment_chooses_and_use_backend_overrules_it(monkeypatch):
    monkeypatch.setenv("PYCOMPRESS_BACKEND", "reference")
    assert kernels.backend_name() == "reference"
    for name in kernels.available_backends():
        with kernels.use_backend(name):
            assert kernels.backend_name() == name


@pytest.mark.parametrize("name", ["nonsense", "Native", "numba_cpu", "native/avx2"])
def test_an_unknown_backend_is_refused(monkeypatch, name):
    with pytest.raises(ValueError, match=r"^name must be"), kernels.use_backend(name):
        pass
    monkeypatch.setenv("PYCOMPRESS_BACKEND", name)
    with pytest.raises(ValueError, match=r"^PYCOMPRESS_BACKEND must be"):
        kernels.pack(np.eye(3, dtype=np.float32), Int8())


def test_a_backend_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(backends._NEEDS, "numba", "a_module_that_is_not_installed")
    assert "numba" not in kernels.available_backends()
    with pytest.raises(ValueError, match="exists here"), kernels.use_backend("numba"):
        pass


def test_without_native_kernels_a_warning_comes_once(monkeypatch):
    monkeypatch.setitem(backends._NEEDS, "native", "a_module_that_is_not_installed")
    monkeypatch.setattr(backends, "_warned", False)
    with pytest.warns(RuntimeWarning, match="without its C"):
        name = kernels.backend_name()
    assert name in ("numba", "reference")
    assert kernels.isa_levels() == []
    with pytest.raises(ValueError, match="not built"):
        kernels.isa_name()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.backend_name() == name
        kernels.pack(np.eye(3, dtype=np.float32), Sparse())


def test_levels(monkeypatch):
    levels = kernels.isa_levels()
    if not levels:
        pytest.skip("the native backend is not installed")
    assert levels[0] == "scalar" and len(set(levels)) == len(levels)
    assert kernels.isa_name() == levels[-1]
    for level in levels:
        with kernels.use_backend("native"), kernels.use_isa(level):
            assert kernels.isa_name() == level
            for format in (Int8(), Sparse()):
                backend, kernel_level = kernels.pack(np.eye(3, dtype=np.float32), format).kernel.split("/")
                # The level itself, or a lower one where the operation has no version of its own.
                assert backend == "native" and levels.index(kernel_level) <= levels.index(level)
        monkeypatch.setenv("PYCOMPRESS_ISA", level)
        assert kernels.isa_name() == level
        with kernels.use_isa("scalar"):
            assert kernels.isa_name() == "scalar"
    monkeypatch.setenv("PYCOMPRESS_ISA", "scalar")
    assert kernels.pack(np.eye(3, dtype=np.float32), Int8()).kernel == "native/scalar"


@pytest.mark.parametrize("name", ["nonsense", "AVX2", "mmx"])
def test_an_unknown_level_is_refused(monkeypatch, name):
    with pytest.raises(ValueError, match=r"^name must be"), kernels.use_isa(name):
        pass
    monkeypatch.setenv("PYCOMPRESS_ISA", name)
    with pytest.raises(ValueError, match=r"^PYCOMPRESS_ISA must be"):
        kernels.isa_name()


def test_environment_variables_reach_a_new_process():
    code = "import numpy as np, pycompress as pc; from pycompress import kernels; "
    code += "print(kernels.pack(np.eye(3, dtype=np.float32), pc.Int8()).kernel, kernels.get_num_threads())"
    done = run_python(code, PYCOMPRESS_BACKEND="reference", PYCOMPRESS_NUM_THREADS="3")
    assert done.stdout.split() == ["reference", "3"], done.stderr
    if "scalar" in kernels.isa_levels():
        done = run_python(code, PYCOMPRESS_ISA="scalar", PYCOMPRESS_NUM_THREADS="1")
        assert done.stdout.split() == ["native/scalar", "1"], done.stderr
    assert "PYCOMPRESS_BACKEND must be" in run_python(code, PYCOMPRESS_BACKEND="x").stderr
    assert "PYCOMPRESS_NUM_THREADS must be" in run_python(code, PYCOMPRESS_NUM_THREADS="0").stderr


def test_number_of_threads(monkeypatch):
    torch = pytest.importorskip("torch")
    default = kernels.get_num_threads()
    assert 1 <= default <= (os.cpu_count() or 1)
    monkeypatch.setenv("PYCOMPRESS_NUM_THREADS", "5")
    assert kernels.get_num_threads() == 5
    assert kernels.get_num_threads(for_torch=True) == torch.get_num_threads()
    kernels.set_num_threads(2)
    assert kernels.get_num_threads() == kernels.get_num_threads(for_torch=True) == 2
    kernels.set_num_threads(None)
    assert kernels.get_num_threads() == 5
    for wrong in ("", "0", "-1", "two", "1.5"):
        monkeypatch.setenv("PYCOMPRESS_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=r"^PYCOMPRESS_NUM_THREADS must be"):
            kernels.get_num_threads()


def test_the_number_of_threads_of_torch_is_used_for_tensors():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert kernels.get_num_threads(for_torch=True) == 1
    finally:
        torch.set_num_threads(before)


def test_affinity_limits_the_threads():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from pycompress import kernels; print(kernels.get_num_threads())"
    assert run_python(code).stdout.split() == ["1"]


@pytest.mark.parametrize(
    ("text", "threads"), [("max 100000", 1 << 16), ("150000 100000", 2), ("50000 100000", 1), ("", 1 << 16)]
)
def test_the_quota_of_a_container_limits_the_threads(monkeypatch, tmp_path, text, threads):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr("builtins.open", lambda path, *_, o=open: o(tmp_path / "cpu.max"))
    assert backends._quota() == threads


def test_numba_runs_where_nothing_can_be_cached():
    pytest.importorskip("numba")
    code = """
import numba.core.caching as caching
def unwritable(self):
    raise OSError("read-only file system")
caching._CacheLocator.ensure_cache_path = unwritable
import numpy as np, pycompress as pc
from pycompress import kernels
packed = kernels.pack(np.eye(2, dtype=np.float32), pc.Int8())
print(packed.kernel, kernels.linear(np.eye(2, dtype=np.float32), packed).tolist())
"""
    done = run_python(code, PYCOMPRESS_BACKEND="numba")
    assert done.stdout.strip() == "numba [[1.0, 0.0], [0.0, 1.0]]", done.stderr


def test_numba_stops_at_an_exception_between_chunks():
    pytest.importorskip("numba")
    from pycompress.kernels import threads

    seen = []

    def kernel(first, last):
        seen.append(first)
        if first == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run(kernel, 1000, item_ns=1e9, threads=1)
    assert seen == [0, 1, 2, 3]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        threads.run(lambda first, last: time.sleep(1e-3) or kernel(first, last), 1000, item_ns=1e9, threads=4)
    assert len(seen) < 900
    seen.clear()
    threads.run(lambda first, last: seen.extend(range(first, last)), 1000, item_ns=1e5, threads=4)
    assert sorted(seen) == list(range(1000))


def test_the_list_of_implementations_holds_what_is_installed():
    names = cases.implementations()
    runnable = [name for name in names if not cases.missing(name)]
    assert "reference" in runnable
    assert [n.split("/")[1] for n in runnable if n.startswith("native/")] == kernels.isa_levels()
