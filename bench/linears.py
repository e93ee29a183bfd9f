"""Linear layers: int8, and sparse at 90 %, by this package and by its peers.

A contestant has as many copies of its weight as fill the L3 tier, and gets its input in the form that its library likes
best, made before the timing. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import measure
import numpy as np
import torch
from measure import OURS
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Int8, Sparse

SHAPES = [(768, 768), (3072, 768), (768, 3072), (4096, 4096)]  # (out_features, in_features)
ROWS = [1, 8, 32, 128, 512]
SPARSITY = 0.9

EXACT, HALF, EIGHT_BITS = 1e-4, 0.05, 0.25
"""Largest error that counts as right, in units of the root mean square of the output: 24, 8 and 7 or 8 bits."""


@dataclass(frozen=True)
class Contestant:
    """One implementation of x @ w.T + b.

    Attributes
    ----------
    copies : list of functions of the prepared input
        Each has a weight of its own in memory.
    tolerance : float
        Largest error, in units of the root mean square of the right output.
    prepare : function of x [rows, in] float32
        Makes the input, before the timing.
    finish : function of the output
        Makes it [rows, out].
    """

    copies: list[Callable[[Any], Any]]
    tolerance: float
    prepare: Callable[[Tensor], Any] = lambda x: x
    finish: Callable[[Any], Any] = lambda y: y


@dataclass(frozen=True)
class Problem:
    """One weight and everyone who multiplies with it."""

    op: str
    format: str
    shape: tuple[int, int]
    threads: int
    level: str
    weight: Tensor
    bias: Tensor
    nbytes: int
    contestants: dict[str, Contestant]

    def calls(self, rows: int, names: Iterable[str] | None = None) -> dict[str, Callable[[], object]]:
        """Return what is timed for a batch, all contestants or some; their results are checked first."""
        x, right = _batch(self.op, self.shape, rows)
        calls: dict[str, Callable[[], object]] = {}
        for name in self.contestants if names is None else names:
            contestant = self.contestants[name]
            given = contestant.prepare(x)
            for copy in (contestant.copies[0], contestant.copies[-1]):
                _check(name, contestant.finish(copy(given)), right, contestant.tolerance)
            calls[name] = measure.rotating([partial(copy, given) for copy in contestant.copies])
        return calls

    def work(self, rows: int) -> tuple[float, float]:
        """Return the operations (a multiplication and an addition for each weight kept) and bytes of one call."""
        kept = int(torch.count_nonzero(self.weight))
        return 2.0 * rows * kept, self.nbytes + 4.0 * rows * sum(self.shape)


def _check(name: str, got: Any, right: NDArray[np.float64], tolerance: float) -> None:
    array = got.float().numpy() if isinstance(got, Tensor) else np.asarray(got)
    if array.shape != right.shape:
        raise AssertionError(f"{name} must return {right.shape}, got {array.shape}")
    error = float(np.abs(array - right).max() / np.sqrt(np.square(right).mean()))
    if not error <= tolerance:
        raise AssertionError(
            f"{name} must be right within {tolerance:g} of the output's size, got an error of {error:g}"
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _many(nbytes: int, make: Callable[[], Callable[[Any], Any]]) -> list[Callable[[Any], Any]]:
    return [make() for _ in range(measure.copies(nbytes))]


@lru_cache(maxsize=1)
def _parameters(op: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[0] + shape[1])
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    bias = torch.randn(shape[0], generator=generator)
    if op == "sparse_linear":
        weight[weight.abs() <= kernels.kth_magnitude([weight], round(SPARSITY * weight.numel()))] = 0
    return weight, bias


@lru_cache(maxsize=len(ROWS))
def _batch(op: str, shape: tuple[int, int], rows: int) -> tuple[Tensor, NDArray[np.float64]]:
    weight, bias = _parameters(op, shape)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    return x, F.linear(x.double(), weight.double(), bias.double()).numpy()


@lru_cache(maxsize=1)
def problem(op: str, shape: tuple[int, int], threads: int, pool: int) -> Problem:
    """Make a weight, pruned for sparse_linear, and its contestants.

    Parameters
    ----------
    op : "int8_linear" or "sparse_linear"
    shape : (out_features, in_features)
    threads : int
    pool : int
        The one number of threads that ONNX Runtime can have in this process; it takes part where that is `threads`.
    """
    weight, bias = _parameters(op, shape)
    sparse = op == "sparse_linear"
    packed = [kernels.pack(weight, Sparse() if sparse else Int8(), bias)]
    packed += [kernels.pack(weight, packed[0].format, bias) for _ in range(measure.copies(packed[0].nbytes) - 1)]
    contestants = {
        "torch fp32": _torch(weight, bias, torch.float32, EXACT),
        OURS: Contestant([_ours(p) for p in packed], EXACT if sparse else EIGHT_BITS),
        "torch bf16": _torch(weight, bias, torch.bfloat16, HALF),
    }
    if sparse:
        contestants |= _sparse_peers(weight, bias)
    else:
        contestants |= _int8_peers(weight, bias, threads, pool)
    name = f"Sparse(fp32), {SPARSITY:.0%} zeros" if sparse else "Int8"
    level = packed[0].kernel
    return Problem(op, name, shape, threads, level, weight, bias, packed[0].nbytes, contestants)


def _ours(packed: kernels.PackedWeight) -> Callable[[Tensor], Tensor]:
    return lambda x: kernels.linear(x, packed)


def _torch(weight: Tensor, bias: Tensor, dtype: torch.dtype, tolerance: float) -> Contestant:
    def make() -> Callable[[Tensor], Tensor]:
        w, b = weight.to(dtype, copy=True), bias.to(dtype)
        return lambda x: F.linear(x, w, b)

    return Contestant(_many(weight.numel() * dtype.itemsize, make), tolerance, lambda x: x.to(dtype))


def _sparse_peers(weight: Tensor, bias: Tensor) -> dict[str, Contestant]:
    nonzeros = int(torch.count_nonzero(weight))
    column = bias[:, None]

    def torch_csr() -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR layout a beta
            w = weight.to_sparse_csr()
        return lambda x: torch.addmm(column, w, x)

    def transposed(x: Tensor) -> Tensor:
        return x.T.contiguous()

    def upright(y: Any) -> Any:
        return y.T

    def scipy_csr() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        w, b = csr_matrix(weight.numpy()), column.numpy()
        return lambda x: w @ x + b

    def ours_int8() -> Callable[[Tensor], Tensor]:
        return _ours(kernels.pack(weight, Int8(), bias))

    scipy_copies = _many(nonzeros * 8, scipy_csr)
    return {
        "pycompress int8": Contestant(_many(weight.numel(), ours_int8), EIGHT_BITS),
        "torch csr": Contestant(_many(nonzeros * 12, torch_csr), EXACT, transposed, upright),
        "scipy csr, 1 thread": Contestant(scipy_copies, EXACT, lambda x: transposed(x).numpy(), upright),
    }


def _int8_peers(weight: Tensor, bias: Tensor, threads: int, pool: int) -> dict[str, Contestant]:
    nbytes = weight.numel()
    peers = {}
    for engine in ("fbgemm", "onednn"):
        if engine in torch.backends.quantized.supported_engines:
            make = partial(_torch_int8, weight, bias, engine)
            peers[f"torch int8 {engine}"] = Contestant(_many(nbytes, make), EIGHT_BITS)
    scale = weight.abs().amax(1).div(127).numpy()
    integers = np.clip(np.rint(weight.numpy() / scale[:, None]), -127, 127).astype(np.int8)
    if _installed("onnxruntime") and threads == pool:
        make = partial(_onnxruntime, integers, scale, bias.numpy(), pool)
        peers["onnxruntime int8"] = Contestant(_many(nbytes, make), EIGHT_BITS, Tensor.numpy)
    if _installed("openvino"):
        make = partial(_openvino, integers, scale, bias.numpy(), threads)
        peers["openvino int8"] = Contestant(_many(nbytes, make), EIGHT_BITS, Tensor.numpy)
    return peers


def _torch_int8(weight: Tensor, bias: Tensor, engine: str) -> Callable[[Tensor], Tensor]:
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        dense = nn.Linear(weight.shape[1], weight.shape[0])
        dense.weight, dense.bias = nn.Parameter(weight), nn.Parameter(bias)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao.quantization announces its end
            layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(dense), {nn.Linear})[0]
    finally:
        torch.backends.quantized.engine = before
    return lambda x: layer(x)


@cache
def _share_onnxruntime_pool(threads: int) -> None:
    """Let all sessions share one pool: with threads of their own, the workers of one spin while the next computes."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def _onnxruntime(
    integers: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32], pool: int
) -> Callable[[NDArray[np.float32]], Any]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    _share_onnxruntime_pool(pool)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    out_features, in_features = integers.shape
    constants = {"w": np.ascontiguousarray(integers.T), "scale": scale, "bias": bias}
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeMatMul", ["x", "w", "scale", "", "bias"], ["y"], domain="com.microsoft")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", out_features])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["y"], {"x": x})[0]


def _openvino(
    integers: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32], threads: int
) -> Callable[[NDArray[np.float32]], Any]:
    import openvino
    from openvino import opset13 as op

    in_features = integers.shape[1]
    x = op.parameter([-1, in_features], np.float32)
    weight = op.multiply(op.convert(op.constant(integers), np.float32), op.constant(scale[:, None]))
    y = op.add(op.matmul(x, weight, False, True), op.constant(bias[None]))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": in_features,  # activations are quantized at run time, per row
    }
    request = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]
