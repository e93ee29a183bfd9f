"""ONNX Runtime and OpenVINO: sessions made of a few nodes, with the number of threads of the process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def _share_onnxruntime_pool(threads: int) -> None:
    """Let all sessions share one pool: with threads of their own, the workers of one spin while the next computes."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def onnx_model(
    nodes: Sequence[Any],
    constants: Mapping[str, NDArray[Any]],
    x_shape: Sequence[int | str],
    y_shape: Sequence[int | str],
) -> bytes:
    """Make an ONNX model from float32 "x" to float32 "y"."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def onnxruntime_call(
    model: bytes, pool: int, settings: Mapping[str, str] | None = None
) -> Callable[[NDArray[np.float32]], Any]:
    """Open a model from "x" to "y" in ONNX Runtime."""
    session = onnxruntime_session(model, pool, settings)
    return lambda x: session.run(["y"], {"x": x})[0]


def onnxruntime_session(model: bytes, pool: int, settings: Mapping[str, str] | None = None) -> Any:
    """Open a model in ONNX Runtime, in the one pool of threads of the process."""
    import onnxruntime

    _share_onnxruntime_pool(pool)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_call(
    model: Any, threads: int, settings: Mapping[str, Any] | None = None
) -> Callable[[NDArray[np.float32]], Any]:
    """Open a model of one input in OpenVINO: an openvino.Model, or the bytes of an ONNX model."""
    request = openvino_request(model, threads, settings)
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]


def openvino_request(model: Any, threads: int, settings: Mapping[str, Any] | None = None) -> Any:
    """Open a model in OpenVINO: an openvino.Model, or the bytes of an ONNX model."""
    import openvino

    core = openvino.Core()
    common = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    opened = core.read_model(model) if isinstance(model, bytes) else model
    return core.compile_model(opened, "CPU", common | dict(settings or {})).create_infer_request()
