"""Run every operation of one implementation on arrays beside a page that faults (see test_kernel_memory.py)."""

import ctypes
import mmap
import sys

import cases
import cases_convolution
import cases_recurrent
import cases_sparse
import numpy as np

from pycompress import kernels
from pycompress.formats import Int8, Sparse
from pycompress.kernels import backends, recurrent

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 130, 200)
_PAGE = mmap.PAGESIZE


def guarded(array, side):
    """Return a copy of an array whose memory ends (or begins) at a page that cannot be accessed."""
    size = -(-max(1, array.nbytes) // _PAGE) * _PAGE
    memory = mmap.mmap(-1, size + 2 * _PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (base, base + _PAGE + size):
        if mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = _PAGE + (size - array.nbytes if side == "end" else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def guard(value, side):
    """Guard each array of a problem."""
    if isinstance(value, list):
        return [guard(item, side) for item in value]
    if isinstance(value, dict):
        return {key: guard(item, side) for key, item in value.items()}
    return guarded(np.asarray(value, order="C"), side) if isinstance(value, np.ndarray) else value


def into_guarded_outputs(problem, side):
    """The operations that can write to given memory: the native ones behind `linear`, `quantize` and `dequantize`."""
    if "bits" in problem or "values" in problem:
        from pycompress import _native

        x = problem["x"] if "bits" in problem else np.zeros(problem["values"].shape, np.float32)
        for dtype in (np.int8, np.uint8, np.int16, np.uint16):
            flat, scale = guarded(x.reshape(1, -1), side), guarded(np.ones(1, np.float32), side)
            q = guarded(np.zeros(flat.shape, dtype), side)
            for inverse in (False, True):
                _native.quantize(flat, q, scale, scale, -2.0, 2.0, inverse, 2, backends.isa_name())
    elif "channels_last" in problem:
        packed, x = cases_convolution.packed(problem), problem["x"]
        x = guarded(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), side)
        for scale, dtype in ((None, np.float32), (0.5, np.int8)):
            expected = kernels.conv(x.transpose(0, 3, 1, 2), packed, output_scale=scale).transpose(0, 2, 3, 1)
            y = guarded(np.zeros(expected.shape, dtype), side)
            kinds = 2 if x.dtype == np.int8 else 0, 2 if scale else 0
            sizes = (*x.shape[:3], *expected.shape[1:3])
            packed._native.into(x.ctypes.data, y.ctypes.data, *sizes, 0, 2, *kinds, scale or 0.0)
            assert np.array_equal(cases.bits(y), cases.bits(np.ascontiguousarray(expected)))
    elif "stride" in problem:
        packed, x = cases_convolution.packed(problem), problem["x"]
        expected = kernels.conv(x, packed)
        y = guarded(np.zeros(expected.shape, np.float32), side)
        rows = x.shape[2] if x.ndim == 4 else 1
        pixels = int(np.prod(expected.shape[2:]))
        packed._native.into(x.ctypes.data, y.ctypes.data, x.shape[0], rows, x.shape[-1], pixels, 0, 2)
        assert np.array_equal(cases.bits(y), cases.bits(expected))
    elif "weight_hh" in problem:
        packed, shape, sizes = cases_recurrent.pack(problem), problem["x"].shape, problem["batch_sizes"]
        expected, *_ = cases_recurrent.run(problem | {"h": None, "c": None, "backwards": False})
        x = problem["x"].reshape(int(np.prod(shape[:-1])), packed.input_size)
        sizes = [shape[1]] * shape[0] if sizes is None else sizes
        starts = np.cumsum([0, *sizes]).astype(np.uint64)
        h, c, y = (
            guarded(np.zeros((rows, columns), np.float32), side)
            for rows, columns in (
                (sizes[0] if sizes else 0, packed.out_size),
                (sizes[0] if sizes else 0, packed.hidden_size),
                (int(starts[-1]), packed.out_size),
            )
        )
        recurrent.run_layer(packed, x, starts, h, c, y, False, 2)
        assert np.array_equal(cases.bits(y), cases.bits(expected.reshape(y.shape)))
    elif "indptr" in problem:
        packed, dense = cases_sparse.pack(problem), problem["dense"]
        expected = kernels.spmm(packed, dense)
        y = guarded(np.zeros(expected.shape, dense.dtype), side)
        columns = dense.shape[1] if dense.ndim == 2 else 1
        packed._state.into(dense.ctypes.data, y.ctypes.data, columns, 2)
        assert np.array_equal(cases.bits(y), cases.bits(expected))
    elif "activation" in problem and "residual" not in problem:
        keys = ("weight", "bias", "scale", "input_scale", "zero_point", "multiplier")
        arguments = {key: problem.get(key) for key in keys}
        default = Int8() if "scale" in problem else Sparse()
        packed = kernels.pack(format=problem.get("format", default), **arguments)
        x, state = problem["x"], packed._state
        y = guarded(np.zeros((x.shape[0], packed.shape[0]), np.float32), side)
        state.linear_into(x.ctypes.data, y.ctypes.data, x.shape[0], 0, 2)
        expected = kernels.linear(x, packed)
        assert np.array_equal(cases.bits(y), cases.bits(expected))


def main(implementation, side):
    rng = np.random.default_rng(12)
    kernels.set_num_threads(2)
    with cases.using(implementation):
        for name, operation in cases.OPERATIONS.items():
            print(name, flush=True)
            for size in SIZES:
                for other in rng.choice(SIZES, 4):
                    plain = operation.make(rng, int(rng.choice((1, 2, 3, 8, 9, 17, 33, 65))), size, int(other))
                    problem = {key: guard(value, side) for key, value in plain.items()}
                    if name == "apply_threshold":
                        zeros = kernels.apply_threshold(**problem)
                        operation.check(plain, (zeros, problem["array"]), operation.truth(plain))
                    else:
                        operation.check(plain, operation.run(problem), operation.truth(plain))
                    if implementation.startswith("native"):
                        into_guarded_outputs(problem, side)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
