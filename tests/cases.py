"""Inputs for every kernel operation; the parity tests and the benchmarks read them.

An :class:`Operation` makes a random problem of given sizes, runs it through the public functions of the backend in
use, computes the truth without that backend, and compares the two.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cases_arrays
import cases_codebook
import cases_convolution
import cases_int4
import cases_recurrent
import cases_selection
import cases_sparse
import cases_sparse_int8
import numpy as np
from scipy.special import expit, ndtr

from pycompress import kernels
from pycompress.formats import Int8, Sparse

SIZES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129)
PRIMES = (5, 11, 13, 19, 23, 29, 37, 41, 43, 47, 53, 61, 71, 83, 97, 101, 113, 131, 139, 151, 163, 181, 199, 211, 251)
LINEAR_SHAPES = ((768, 768), (3072, 768), (768, 3072), (4096, 4096))  # (out, in), what benchmarks time
LINEAR_ROWS = (1, 8, 32, 128, 512)

ULP = 2.0**-24


def implementations() -> list[str]:
    """Every implementation that was installed, also those that this CPU lacks: "numba", "native/avx2", ..."""
    with contextlib.suppress(ImportError):
        from pycompress import _native

        present = kernels.isa_levels()
        compiled = {level for levels in _native.kernels().values() for level in levels}
        return ["reference", "numba", *(f"native/{level}" for level in present + sorted(compiled - set(present)))]
    return ["reference", "numba", "native"]


def missing(implementation: str) -> str | None:
    """Why an implementation cannot run here, or None."""
    name, _, level = implementation.partition("/")
    if name not in kernels.available_backends():
        return f"backend {name} is not installed"
    return f"this CPU lacks {level}" if level and level not in kernels.isa_levels() else None


@contextlib.contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run kernels with an implementation."""
    name, _, level = implementation.partition("/")
    with kernels.use_backend(name), kernels.use_isa(level) if level else contextlib.nullcontext():
        yield


@dataclass(frozen=True)
class Operation:
    """A kernel operation: how to make problems, run them, and know what is right."""

    name: str
    make: Callable[[np.random.Generator, int, int, int], dict[str, Any]]
    run: Callable[[dict[str, Any]], Any]
    truth: Callable[[dict[str, Any]], Any]
    tolerance: Callable[[dict[str, Any], Any], Any] | None = None  # None: equal bit for bit

    def check(self, problem: dict[str, Any], result: Any, truth: Any) -> None:
        """Raise an AssertionError that describes the problem when result is wrong."""
        results, truths = (x if isinstance(x, tuple) else (x,) for x in (result, truth))
        for got, expected in zip(results, truths, strict=True):
            got, expected = np.asarray(got), np.asarray(expected)
            same_kind = got.shape == expected.shape and (self.tolerance or got.dtype == expected.dtype)
            if not same_kind:
                wrong = f"{got.shape} {got.dtype}, not {expected.shape} {expected.dtype}"
            elif self.tolerance is None:
                bad = bits(got) != bits(expected)
                wrong = _first(bad, got, expected)
            else:
                bad = ~(np.abs(got.astype(np.float64) - expected) <= self.tolerance(problem, expected))
                wrong = _first(bad & ~(np.isnan(got) & np.isnan(expected)), got, expected)
            if wrong:
                raise AssertionError(f"{self.name}: {wrong} in {describe(problem)}")


def bits(array: np.ndarray) -> np.ndarray:
    """The array as integers, so that NaN and the sign of zero are compared too."""
    array = np.ascontiguousarray(array)
    return array.view(f"i{array.dtype.itemsize}") if array.dtype.kind == "f" else array


def _first(bad: np.ndarray, got: np.ndarray, expected: np.ndarray) -> str | None:
    if not bad.any():
        return None
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{int(bad.sum())} of {bad.size} wrong, first at {at}: {got[at]!r}, not {expected[at]!r}"


def describe(problem: dict[str, Any]) -> str:
    """One line that says what a problem is."""

    def word(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return f"{value.shape} {value.dtype} strides {value.strides}"
        if isinstance(value, list):
            return f"[{len(value)} arrays]"
        return repr(value)

    return ", ".join(f"{key}={word(value)}" for key, value in problem.items())


def sizes(count: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Triples of sizes; each of SIZES comes up at each place about equally often, mixed with random primes."""
    pools = [np.concatenate([rng.permutation(SIZES) for _ in range(count // len(SIZES) + 1)]) for _ in range(3)]
    for triple in zip(*(pool[:count] for pool in pools), strict=True):
        yield tuple(int(rng.choice(PRIMES)) if rng.random() < 0.15 else int(size) for size in triple)


def small_sizes(count: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Triples of small random sizes, for runs of very many problems."""
    for _ in range(count):
        yield tuple(int(size) for size in rng.integers(0, 41, 3))


def floats(rng: np.random.Generator, *shape: int, density: float = 1.0) -> np.ndarray:
    """Random floats of a random magnitude, sometimes with zero rows, outliers or a non-contiguous layout."""
    kind = rng.integers(8)
    wide = (*shape[:-1], shape[-1] * 2) if kind == 0 else shape
    array = (rng.standard_normal(wide) * 10.0 ** rng.integers(-4, 5)).astype(np.float32)
    if density < 1:
        array[rng.random(wide) >= density] = 0
    if kind == 1 and array.size:
        array[rng.integers(shape[0])] = 0
    if kind == 2 and array.size:
        array.flat[rng.integers(array.size)] *= 1000
    if kind == 0:
        return array[..., ::2]
    if kind == 3 and len(shape) == 2:
        return np.asfortranarray(array)
    return array[::-1] if kind == 4 else array


def activation(rng: np.random.Generator) -> str | None:
    """None for half of the problems, ReLU for most others."""
    return str(rng.choice(["relu", "relu", "gelu", "silu", "tanh", "sigmoid", "relu6"])) if rng.random() < 0.5 else None


def _int8_linear(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    problem: dict[str, Any] = {"x": floats(rng, rows, inputs), "weight": floats(rng, outputs, inputs), "scale": None}
    if rng.random() < 0.3:
        problem["weight"] = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        problem["scale"] = rng.uniform(1e-3, 1, outputs).astype(np.float32)
    problem["bias"] = floats(rng, outputs) if rng.random() < 0.5 else None
    largest = max(float(np.abs(problem["x"]).max(initial=0)), 1e-20)
    problem["input_scale"] = largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.4 else None
    problem["activation"] = activation(rng)
    return problem


def _int8_outputs(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    problem = _int8_linear(rng, rows, inputs, outputs)
    problem["residual"] = floats(rng, rows, outputs)
    largest = float(np.abs(problem["residual"]).max(initial=1))
    problem["output_scale"] = largest / 127 * float(rng.choice([0.3, 1.0])) if rng.random() < 0.5 else None
    return problem


def _int8_chain(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    widths = [inputs, *(int(width) for width in rng.integers(1, 70, rng.integers(0, 3))), outputs]
    layers = [_int8_linear(rng, 1, before, after) for before, after in itertools.pairwise(widths)]
    return {"x": floats(rng, rows, inputs), "layers": [{**layer, "x": None} for layer in layers]}


def _run_chain(problem: dict[str, Any]) -> Any:
    keys = ("weight", "bias", "scale", "input_scale")
    packed = [kernels.pack(format=Int8(), **{key: layer[key] for key in keys}) for layer in problem["layers"]]
    return kernels.linear_chain(problem["x"], packed, [layer["activation"] for layer in problem["layers"]])


def _sparse_linear(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    density = float(rng.choice([0, 0.02, 0.1, 0.3, 0.6, 1]))
    return {
        "x": floats(rng, rows, inputs),
        "weight": floats(rng, outputs, inputs, density=density),
        "bias": floats(rng, outputs) if rng.random() < 0.5 else None,
        "activation": activation(rng),
    }


def run_linear(problem: dict[str, Any]) -> Any:
    arguments = dict(problem)
    x, activation = arguments.pop("x"), arguments.pop("activation")
    outputs = {key: arguments.pop(key) for key in ("residual", "output_scale") if key in arguments}
    default = Int8() if "scale" in problem else Sparse()
    packed = kernels.pack(format=arguments.pop("format", default), **arguments)
    return kernels.linear(x, packed, activation, **outputs)


def _by_reference(run: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def truth(problem: dict[str, Any]) -> Any:
        with kernels.use_backend("reference"):
            return run(problem)

    return truth


def float_truth(problem: dict[str, Any]) -> np.ndarray:
    y = problem["x"].astype(np.float64) @ problem["weight"].astype(np.float64).T
    y = y if problem["bias"] is None else y + problem["bias"]
    return ACTIVATIONS[problem["activation"]](y)


ACTIVATIONS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "gelu": lambda y: y * ndtr(y),
    "silu": lambda y: y * expit(y),
    "tanh": np.tanh,
    "sigmoid": expit,
    "relu6": lambda y: np.clip(y, 0, 6),
}


def float_tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    total = np.abs(problem["x"]).astype(np.float64) @ np.abs(problem["weight"]).astype(np.float64).T
    total = total if problem["bias"] is None else total + np.abs(problem["bias"])
    # no activation is steeper than 1.13; it adds a rounding of its own result
    return 2.3 * problem["x"].shape[1] * (ULP * total + 2.0**-149) + 2 * ULP * np.abs(truth) + 2.0**-149


def _int8_matmul(rng: np.random.Generator, m: int, k: int, n: int) -> dict[str, Any]:
    def matrix(rows: int, columns: int) -> np.ndarray:
        array = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
        return np.asfortranarray(array) if rng.random() < 0.3 else array

    return {"a": matrix(m, k), "b": matrix(k, n)}


def _matmul_truth(problem: dict[str, Any]) -> np.ndarray:
    return (problem["a"].astype(np.int64) @ problem["b"].astype(np.int64)).astype(np.int32)


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("int8_linear", _int8_linear, run_linear, _by_reference(run_linear)),
        Operation("int8_outputs", _int8_outputs, run_linear, _by_reference(run_linear)),
        Operation("int8_chain", _int8_chain, _run_chain, _by_reference(_run_chain)),
        Operation("int8_conv", cases_convolution.make, cases_convolution.run, _by_reference(cases_convolution.run)),
        Operation(
            "int8_conv_last",
            cases_convolution.make_last,
            cases_convolution.run,
            _by_reference(cases_convolution.run),
        ),
        Operation(
            "sparse_int8_conv",
            cases_convolution.make_sparse_int8,
            cases_convolution.run,
            _by_reference(cases_convolution.run_dense),
        ),
        Operation(
            "sparse_conv",
            cases_convolution.make_sparse,
            cases_convolution.run,
            cases_convolution.sparse_truth,
            cases_convolution.sparse_tolerance,
        ),
        Operation("int4_linear", cases_int4.weight_only, run_linear, cases_int4.truth, cases_int4.tolerance),
        Operation("int4_int8_linear", cases_int4.quantized, run_linear, _by_reference(run_linear)),
        Operation("codebook_linear", cases_codebook.make, run_linear, _by_reference(run_linear)),
        Operation("binary_int8_linear", cases_codebook.binary, run_linear, _by_reference(run_linear)),
        Operation("binary_linear", cases_codebook.signs, run_linear, _by_reference(run_linear)),
        Operation("sparse_linear", _sparse_linear, run_linear, float_truth, float_tolerance),
        Operation("sparse_block_linear", cases_sparse.make_blocks, run_linear, float_truth, float_tolerance),
        Operation(
            "bf16_linear",
            cases_sparse.make_bfloat16,
            run_linear,
            cases_sparse.bfloat16_truth,
            cases_sparse.bfloat16_tolerance,
        ),
        Operation("sparse_int8_linear", cases_sparse_int8.make, run_linear, cases_sparse_int8.truth),
        Operation(
            "sparse_int8_chain",
            cases_sparse_int8.make_chain,
            cases_sparse_int8.run_chain,
            cases_sparse_int8.chain_truth,
        ),
        Operation("lstm", functools.partial(cases_recurrent.make, "lstm"), cases_recurrent.run, cases_recurrent.truth),
        Operation("gru", functools.partial(cases_recurrent.make, "gru"), cases_recurrent.run, cases_recurrent.truth),
        Operation("spmm", cases_sparse.make, cases_sparse.run, cases_sparse.truth, cases_sparse.tolerance),
        Operation("int8_matmul", _int8_matmul, lambda p: kernels.int8_matmul(**p), _matmul_truth),
        Operation(
            "quantize", cases_arrays.quantize, lambda p: tuple(kernels.quantize(**p)), cases_arrays.quantize_truth
        ),
        Operation(
            "dequantize", cases_arrays.dequantize, lambda p: kernels.dequantize(**p), cases_arrays.dequantize_truth
        ),
        *(
            Operation(
                name,
                cases_selection.scores,
                lambda p, name=name: getattr(kernels, name)(**p),
                functools.partial(cases_selection.scores_truth, power=power),
                cases_selection.scores_tolerance,
            )
            for power, name in ((1, "l1_scores"), (2, "l2_scores"))
        ),
        Operation(
            "kth_magnitude", cases_arrays.kth_magnitude, lambda p: kernels.kth_magnitude(**p), cases_arrays.kth_truth
        ),
        Operation("apply_threshold", cases_arrays.threshold, cases_arrays.run_threshold, cases_arrays.threshold_truth),
        Operation(
            "norms",
            cases_selection.norms,
            cases_selection.run_norms,
            cases_selection.norms_truth,
            cases_selection.norms_tolerance,
        ),
        Operation("above", cases_selection.above, cases_selection.run_above, cases_selection.above_truth),
        Operation("nm_mask", cases_selection.nm_mask, lambda p: kernels.nm_mask(**p), cases_selection.nm_truth),
    )
}
