"""Sparse matrices in compressed rows times dense ones: what parity, threads and guarded pages do not see.

Those are tests of every operation: test_kernels.py, test_kernel_threads.py, test_kernel_memory.py.
"""

import contextlib
import copy
import pickle
import signal
import time

import cases
import numpy as np
import pytest
from cases import bits
from scipy import sparse

from pycompress import kernels

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")

PARTS = {"data": np.array([1.0, 2, 3, 4]), "indices": np.array([0, 2, 1, 1]), "indptr": np.array([0, 2, 2, 3, 4])}


@pytest.fixture(autouse=True)
def _default_threads():
    yield
    kernels.set_num_threads(None)


def random_csr(rows, columns, density, dtype=np.float32, seed=0):
    return sparse.random_array(
        (rows, columns), density=density, format="csr", dtype=dtype, rng=np.random.default_rng(seed)
    )


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_of_scipy_and_torch_and_parts_give_the_same_bits(dtype, implementation):
    matrix, dense = random_csr(37, 70, 0.2, dtype), normal(70, 19, dtype=dtype)
    tensor = torch.sparse_csr_tensor(matrix.indptr, matrix.indices, matrix.data, matrix.shape)
    forms = [matrix, sparse.csr_matrix(matrix), tensor]
    packed = [kernels.pack_csr(form) for form in forms]
    packed.append(kernels.pack_csr((matrix.data, matrix.indices, matrix.indptr), matrix.shape))
    expected = packed[0] @ dense
    assert expected.dtype == dtype and np.allclose(expected, matrix @ dense, atol=1e-5)
    for each in packed:
        assert each.kernel.startswith(implementation.split("/")[0]) and each.nnz == matrix.nnz
        assert np.array_equal(bits(kernels.spmm(each, dense)), bits(expected))
        y = kernels.spmm(each, torch.from_numpy(dense))
        assert type(y) is torch.Tensor and np.array_equal(bits(y.numpy()), bits(expected))
        column = kernels.spmm(each, torch.from_numpy(dense[:, 3].copy()))
        assert column.shape == (37,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 70_000, 0.01), (150, 1500, 0.3), (700, 40, 0.1), (3, 100_000, 0)])
def test_same_bits_however_columns_are_cut(shape, dtype, implementation):
    """Wide and narrow indices, copied tiles of b and b as it is, one column and many."""
    matrix = random_csr(*shape, dtype)
    packed, dense = kernels.pack_csr(matrix), normal(shape[1], 131, dtype=dtype)
    whole = kernels.spmm(packed, dense)
    assert np.allclose(whole, matrix @ dense, atol=1e-3)
    if implementation == "reference":
        return  # NumPy's order of additions depends on the number of columns
    for columns in (slice(0, 1), slice(5, 8), slice(0, 16), slice(3, 36), slice(64, 128), slice(1, 131)):
        part = kernels.spmm(packed, dense[:, columns])
        assert np.array_equal(bits(part), bits(np.ascontiguousarray(whole[:, columns])))
    assert np.array_equal(bits(kernels.spmm(packed, dense[:, 130])), bits(np.ascontiguousarray(whole[:, 130])))


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bits_however_long_calls_are_cut(threads, implementation):
    if implementation == "reference":
        pytest.skip("never cuts")
    matrix = random_csr(500, 1000, 0.6)  # cut by columns, and on the scalar level by rows too
    packed, dense = kernels.pack_csr(matrix), normal(1000, 150)
    kernels.set_num_threads(threads)
    whole = kernels.spmm(packed, dense)
    for row in (0, 123, 499):
        alone = kernels.pack_csr(matrix[[row]])
        assert np.array_equal(bits(kernels.spmm(alone, dense)[0]), bits(whole[row]))


def test_each_result_is_a_chain_in_stored_order(implementation):
    if implementation == "reference":
        pytest.skip("sums in float64")
    fused = implementation.startswith("native") and not implementation.endswith("scalar")
    for seed in range(20):
        problem = cases.OPERATIONS["spmm"].make(np.random.default_rng(seed), 7, 40, 21)
        a, b = problem["data"].astype(np.float32), np.atleast_2d(problem["dense"].astype(np.float32))
        b = b if b.shape[0] == 40 else b.T
        y = cases.OPERATIONS["spmm"].run(problem | {"data": a, "dense": b})
        starts, indices = problem["indptr"], problem["indices"]
        for r in range(7):
            total = np.zeros(b.shape[1], np.float32)
            for j in range(starts[r], starts[r + 1]):
                if (
                    fused
                ):  # the product is exact in a long double, and rounding the sum twice is as good as rounding once
                    total = (np.longdouble(a[j]) * b[indices[j]].astype(np.longdouble) + total).astype(np.float32)
                else:
                    total = total + a[j] * b[indices[j]]
            assert np.array_equal(bits(y[r] + np.float32(0)), bits(total + np.float32(0)))


def test_what_is_not_stored_is_not_multiplied(implementation):
    packed = kernels.pack_csr((np.array([2.0, 0.0]), np.array([0, 1]), np.array([0, 1, 2, 2])), (3, 3))
    y = packed @ np.array([[1.0, 3], [np.inf, 4], [np.nan, np.inf]])
    assert np.isnan(y[1, 0]) and np.array_equal(y[[0, 2]], [[2, 6], [0, 0]]) and y[1, 1] == 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_comes_back(half, implementation):
    packed, dense = kernels.pack_csr(random_csr(9, 33, 0.4)), torch.from_numpy(normal(33, 5)).to(half)
    y = kernels.spmm(packed, dense)
    assert y.dtype == half and torch.equal(y, kernels.spmm(packed, dense.float()).to(half))


def test_it_shares_no_memory_and_survives_copies(implementation):
    matrix, dense = random_csr(60, 50, 0.3), normal(50, 4)
    packed = kernels.pack_csr(matrix)
    expected = packed @ dense
    again = pickle.loads(pickle.dumps(packed))
    matrix.data[:], matrix.indices[:], matrix.indptr[:] = np.nan, 10**6, 7
    assert copy.deepcopy(packed) is packed
    for each in (packed, again):
        assert np.array_equal(bits(each @ dense), bits(expected))
        assert (each.shape, each.nnz, each.dtype) == ((60, 50), 900, np.float32) and each.nbytes > 900 * 6
    with pytest.raises(AttributeError):
        packed.nnz = 3


def test_room_behind_the_last_entry_is_legal(implementation):
    longer = {key: np.append(value, [9, 9]) for key, value in PARTS.items() if key != "indptr"}
    plain = kernels.pack_csr(tuple(PARTS.values()), (4, 3))
    roomy = kernels.pack_csr((longer["data"], longer["indices"], PARTS["indptr"]), (4, 3))
    assert roomy.nnz == 4 and np.array_equal(roomy @ np.eye(3), plain @ np.eye(3))


WRONG = {
    "NaN": ("data", np.array([1, np.nan, 1, 1])),
    "infinity": ("data", np.array([1, 1, 1, -np.inf])),
    "too few entries": ("data", np.ones(3)),
    "2-D entries": ("data", np.ones((2, 2))),
    "integers": ("data", np.ones(4, np.int64)),
    "halves": ("data", np.ones(4, np.float16)),
    "complex": ("data", np.ones(4, np.complex64)),
    "no array": ("data", [1.0, 1.0, 1.0, 1.0]),
    "meta": ("data", torch.ones(4, device="meta")),
    "needs grad": ("data", torch.ones(4, requires_grad=True)),
    "a negative column": ("indices", np.array([0, -1, 1, 1])),
    "a column too far": ("indices", np.array([0, 3, 1, 1])),
    "a column far too far": ("indices", np.array([0, 2**40, 1, 1])),
    "fractional columns": ("indices", np.array([0.0, 1, 1, 1])),
    "small columns": ("indices", np.array([0, 1, 1, 1], np.int8)),
    "too few columns": ("indices", np.array([0, 1, 1])),
    "pointers that decrease": ("indptr", np.array([0, 3, 2, 3, 4])),
    "negative pointers": ("indptr", np.array([0, -1, 2, 3, 4])),
    "pointers that begin late": ("indptr", np.array([1, 2, 2, 3, 4])),
    "pointers that end too far": ("indptr", np.array([0, 2, 2, 3, 5])),
    "pointers that overflow": ("indptr", np.array([0, 2**62, 2, -(2**62), 4])),
    "too few pointers": ("indptr", np.array([0, 2, 4])),
    "no pointers": ("indptr", np.zeros(0, int)),
    "None": ("indptr", None),
}


@pytest.mark.parametrize("why", WRONG)
def test_wrong_parts_are_refused_by_name(why):
    name, value = WRONG[why]
    with pytest.raises((TypeError, ValueError), match=r"^matrix\b"):
        kernels.pack_csr(tuple((PARTS | {name: value}).values()), (4, 3))


@pytest.mark.parametrize(
    "matrix",
    [
        random_csr(3, 3, 0.5).tocsc(),
        random_csr(3, 3, 0.5).tocoo(),
        random_csr(3, 3, 0.5).astype(np.int32),
        random_csr(3, 3, 0.5).todense(),
        torch.eye(3),
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csc(),
        torch.eye(3).to_sparse_csr().requires_grad_(),
        torch.eye(3, dtype=torch.float16).to_sparse_csr(),
        torch.ones(2, 3, 3).to_sparse_csr(),
        kernels.pack_csr(tuple(PARTS.values()), (4, 3)),
    ],
    ids=lambda matrix: f"{type(matrix).__name__} {getattr(matrix, 'layout', getattr(matrix, 'format', ''))}",
)
def test_other_matrices_are_refused_by_name(matrix):
    with pytest.raises((TypeError, ValueError), match=r"^matrix must"):
        kernels.pack_csr(matrix)


def test_a_shape_comes_with_parts_and_only_with_them():
    with pytest.raises(ValueError, match=r"^shape must be given"):
        kernels.pack_csr(tuple(PARTS.values()))
    with pytest.raises(ValueError, match=r"^shape must be None"):
        kernels.pack_csr(random_csr(3, 3, 0.5), (3, 3))
    with pytest.raises(TypeError, match=r"^dense must be float64"):
        kernels.spmm(kernels.pack_csr(tuple(PARTS.values()), (4, 3)), np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match=r"^matrix must be a PackedCSR"):
        kernels.spmm(random_csr(3, 3, 0.5), np.ones((3, 2), np.float32))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
@pytest.mark.parametrize("columns", [1024, 48])
def test_a_signal_is_answered_during_a_long_call(columns, implementation):
    if implementation == "reference":
        pytest.skip("its loop over rows answers by itself")
    packed, dense = kernels.pack_csr(random_csr(4096, 4096, 0.2)), normal(4096, columns)
    kernels.spmm(packed, dense[:, :2])  # Numba compiles here
    kernels.set_num_threads(2)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    start = time.perf_counter()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            kernels.spmm(packed, dense)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - start < 0.02 + 2  # ten times the promise
