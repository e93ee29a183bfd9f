"""Kernels after fork, in DataLoader workers, beside other libraries' threads, and beside busy processes."""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import cases
import numpy as np
import pytest
import torch
from cases import bits
from torch.utils.data import DataLoader, Dataset

from pycompress import kernels
from pycompress.formats import Int8, Sparse

HANG_GUARD = 60.0  # seconds
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(params=["numba", "native"])
def fast(request):
    """Each backend with threads, in use by 4 threads."""
    reason = cases.missing(request.param)
    if reason:
        pytest.skip(reason)
    kernels.set_num_threads(4)
    with cases.using(request.param):
        yield request.param
    kernels.set_num_threads(None)


def packed_pair():
    weight = np.random.default_rng(5).standard_normal((300, 500)).astype(np.float32)
    return [kernels.pack(weight, Int8()), kernels.pack(weight * (np.abs(weight) > 1.2), Sparse())]


def inputs(seed=6):
    return np.random.default_rng(seed).standard_normal((130, 500)).astype(np.float32)


def outputs(pair, x):
    return [bits(kernels.linear(x, packed)) for packed in pair]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def exit_code(child):
    """Wait for a forked child; one that hangs is killed and gives None."""
    deadline = time.monotonic() + HANG_GUARD
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_50_times_while_kernels_run(fast):
    pair, x = packed_pair(), inputs()
    expected = outputs(pair, x)
    right, running = [], threading.Event()
    running.set()

    def work():  # the parent forks in the middle of its own calls
        while running.is_set():
            right.append(same(outputs(pair, x), expected))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        for turn in range(50):
            child = os.fork()
            if child == 0:
                code = 2
                try:
                    code = 0 if same(outputs(pair, x), expected) and same(outputs(packed_pair(), x), expected) else 1
                finally:
                    os._exit(code)
            assert exit_code(child) == 0, f"child {turn} hangs (None), has other bits (1) or fails (2)"
            assert same(outputs(pair, x), expected)
    finally:
        running.clear()
        worker.join(HANG_GUARD)
    assert right
    assert all(right)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_forks_and_uses_threads_too(fast):
    pair, x = packed_pair(), inputs()
    expected = outputs(pair, x)
    child = os.fork()
    if child == 0:
        code = 2
        try:
            right = [same(outputs(pair, x), expected)]
            work = [threading.Thread(target=lambda: right.append(same(outputs(pair, x), expected))) for _ in range(4)]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if same(outputs(pair, x), expected) else 1)
            code = 0 if all(right) and len(right) == 5 and exit_code(grandchild) == 0 else 1
        finally:
            os._exit(code)
    assert exit_code(child) == 0


class Outputs(Dataset):
    """Items are outputs of packed weights, computed in the worker."""

    def __init__(self, pair):
        self.pair = pair

    def __len__(self):
        return 12

    def __getitem__(self, index):
        x = torch.from_numpy(inputs(index))
        return [kernels.linear(x, packed) for packed in self.pair]


def use_four_threads(worker):
    kernels.set_num_threads(4)


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers_use_packed_weights(method, fast, monkeypatch):
    monkeypatch.setenv("PYCOMPRESS_BACKEND", fast)  # what spawned workers pack with
    dataset = Outputs(packed_pair())
    expected = [dataset[i] for i in range(len(dataset))]
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=method,
        timeout=HANG_GUARD,
        worker_init_fn=use_four_threads,
    )
    for _ in range(2 if method == "fork" else 1):
        found = list(loader)
        assert len(found) == len(expected)
        assert all(torch.equal(*pair) for one in zip(found, expected, strict=True) for pair in zip(*one, strict=True))


LIBRARIES = ("numpy", "torch", "sklearn", "numba", "pycompress.kernels")
USE = """
import sys
for name in sys.argv[1].split():
    __import__(name)
import hashlib
import numpy as np
x = np.random.default_rng(1).standard_normal((130, 200)).astype(np.float32)
w = np.random.default_rng(2).standard_normal((300, 200)).astype(np.float32)
for turn in range(2):  # each library's threads run before and after ours
    x @ w.T
    if "torch" in sys.modules:
        import torch
        torch.set_num_threads(2)
        torch.from_numpy(x) @ torch.from_numpy(w).T
    if "sklearn" in sys.modules:
        from sklearn.cluster import KMeans
        KMeans(2, n_init=1, max_iter=2, random_state=0).fit(x)
    if "numba" in sys.modules:
        import numba
        numba.get_num_threads()
    from pycompress import kernels
    from pycompress.formats import Int8, Sparse
    kernels.set_num_threads(4)
    pair = [kernels.pack(w, Int8()), kernels.pack(w * (np.abs(w) > 1), Sparse())]
    digest = hashlib.sha256(b"".join(kernels.linear(x, packed).tobytes() for packed in pair)).hexdigest()
print(digest)
"""


EVERY_ORDER = list(itertools.permutations(name for name in LIBRARIES if importlib.util.find_spec(name)))


def few_orders():
    """Orders of the libraries in which every three come in each of their six orders; found greedily."""
    missing = {triple for order in EVERY_ORDER for triple in itertools.combinations(order, 3)}
    orders = []
    while missing:
        best = max(EVERY_ORDER, key=lambda order: len(missing.intersection(itertools.combinations(order, 3))))
        missing.difference_update(itertools.combinations(best, 3))
        orders.append(best)
    return orders


def digest_after(order):
    command = [sys.executable, "-W", "ignore", "-c", USE, " ".join(order)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANG_GUARD)
    assert result.returncode == 0, f"{order}: {result.stderr}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def digest():
    return digest_after(["numpy", "pycompress.kernels"])


@pytest.mark.parametrize("order", few_orders(), ids=" ".join)
def test_imports_in_different_orders(order, digest):
    assert digest_after(order) == digest


@pytest.mark.soak
def test_imports_in_every_order(digest):
    assert [order for order in EVERY_ORDER if digest_after(order) != digest] == []


def test_calls_beside_two_busy_processes(fast):
    kernels.set_num_threads(2)
    pair, x = packed_pair(), inputs()
    expected = outputs(pair, x)
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    seconds = []
    deadline = time.monotonic() + HANG_GUARD
    try:
        for _ in range(300):
            start = time.perf_counter()
            found = outputs(pair, x)
            seconds.append(time.perf_counter() - start)
            assert same(found, expected)
            assert time.monotonic() < deadline, f"{len(seconds)} calls took {HANG_GUARD} s"
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    median, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    print(f"{fast}: beside two busy processes a pair of calls took {median:.2f} ms, 99 % at most {p99:.2f} ms")
