"""Results depend neither on threads nor on how a batch is cut, nor on the process."""

import contextlib
import multiprocessing
import signal
import threading
import time

import cases
import cases_convolution
import numpy as np
import pytest
from cases import bits

from pycompress import kernels
from pycompress.formats import Binary, Codebook, Int4, Int8, Sparse

THREADS = (1, 2, 3, 4, 8, 16)
NAMES = list(cases.OPERATIONS)


@pytest.fixture(autouse=True)
def _default_threads():
    yield
    kernels.set_num_threads(None)


def large_problem(name, implementation):
    """A problem of an operation that is worth several threads (a small one for the reference, which has none)."""
    rng = np.random.default_rng(8)
    small = 4 if implementation == "reference" else 1
    if name in ("int8_linear", "sparse_linear", "int4_linear", "int4_int8_linear", "codebook_linear", "binary_linear"):
        rows, inputs, outputs = 301 // small, 600 // small, 515 // small
        weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
        problem = {"x": rng.normal(size=(rows, inputs)).astype(np.float32), "weight": weight, "activation": None}
        problem["bias"] = rng.normal(size=outputs).astype(np.float32)
        if name == "sparse_linear":
            weight[rng.random(weight.shape) < 0.9] = 0
            return problem
        if name.startswith("int4"):
            return problem | {"format": Int4(activations="float32" if name == "int4_linear" else "int8")}
        if name == "codebook_linear":
            return problem | {"format": Codebook(bits=2)}
        if name == "binary_linear":
            return problem | {"format": Binary("binary")}
        return problem | {"scale": None, "input_scale": None}
    if name in ("int8_conv", "sparse_conv"):
        problem = cases_convolution.make if name == "int8_conv" else cases_convolution.make_sparse
        return problem(rng, 0, 1, 1) | {
            "x": rng.normal(size=(3, 40 // small, 40, 40)).astype(np.float32),
            "weight": rng.normal(size=(75 // small, 40 // small, 3, 3)).astype(np.float32),
            "scale": None,
            "bias": None,
            "input_scale": None,
            "activation": None,
            "groups": 1,
            "stride": (1, 1),
            "padding": ((1, 1), (1, 1)),
            "dilation": (1, 1),
        }
    if name in ("lstm", "gru"):
        problem = cases.OPERATIONS[name].make(rng, 3 * 40, 300 // small, 515 // small)
        x = rng.normal(size=(3, 40, 300 // small)).astype(np.float32)
        return problem | {"x": x, "h": None, "c": None, "batch_sizes": None, "input_scale": None}
    if name == "int8_matmul":
        return {key: rng.integers(-128, 128, (411 // small, 411 // small)).astype(np.int8) for key in "ab"}
    x = rng.normal(size=(1025, 1111)).astype(np.float32)
    if name == "quantize":
        return {"x": x, "bits": 8, "scheme": "affine", "signed": True, "axis": 1}
    if name == "dequantize":
        values = rng.integers(-128, 128, x.shape).astype(np.int8)
        return {"values": values, "scale": np.array(0.3, np.float32), "zero_point": np.array(2, np.float32)}
    if name == "kth_magnitude":
        return {"tensors": [x, x[:7] * 2, np.zeros(5, np.float32)], "k": 555_555}
    if name == "apply_threshold":
        return {"array": x, "threshold": 0.7}
    if name == "norms":
        return {"weight": x, "per": (3, 5), "gradient": x * x, "input_norms": None}
    if name == "above":
        return {"array": x, "threshold": 2.6, "mask": True, "bitmap": True, "packed": True}
    if name == "nm_mask":
        return {"weight": x, "n": 2, "m": 4}
    if name in ("l1_scores", "l2_scores"):
        return {"weight": x, "per": "column"}
    return cases.OPERATIONS[name].make(rng, 301 // small, 600 // small, 515 // small)


def result_bits(name, problem):
    result = cases.OPERATIONS[name].run(problem)
    return [bits(np.asarray(part)) for part in (result if isinstance(result, tuple) else (result,))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_for_any_number_of_threads(name, implementation):
    problem = large_problem(name, implementation)
    kernels.set_num_threads(1)
    expected = result_bits(name, problem)
    for threads in THREADS:
        kernels.set_num_threads(threads)
        assert same(result_bits(name, problem), expected), f"{threads} threads"


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_over_100_repeats(name, implementation):
    rng = np.random.default_rng(9)
    operation = cases.OPERATIONS[name]
    problem = operation.make(rng, 40, 96, 64)
    kernels.set_num_threads(4)
    expected = operation.run(problem)
    for _ in range(100):
        operation.check(problem, operation.run(problem), expected)


@pytest.mark.parametrize("format", [Int8(), Int8, Sparse()], ids=["dynamic", "static", "sparse"])
def test_same_bits_for_any_split_of_the_batch(format, implementation):
    rng = np.random.default_rng(10)
    static = {"input_scale": 0.02} if format is Int8 else {}
    for outputs, inputs in ((33, 65), (130, 300)):
        weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
        if isinstance(format, Sparse):
            weight[rng.random(weight.shape) < 0.85] = 0
        packed = kernels.pack(weight, format() if isinstance(format, type) else format, **static)
        x = rng.normal(size=(149, inputs)).astype(np.float32)
        whole = bits(kernels.linear(x, packed))
        for cut in range(1, 149, 4):
            parts = [kernels.linear(part, packed) for part in (x[:cut], x[cut:])]
            assert np.array_equal(bits(np.concatenate(parts)), whole), f"cut at {cut}"
        rows = [kernels.linear(row, packed) for row in x]
        assert np.array_equal(bits(np.stack(rows)), whole)
        order = rng.permutation(149)
        assert np.array_equal(bits(kernels.linear(x[order], packed)), whole[order])


def _send_results(connection, problems):
    kernels.set_num_threads(4)
    connection.send([result_bits(name, problem) for name, problem in problems.items()])
    connection.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_same_bits_in_forked_children(implementation):
    problems = {name: large_problem(name, implementation) for name in NAMES}
    kernels.set_num_threads(4)
    expected = [result_bits(name, problem) for name, problem in problems.items()]  # the pool is running now
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_send_results, args=(sender, problems))
        child.start()
        sender.close()
        assert receiver.poll(60), "a forked child hangs"
        results = receiver.recv()
        child.join(60)
        assert child.exitcode == 0
        assert all(same(*pair) for pair in zip(results, expected, strict=True))
    assert all(same(result_bits(name, problems[name]), e) for name, e in zip(NAMES, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_eight_python_threads_at_once(name, implementation):
    problem = large_problem(name, implementation)
    kernels.set_num_threads(2)
    expected = result_bits(name, problem)
    right = []
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(3):
            right.append(same(result_bits(name, problem), expected))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert right == [True] * 24


def test_eight_python_threads_share_one_packed_weight(implementation):
    rng = np.random.default_rng(11)
    weight = rng.normal(size=(257, 511)).astype(np.float32)
    xs = [rng.normal(size=(rows, 511)).astype(np.float32) for rows in (1, 2, 5, 17, 33, 64, 100, 129)]
    for packed in (kernels.pack(weight, Int8()), kernels.pack(weight * (np.abs(weight) > 1.5), Sparse())):
        expected = [bits(kernels.linear(x, packed)) for x in xs]
        right = [0] * 8

        def work(i, packed=packed, expected=expected, right=right):
            for _ in range(10):
                right[i] += np.array_equal(bits(kernels.linear(xs[i], packed)), expected[i])

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert right == [10] * 8


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.parametrize("format", [Int8(), Sparse()])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_is_answered_during_a_long_call(format, threads, implementation):
    if implementation == "reference":
        pytest.skip("one NumPy call cannot be interrupted")
    rng = np.random.default_rng(13)
    integers = rng.integers(-128, 128, (4096, 4096)).astype(np.int8)
    packed = kernels.pack(integers, format, scale=0.01)
    x = rng.normal(size=(1024, 4096)).astype(np.float32)
    kernels.linear(x[:40], packed)  # Numba compiles here
    kernels.set_num_threads(threads)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.perf_counter()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            kernels.linear(x, packed)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - start < 0.05 + 2  # ten times the promise
    assert np.array_equal(kernels.linear(x[:3], packed), kernels.linear(x[:9], packed)[:3])
