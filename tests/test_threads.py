"""Python threads beside kernels: they share packed weights, run while a kernel runs, and Ctrl-C ends it."""

import contextlib
import os
import signal
import threading
import time

import cases
import numpy as np
import pytest
import torch
from cases import bits
from torch import nn

from pycompress import kernels
from pycompress.formats import Int8, Sparse
from pycompress.layers import PackedLinear

HANG_GUARD = 2.0  # seconds: ten times the promise for Ctrl-C
FORMATS = {"int8": Int8(), "sparse": Sparse()}
FAST = ["numba", "native", "native/scalar"]


@pytest.fixture(params=FAST)
def fast(request):
    """Each backend with threads, in use."""
    reason = cases.missing(request.param)
    if reason:
        pytest.skip(reason)
    with cases.using(request.param):
        yield request.param
    kernels.set_num_threads(None)


def packed_of(format, outputs, inputs):
    weight = np.random.default_rng(outputs).standard_normal((outputs, inputs)).astype(np.float32)
    if isinstance(format, Sparse):
        weight[np.abs(weight) < 0.7] = 0
    return kernels.pack(weight, format, np.linspace(-1, 1, outputs, dtype=np.float32))


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_equal_bits_for_1_to_16_threads(format, fast):
    packed = packed_of(format, 300, 500)
    x = torch.randn(259, 500, generator=torch.Generator().manual_seed(1))
    kernels.set_num_threads(1)
    expected = bits(kernels.linear(x, packed).numpy())
    for threads in range(2, 17):
        kernels.set_num_threads(threads)
        assert np.array_equal(bits(kernels.linear(x, packed).numpy()), expected), f"{threads} threads"
        assert np.array_equal(bits(kernels.linear(x.numpy(), packed)), expected), f"{threads} threads, NumPy"


@pytest.mark.parametrize("threads", [1, 4])
def test_eight_python_threads_share_one_model(threads, fast):
    model = nn.Sequential(
        nn.Flatten(),
        PackedLinear(packed_of(Int8(), 257, 511), "relu"),
        PackedLinear(packed_of(Sparse(), 130, 257)),
        nn.Tanh(),
    )
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(rows, 7, 73, generator=generator) for rows in (1, 2, 5, 17, 33, 64, 100, 129)]
    kernels.set_num_threads(threads)
    expected = [model(x) for x in batches]
    right = [0] * 8
    start = threading.Barrier(8)

    def work(turn):
        start.wait()
        for i in range(turn, turn + 16):  # all sizes of batch at once, each in another order
            right[turn] += torch.equal(model(batches[i % 8]), expected[i % 8])

    workers = [threading.Thread(target=work, args=(turn,), daemon=True) for turn in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert right == [16] * 8


@contextlib.contextmanager
def counting():
    """A pure Python thread that counts: yields a function that returns how far it is."""
    count, running = 0, True

    def run():
        nonlocal count
        while running:
            count += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: count
    finally:
        running = False
        thread.join()


def python_share(call):
    """Speed of a pure Python thread beside a call that lasts long, as a share of its speed beside nothing.

    After a call that holds the GIL the counter gets one switch interval of 5 ms before the clock is read: the call must
    be much longer than that.
    """
    rates = []
    with counting() as count:
        for work in (lambda: time.sleep(0.3), call):
            before, start = count(), time.perf_counter()
            work()
            rates.append((count() - before) / (time.perf_counter() - start))
    return rates[1] / rates[0]


def rows_for(packed, seconds):
    """About how many rows take so long on one thread; the fastest of three tries counts."""
    x = np.zeros((64, packed.shape[1]), np.float32)
    kernels.linear(x, packed)
    took = []
    for _ in range(3):
        start = time.perf_counter()
        kernels.linear(x, packed)
        took.append(time.perf_counter() - start)
    return max(64, int(64 * seconds / min(took)))


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_python_runs_while_a_kernel_runs(format, fast):
    kernels.set_num_threads(1)
    size = 512 if fast == "native/scalar" else 1536
    packed = packed_of(format, size, size)
    x = np.zeros((rows_for(packed, 0.5), size), np.float32)
    share = python_share(lambda: kernels.linear(x, packed))
    print(f"{fast}, {format}: Python ran at {share:.0%} of its speed beside a kernel")
    assert share > 0.1


def test_the_share_of_python_is_small_beside_a_call_that_holds_the_gil():
    huge = 3**700_000
    assert python_share(lambda: huge * huge * huge) < 0.1


@pytest.fixture
def interruptible():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def seconds_until_interrupted(call):
    """Send SIGINT to a call after 0.1 s; return how long it took to answer."""
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.1, send)
    timer.start()
    done = False
    with pytest.raises(KeyboardInterrupt):
        call()
        done = True
        time.sleep(60)  # the signal comes during this sleep, not later in another test
    seconds = time.perf_counter() - sent[0]
    timer.join()
    assert not done, "the call was too short to be interrupted"
    return seconds


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_control_c_ends_a_long_call(format, threads, fast, interruptible):
    size = 512 if fast == "native/scalar" else 2048
    packed = packed_of(format, size, size)
    kernels.set_num_threads(1)
    few = np.random.default_rng(4).standard_normal((64, size)).astype(np.float32)
    expected = bits(kernels.linear(few, packed))
    x = np.zeros((threads * rows_for(packed, 6.0), size), np.float32)  # memory that is never touched costs nothing
    kernels.set_num_threads(threads)
    for given in (x, torch.from_numpy(x)):
        seconds = seconds_until_interrupted(lambda given=given: kernels.linear(given, packed))
        print(f"{fast}, {format}, {threads} threads: a call of about 6 s ended {seconds * 1e3:.0f} ms after Ctrl-C")
        assert seconds < HANG_GUARD
        assert np.array_equal(bits(kernels.linear(few, packed)), expected)


def test_control_c_ends_a_long_product(interruptible):
    b = np.ones((1024, 1024), np.int8)
    start = time.perf_counter()
    kernels.int8_matmul(np.zeros((4096, 1024), np.int8), b)
    rows = int(4096 * 6 / (time.perf_counter() - start))
    a = np.zeros((rows, 1024), np.int8)
    seconds = seconds_until_interrupted(lambda: kernels.int8_matmul(a, b))
    print(f"a product of about 6 s ended {seconds * 1e3:.0f} ms after Ctrl-C")
    assert seconds < HANG_GUARD
