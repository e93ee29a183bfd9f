"""Sparse matrices in compressed rows (CSR) times dense ones: contract, checks, and the calls of the backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays, backends
from .arrays import ArrayLike
from .immutable import Immutable

_MOST = 2**32  # rows and columns: the kernels number them by 32-bit integers
_KINDS = "a CSR matrix of SciPy, a sparse_csr tensor of torch or a tuple (data, indices, indptr)"


class PackedCSR(Immutable):
    """A sparse matrix [rows, columns] in compressed rows whose indices were checked once, for :func:`spmm`.

    Made by :func:`pack_csr`. Immutable, and it shares no memory with what it was made from. ``packed @ dense`` is
    ``spmm(packed, dense)``.

    Attributes
    ----------
    shape : (int, int)
        (rows, columns).
    dtype : dtype
        float32 or float64.
    nnz : int
        Number of stored entries, explicit zeros and repeated columns too.
    nbytes : int
        Bytes that it holds in memory.
    kernel : str
        The kernel that runs, such as ``"native/avx2"``.

    Examples
    --------
    >>> packed = pack_csr((np.array([2.0, 3.0]), np.array([0, 2]), np.array([0, 1, 2])), shape=(2, 3))
    >>> packed.shape, packed.nnz
    ((2, 3), 2)
    >>> packed @ np.array([1.0, 10.0, 100.0])
    array([  2., 300.])
    """

    __slots__ = ("_module", "_state", "dtype", "kernel", "nbytes", "nnz", "shape")

    _module: Any  # the backend
    _state: Any
    dtype: np.dtype[Any]
    kernel: str
    nbytes: int
    nnz: int
    shape: tuple[int, int]

    def __repr__(self) -> str:
        return f"PackedCSR({self.dtype}, shape={self.shape}, nnz={self.nnz}, kernel={self.kernel!r})"

    def __matmul__(self, dense: ArrayLike) -> Any:
        return spmm(self, dense)

    def __reduce__(self) -> tuple[Any, ...]:
        starts, indices, values = self._module.unpack_csr(self._state)
        return pack_csr, ((values, indices.astype(np.int64), starts.astype(np.int64)), self.shape)


def pack_csr(matrix: Any, shape: tuple[int, int] | None = None) -> PackedCSR:
    """Check a sparse matrix in compressed rows once, and lay it out for :func:`spmm`.

    Row r holds the entries ``indptr[r]`` to ``indptr[r + 1]`` of ``data`` and, with their columns, of ``indices``. As
    for SciPy, columns of a row may be in any order, and entries that repeat a column add up.

    Parameters
    ----------
    matrix : SciPy csr_array or csr_matrix, torch sparse_csr tensor, or tuple (data, indices, indptr)
        Entries float32 or float64, indices int32 or int64. Neither library is imported.
    shape : (int, int), optional
        (rows, columns); given with a tuple, and only with one.

    Returns
    -------
    PackedCSR

    Raises
    ------
    TypeError, ValueError
        When matrix is none of these, or has another dtype; when its row pointers do not begin at 0, decrease or end
        behind the entries; when a column lies outside its shape; when an entry is NaN or infinite.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> pack_csr(csr_array(np.eye(3, dtype=np.float32))).nnz
    3
    """
    data, indices, starts, (rows, columns) = _parts(matrix, shape)
    values = _vector(data, "data")
    if values.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"matrix must have float32 or float64 entries, got {arrays.describe(values)}")
    values = np.array(values, values.dtype.newbyteorder("="), order="C")  # copies: nobody changes what was checked
    places, pointers = _integers(indices, "column indices"), _integers(starts, "row pointers")
    _check_pointers(pointers, rows, (rows, columns), min(values.size, places.size))
    nnz = int(pointers[-1])
    values, places = values[:nnz], places[:nnz]  # SciPy leaves room behind the last entry
    if places.size and (places.min() < 0 or places.max() >= columns):
        bad = places.min() if places.min() < 0 else places.max()
        raise ValueError(f"matrix must have column indices inside its shape {(rows, columns)}, got {bad}")
    if not np.isfinite(values).all():
        bad_entries = int(nnz - np.isfinite(values).sum())
        raise ValueError(f"matrix must be finite, got {bad_entries} NaN or infinite entries")
    narrow = places.astype(np.uint16 if columns <= 65536 else np.uint32)
    module = backends.backend()
    state = module.pack_csr(pointers.astype(np.int64), narrow, values, columns)
    return PackedCSR(
        _module=module,
        _state=state,
        dtype=values.dtype,
        kernel=backends.kernel_name(module, state),
        nbytes=int(state.nbytes),
        nnz=nnz,
        shape=(rows, columns),
    )


def _parts(matrix: Any, shape: Any) -> tuple[Any, Any, Any, tuple[int, int]]:
    """Return data, indices, indptr and the shape of a matrix."""
    if isinstance(matrix, tuple) and len(matrix) == 3:
        if shape is None:
            raise ValueError("shape must be given with a tuple (data, indices, indptr), got None")
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"shape must be a tuple (rows, columns), got {type(shape).__name__}")
        if len(shape) != 2:
            raise ValueError(f"shape must have two sizes (rows, columns), got {len(shape)}")
        rows, columns = (arrays.integer(size, "shape", 0, _MOST) for size in shape)
        return (*matrix, (rows, columns))
    if arrays.is_tensor(matrix):
        parts = _tensor_parts(matrix)
    elif isinstance(getattr(matrix, "format", None), str) and hasattr(matrix, "indptr"):
        if matrix.format != "csr":
            raise TypeError(f"matrix must be {_KINDS}, got the format {matrix.format!r} (use .tocsr())")
        parts = (matrix.data, matrix.indices, matrix.indptr)
    else:
        raise TypeError(f"matrix must be {_KINDS}, got {type(matrix).__name__}")
    if shape is not None:
        raise ValueError("shape must be None with a matrix that has one")
    if len(matrix.shape) != 2:
        raise ValueError(f"matrix must be 2-D, got shape {tuple(matrix.shape)}")
    if max(matrix.shape) > _MOST:
        raise ValueError(f"matrix must have at most 2^32 rows and columns, got shape {tuple(matrix.shape)}")
    return (*parts, (int(matrix.shape[0]), int(matrix.shape[1])))


def _tensor_parts(matrix: Any) -> tuple[Any, Any, Any]:
    layout = str(matrix.layout).removeprefix("torch.")
    if layout != "sparse_csr":
        raise TypeError(f"matrix must be {_KINDS}, got a tensor of layout {layout} (use .to_sparse_csr())")
    if matrix.device.type != "cpu":
        raise ValueError(f"matrix must be on the CPU, got device {matrix.device}")
    if matrix.requires_grad:
        raise ValueError("matrix must not require grad: kernels have no gradients (use matrix.detach())")
    return matrix.values(), matrix.col_indices(), matrix.crow_indices()


def _vector(x: Any, part: str) -> NDArray[Any]:
    array = arrays.view(x, f"matrix ({part})")
    if array.ndim != 1:
        raise ValueError(f"matrix must have 1-D {part}, got {arrays.describe(array)}")
    return array


def _integers(x: Any, part: str) -> NDArray[Any]:
    array = _vector(x, part)
    if array.dtype.newbyteorder("=") not in (np.dtype(np.int32), np.dtype(np.int64)):
        raise TypeError(f"matrix must have int32 or int64 {part}, got {arrays.describe(array)}")
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _check_pointers(pointers: NDArray[Any], rows: int, shape: tuple[int, int], entries: int) -> None:
    if pointers.size != rows + 1:
        raise ValueError(f"matrix must have {rows + 1} row pointers for its shape {shape}, got {pointers.size}")
    if pointers[0] != 0:
        raise ValueError(f"matrix must have row pointers that begin at 0, got {pointers[0]}")
    falls = np.flatnonzero(pointers[1:] < pointers[:-1])
    if falls.size:
        r = int(falls[0])
        raise ValueError(
            f"matrix must have row pointers that never decrease, got {pointers[r + 1]} after {pointers[r]} in row {r}"
        )
    if pointers[-1] > entries:
        raise ValueError(
            f"matrix must have as many entries and column indices as its row pointers say, {pointers[-1]}, "
            f"got {entries}"
        )


def spmm(matrix: PackedCSR, dense: ArrayLike) -> Any:
    """Multiply a sparse matrix with a dense one: ``y[i, j] = sum over the entries of row i of a[i, k] * b[k, j]``.

    The sum is one chain of fused multiply-adds over the entries in stored order, from 0: the same bits for any number
    of threads and whether columns come together or alone. What is not stored is not multiplied: zero times infinity
    is left out there, as in SciPy and torch.

    Parameters
    ----------
    matrix : PackedCSR [m, k]
    dense : [k, n] or [k]
        NumPy array or torch CPU tensor, of the dtype of matrix; for float32 also float16 or bfloat16.

    Returns
    -------
    [m, n] or [m], kind and dtype of dense

    Raises
    ------
    TypeError, ValueError
        When matrix is no PackedCSR, or dense has another dtype or not k rows.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> packed = pack_csr(csr_array(np.array([[0.0, 2.0], [-1.0, 0.0]], np.float32)))
    >>> spmm(packed, np.array([[3.0, 4.0], [5.0, 6.0]], np.float32))
    array([[10., 12.],
           [-3., -4.]], dtype=float32)
    """
    if not isinstance(matrix, PackedCSR):
        raise TypeError(f"matrix must be a PackedCSR, made by pack_csr, got {type(matrix).__name__}")
    if arrays.is_plain_tensor(dense, matrix.dtype == np.float64) and hasattr(matrix._state, "into"):
        result = _tensor_product(matrix, dense)
        if result is not None:
            return result
    array = dense if type(dense) is np.ndarray and dense.dtype is matrix.dtype else _dense(dense, matrix.dtype)
    rows, inner = matrix.shape
    if array.ndim not in (1, 2) or array.shape[0] != inner:
        raise ValueError(f"dense must be [{inner}, n] or [{inner}] for a matrix {rows} x {inner}, got {array.shape}")
    columns = array if array.ndim == 2 else array.reshape(inner, 1)
    y = matrix._module.spmm(matrix._state, np.ascontiguousarray(columns), backends.threads_for(dense))
    return arrays.restore(y if array.ndim == 2 else y.reshape(rows), dense)


def _tensor_product(matrix: PackedCSR, dense: Any) -> Any:
    """The short way of a plain tensor of the dtype of matrix; None where its shape does not fit."""
    rows, inner = matrix.shape
    sizes = dense.shape
    if not 1 <= len(sizes) <= 2 or sizes[0] != inner:
        return None
    y = dense.new(rows, *sizes[1:])
    columns = 1 if len(sizes) == 1 else sizes[1]
    matrix._state.into(dense.data_ptr(), y.data_ptr(), columns, backends.get_num_threads(True))
    return y


def _dense(dense: ArrayLike, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.float32:
        return arrays.float32(dense, "dense")
    array = arrays.view(dense, "dense")
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"dense must be float64 as the matrix is, got {arrays.describe(dense)}")
    return np.asarray(array, dtype)
