"""The int8 linear layers of other libraries: fp32 in, fp32 out, everything between them in the time.

Dynamic: the scale of the activations is found at run time. torch (quantize_dynamic) finds it per tensor, as do ONNX
Runtime (DynamicQuantizeMatMul) and the one of `qlinear_pointwise`, which torch.compile would write: aminmax, quantize
to uint8 (with int8 activations the operation falls back to a loop without vectors, seconds long), multiply.
`torch._int_mm` multiplies integers only: our composition of torch operations quantizes per row, multiplies, scales and
adds the bias. OpenVINO quantizes per row. Static: a scale fixed beforehand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from contestants import EIGHT_BITS, Contestant, installed, many
from numpy.typing import NDArray
from runtimes import onnx_model, onnxruntime_call, openvino_call
from torch import Tensor, nn


@dataclass(frozen=True)
class Integers:
    """A weight [out, in] rounded to int8 with a scale for each output, and its bias."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def rounded(weight: Tensor, bias: Tensor) -> Integers:
    """Round a weight as every peer does: symmetric, per output."""
    scale = weight.abs().amax(1).div(127).numpy()
    values = np.clip(np.rint(weight.numpy() / scale[:, None]), -127, 127).astype(np.int8)
    return Integers(values, scale, bias.numpy())


def dynamic_peers(weight: Tensor, bias: Tensor, threads: int, pool: int) -> dict[str, Contestant]:
    """Peers that find the scale of the activations at run time; ONNX Runtime where its pool has `threads`."""
    integers, nbytes = rounded(weight, bias), weight.numel()
    makers: dict[str, Callable[[], Callable[[Any], Any]]] = {}
    for engine in ("x86", "onednn"):
        if engine in torch.backends.quantized.supported_engines:
            makers[f"torch int8 {engine}"] = partial(quantize_dynamic, weight, bias, engine)
    makers["torch qlinear_pointwise"] = partial(_qlinear_pointwise, integers, None)
    makers["torch _int_mm"] = partial(_int_mm, integers)
    peers = {name: Contestant(many(nbytes, make), EIGHT_BITS) for name, make in makers.items()}
    if installed("onnxruntime") and threads == pool:
        copies = many(nbytes, partial(_onnxruntime_dynamic, integers, pool))
        peers["onnxruntime int8"] = Contestant(copies, EIGHT_BITS, Tensor.numpy)
    if installed("openvino"):
        copies = many(nbytes, partial(_openvino_dynamic, integers, threads))
        peers["openvino int8"] = Contestant(copies, EIGHT_BITS, Tensor.numpy)
    return peers


def static_peers(weight: Tensor, bias: Tensor, input_scale: float, threads: int, pool: int) -> dict[str, Contestant]:
    """Peers that quantize the activations with a fixed scale; ONNX Runtime where its pool has `threads`."""
    integers, nbytes = rounded(weight, bias), weight.numel()
    copies = many(nbytes, partial(_qlinear_pointwise, integers, input_scale))
    peers = {"torch qlinear_pointwise": Contestant(copies, EIGHT_BITS)}
    if installed("onnxruntime") and threads == pool:
        copies = many(nbytes, partial(_onnxruntime_static, integers, input_scale, pool))
        peers["onnxruntime int8"] = Contestant(copies, EIGHT_BITS, Tensor.numpy)
    if installed("openvino"):
        copies = many(nbytes, partial(_openvino_static, integers, input_scale, threads))
        peers["openvino int8"] = Contestant(copies, EIGHT_BITS, Tensor.numpy)
    return peers


def quantize_dynamic(weight: Tensor, bias: Tensor, engine: str) -> Callable[[Tensor], Tensor]:
    """torch.ao.quantization.quantize_dynamic with one of its engines."""
    dense = nn.Linear(weight.shape[1], weight.shape[0])
    dense.weight, dense.bias = nn.Parameter(weight), nn.Parameter(bias)
    layer = dynamic_model(nn.Sequential(dense), {nn.Linear}, engine)[0]
    return lambda x: layer(x)


def dynamic_model(model: nn.Module, kinds: set[type[nn.Module]], engine: str = "x86") -> Any:
    """Quantize a model's layers with an engine of torch; a layer keeps the engine that packed it."""
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao.quantization announces its end
            return torch.ao.quantization.quantize_dynamic(model, kinds)
    finally:
        torch.backends.quantized.engine = before


def _qlinear_pointwise(integers: Integers, input_scale: float | None) -> Callable[[Tensor], Tensor]:
    values = torch.from_numpy(integers.values.copy())
    weight = torch.ops.onednn.qlinear_prepack(values, None)
    scale, bias = torch.from_numpy(integers.scale), torch.from_numpy(integers.bias)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    multiply = torch.ops.onednn.qlinear_pointwise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of quantize_per_tensor, once
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 128, torch.quint8)

    def call(x: Tensor) -> Tensor:
        step = input_scale
        if step is None:
            low, high = torch.aminmax(x)
            step = max(-float(low), float(high)) / 127
        q = torch.quantize_per_tensor(x, step, 128, torch.quint8).int_repr()
        return multiply(q, step, 128, weight, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], "")

    return call


def _int_mm(integers: Integers) -> Callable[[Tensor], Tensor]:
    weight = torch.from_numpy(np.ascontiguousarray(integers.values.T))
    scale, bias = torch.from_numpy(integers.scale), torch.from_numpy(integers.bias)

    def call(x: Tensor) -> Tensor:
        largest = x.abs().amax(1, keepdim=True)
        q = (x * (127 / largest)).round_().to(torch.int8)
        return torch.addcmul(bias, torch._int_mm(q, weight).float(), (largest / 127) * scale)

    return call


def _onnxruntime_dynamic(integers: Integers, pool: int) -> Callable[[NDArray[np.float32]], Any]:
    from onnx import helper

    out_features, in_features = integers.values.shape
    inputs = ["x", "w", "scale", "", "bias"]
    node = helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], domain="com.microsoft")
    constants = {"w": np.ascontiguousarray(integers.values.T), "scale": integers.scale, "bias": integers.bias}
    return onnxruntime_call(onnx_model([node], constants, ["rows", in_features], ["rows", out_features]), pool)


def qdq_linear(
    integers: Integers, input_scale: float, x: str, y: str, signed: bool = True
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes and constants of a linear layer in ONNX's QDQ form; the names of x and y tell layers apart.

    Activations are uint8, the type that ONNX Runtime is fastest with on x86; with a MatMul and an Add in place of the
    Gemm it would multiply in fp32 and dequantize the weight in every call.
    """
    from onnx import helper

    step = np.float32(input_scale if signed else input_scale * 127 / 255)
    sums = (integers.scale * step).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        f"{y}.x_scale": np.asarray(step),
        f"{y}.x_zero": np.asarray(128 if signed else 0, np.uint8),
        f"{y}.w": integers.values,
        f"{y}.w_scale": integers.scale,
        f"{y}.w_zero": np.zeros(len(integers.scale), np.int8),
        f"{y}.b": np.rint(integers.bias / sums).astype(np.int32),
        f"{y}.b_scale": sums,
    }
    nodes = [
        helper.make_node("QuantizeLinear", [x, f"{y}.x_scale", f"{y}.x_zero"], [f"{y}.q"]),
        helper.make_node("DequantizeLinear", [f"{y}.q", f"{y}.x_scale", f"{y}.x_zero"], [f"{y}.x"]),
        helper.make_node("DequantizeLinear", [f"{y}.w", f"{y}.w_scale", f"{y}.w_zero"], [f"{y}.wd"], axis=0),
        helper.make_node("DequantizeLinear", [f"{y}.b", f"{y}.b_scale"], [f"{y}.bd"], axis=0),
        helper.make_node("Gemm", [f"{y}.x", f"{y}.wd", f"{y}.bd"], [y], transB=1),
    ]
    return nodes, constants


def _onnxruntime_static(integers: Integers, input_scale: float, pool: int) -> Callable[[NDArray[np.float32]], Any]:
    nodes, constants = qdq_linear(integers, input_scale, "x", "y")
    out_features, in_features = integers.values.shape
    return onnxruntime_call(onnx_model(nodes, constants, ["rows", in_features], ["rows", out_features]), pool)


def openvino_linear(x: Any, integers: Integers, input_range: float | None = None, signed: bool = True) -> Any:
    """Make the nodes of a linear layer; with a range of the activations they are fake-quantized, for static int8."""
    from openvino import opset13 as op

    if input_range is not None:
        low = np.float32(-input_range * 128 / 127 if signed else 0)
        high = np.float32(input_range)
        x = op.fake_quantize(x, low, high, low, high, 256)
    weight = op.multiply(op.convert(op.constant(integers.values), np.float32), op.constant(integers.scale[:, None]))
    return op.add(op.matmul(x, weight, False, True), op.constant(integers.bias[None]))


def _openvino_dynamic(integers: Integers, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    import openvino
    from openvino import opset13 as op

    in_features = integers.values.shape[1]
    x = op.parameter([-1, in_features], np.float32)
    model = openvino.Model([openvino_linear(x, integers)], [x])
    # activations are quantized at run time, per row
    return openvino_call(model, threads, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": in_features})


def _openvino_static(integers: Integers, input_scale: float, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    import openvino
    from openvino import opset13 as op

    x = op.parameter([-1, integers.values.shape[1]], np.float32)
    model = openvino.Model([openvino_linear(x, integers, input_scale * 127)], [x])
    return openvino_call(model, threads, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
