"""Problems of quantize, dequantize, kth_magnitude and apply_threshold; a part of cases.py, which imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import numpy as np

from pycompress import kernels


def _array_of_any_rank(rng: np.random.Generator, a: int, b: int, c: int) -> tuple[np.ndarray, int | None]:
    rank = int(rng.integers(1, 4))
    x = cases.floats(rng, *((b,), (a, b), (min(a, 9), b, min(c, 33)))[rank - 1])
    return x, None if rng.random() < 0.4 else int(rng.integers(-rank, rank))


def quantize(rng: np.random.Generator, a: int, b: int, c: int) -> dict[str, Any]:
    x, axis = _array_of_any_rank(rng, a, b, c)
    scheme = "symmetric" if rng.random() < 0.5 else "affine"
    if scheme == "affine" and rng.random() < 0.3:
        x = x + np.float32(rng.normal() * 100)
    signed = scheme == "symmetric" or bool(rng.random() < 0.5)
    return {"x": x, "bits": int(rng.integers(2, 17)), "scheme": scheme, "signed": signed, "axis": axis}


def _per_group(x: np.ndarray, axis: int | None, reduce: Callable[..., Any], empty: float) -> np.ndarray:
    if axis is None:
        return np.float32(reduce(x) if x.size else empty)
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    some = all(x.shape[i] for i in others)
    return reduce(x, axis=others) if some else np.full(x.shape[axis], empty, np.float32)


def _along(vector: np.ndarray, axis: int | None, ndim: int) -> np.ndarray:
    if axis is None:
        return vector
    return vector.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def quantize_truth(problem: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The written formula, in fp32 step by step, on the array as it is."""
    x, axis, bits_ = problem["x"], problem["axis"], problem["bits"]
    smallest, largest = (_per_group(x, axis, reduce, 0) for reduce in (np.min, np.max))
    low = -(2 ** (bits_ - 1)) if problem["signed"] else 0
    if problem["scheme"] == "symmetric":
        low, high = low + 1, -low - 1
        span, steps = np.maximum(np.abs(smallest), np.abs(largest)), high
    else:
        high = low + 2**bits_ - 1
        span, steps = largest - smallest, high - low
    scale = span / np.float32(steps)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)
    offset = np.zeros_like(scale) if problem["scheme"] == "symmetric" else np.float32(low) - smallest / scale
    q = np.rint(x / _along(scale, axis, x.ndim) + _along(offset, axis, x.ndim))
    dtype = np.dtype(f"{'' if problem['signed'] else 'u'}int{8 if bits_ <= 8 else 16}")
    return np.clip(q, low, high).astype(dtype), scale, offset.astype(np.float32)


def dequantize(rng: np.random.Generator, a: int, b: int, c: int) -> dict[str, Any]:
    x, axis = _array_of_any_rank(rng, a, b, c)
    dtype = np.dtype(rng.choice(["int8", "uint8", "int16", "uint16"]))
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max + 1, x.shape).astype(dtype)
    shape = () if axis is None else (x.shape[axis],)
    scale = rng.uniform(1e-3, 10, shape).astype(np.float32)
    zero_point = np.asarray(rng.normal(size=shape) * 100, np.float32)
    return {"values": values, "scale": np.asarray(scale), "zero_point": zero_point, "axis": axis}


def dequantize_truth(problem: dict[str, Any]) -> np.ndarray:
    q, axis = problem["values"].astype(np.float32), problem["axis"]
    return (q - _along(problem["zero_point"], axis, q.ndim)) * _along(problem["scale"], axis, q.ndim)


def kth_magnitude(rng: np.random.Generator, a: int, b: int, c: int) -> dict[str, Any]:
    arrays = [cases.floats(rng, n) for n in (a, b, c, 1)] + [cases.floats(rng, min(a, 20), b)]
    if rng.random() < 0.4:  # ties
        arrays = [np.rint(array / max(float(np.abs(array).max(initial=1)), 1e-30) * 4) for array in arrays]
    if rng.random() < 0.2:
        arrays[3][0] = rng.choice([np.inf, -np.inf])
    return {"tensors": arrays, "k": int(rng.integers(1, sum(array.size for array in arrays) + 1))}


def kth_truth(problem: dict[str, Any]) -> float:
    return float(np.sort(np.abs(np.concatenate([array.ravel() for array in problem["tensors"]])))[problem["k"] - 1])


def threshold(rng: np.random.Generator, a: int, b: int, c: int) -> dict[str, Any]:
    array, _ = _array_of_any_rank(rng, a, b, c)
    if array.size and rng.random() < 0.7:  # the very value of an entry, or one beside it
        threshold = float(np.abs(rng.choice(array.ravel())))
        threshold *= float(rng.choice([1, 1 + 1e-9, 1 - 1e-9]))
    else:
        threshold = float(rng.choice([0, 1e-30, 1, np.inf]))
    return {"array": array, "threshold": threshold}


def run_threshold(problem: dict[str, Any]) -> tuple[Any, ...]:
    array = problem["array"].copy(order="K") if problem["array"].flags.c_contiguous else _strided(problem["array"])
    return kernels.apply_threshold(array, problem["threshold"]), array


def _strided(array: np.ndarray) -> np.ndarray:
    wide = np.full((*array.shape, 2), 7, np.float32)
    wide[..., 0] = array
    return wide[..., 0]


def threshold_truth(problem: dict[str, Any]) -> tuple[Any, ...]:
    small = np.abs(problem["array"].astype(np.float64)) <= problem["threshold"]
    return int(small.sum()), np.where(small, np.float32(0), problem["array"])
