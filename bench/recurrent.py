"""LSTM and GRU layers over a whole sequence, int8 by this package and by its peers.

torch's quantize_dynamic is what the ratio is over. ONNX Runtime has DynamicQuantizeLSTM, and no int8 GRU. Weights lie
where one copy of them fits: it is read once for every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from contestants import EXACT, HALF, Contestant, Point, checked_calls, installed
from int8_peers import dynamic_model
from measure import OURS
from numpy.typing import NDArray
from runtimes import onnx_model, onnxruntime_call
from torch import Tensor, nn

from pycompress import kernels


@dataclass(frozen=True)
class Network:
    """A stack of recurrent layers and the length of its sequences."""

    cell: Literal["lstm", "gru"]
    inputs: int
    hidden: int
    layers: int
    steps: int


NETWORKS = [
    Network(cell, *sizes)
    for cell in ("lstm", "gru")
    for sizes in ((256, 256, 1, 20), (40, 256, 3, 160), (512, 1024, 1, 50))
]
BATCHES = [1, 32]
TOLERANCE = 0.25  # of the root mean square of the outputs: roundings pass from step to step


def points(batches: Iterable[int], threads: int) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table."""
    for network in NETWORKS:
        for batch in batches:
            yield partial(point, network, batch, threads)


def point(network: Network, batch: int, threads: int) -> Point:
    """Make one line: all contestants, checked."""
    contestants, nbytes, level = _contestants(network, threads, threads)
    calls = checked_calls(contestants, *_batch(network, batch), lenient=True)
    weights = sum(parameter.numel() for name, parameter in _model(network).named_parameters() if "weight" in name)
    moved = network.steps * (nbytes + 4.0 * batch * (network.inputs + network.hidden * network.layers))
    eligible = tuple(name for name in calls if name.startswith("torch int8"))
    shape = [network.cell, network.inputs, network.hidden, network.layers, network.steps]
    work = 2.0 * network.steps * batch * weights, moved
    return Point(shape, batch, level, "Int8", calls, eligible, work, nbytes)


def check_calls(network: Network, batch: int, threads: int, pool: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(network, threads, pool)[0], *_batch(network, batch))


@lru_cache(maxsize=2)
def _model(network: Network) -> Any:
    torch.manual_seed(network.hidden)
    kind = nn.LSTM if network.cell == "lstm" else nn.GRU
    return kind(network.inputs, network.hidden, network.layers).eval().requires_grad_(False)


@lru_cache(maxsize=2)
def _batch(network: Network, batch: int) -> tuple[Tensor, NDArray[np.float64]]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(network.steps, batch, network.inputs, generator=generator)
    return x, _model(network)(x)[0].double().numpy()


def _layer(model: Any, i: int) -> list[Tensor]:
    names = (f"weight_ih_l{i}", f"weight_hh_l{i}", f"bias_ih_l{i}", f"bias_hh_l{i}")
    return [getattr(model, name) for name in names]


@lru_cache(maxsize=1)
def _contestants(network: Network, threads: int, pool: int) -> tuple[dict[str, Contestant], int, str]:
    model = _model(network)
    lstm = network.cell == "lstm"
    pack, run = (kernels.pack_lstm, kernels.lstm) if lstm else (kernels.pack_gru, kernels.gru)
    packed = [pack(*_layer(model, i)) for i in range(network.layers)]

    def ours(x: Tensor) -> Any:
        for layer in packed:
            x = run(x, layer)[0]
        return x

    contestants = {
        "torch fp32": Contestant([lambda x: model(x)[0]], EXACT),
        OURS: Contestant([ours], TOLERANCE),
    }
    for engine in ("x86", "onednn"):
        contestants[f"torch int8 {engine}"] = Contestant([_torch_int8(model, engine)], TOLERANCE)
    if installed("onnxruntime") and threads == pool:
        names = {"onnxruntime fp32": (_onnxruntime(network, False, pool), HALF)}
        if lstm:
            names["onnxruntime int8"] = (_onnxruntime(network, True, pool), TOLERANCE)
        for name, (call, tolerance) in names.items():
            contestants[name] = Contestant([call], tolerance, Tensor.numpy)
    level = packed[0].kernel.rpartition("/")[2]
    return contestants, sum(layer.nbytes for layer in packed), level


def _torch_int8(model: nn.Module, engine: str) -> Callable[[Tensor], Tensor]:
    layer = dynamic_model(nn.Sequential(model), {nn.LSTM, nn.GRU}, engine)[0]
    return lambda x: layer(x)[0]


def _onnxruntime(network: Network, int8: bool, pool: int) -> Callable[[NDArray[np.float32]], Any]:
    from onnx import helper

    lstm = network.cell == "lstm"
    order = [0, 3, 1, 2] if lstm else [1, 0, 2]  # ONNX has i o f c, and z r h
    nodes, constants, x = [], {"axes": np.array([1])}, "x"
    for i in range(network.layers):
        # one direction; the gates in ONNX's order
        arrays = [torch.cat([t.chunk(len(order))[k] for k in order]).numpy()[None] for t in _layer(_model(network), i)]
        constants |= {f"b{i}": np.concatenate(arrays[2:], 1)}
        inputs = [x, f"w{i}", f"r{i}", f"b{i}"]
        more: dict[str, Any] = {}
        if int8:
            for name, array in zip("wr", arrays[:2], strict=True):
                scale = np.abs(array).max(2) / np.float32(127)
                integers = np.rint(array / scale[..., None]).astype(np.int8)
                constants |= {f"{name}{i}": np.ascontiguousarray(integers.transpose(0, 2, 1)), f"{name}s{i}": scale}
                constants |= {f"{name}z{i}": np.zeros(scale.shape, np.int8)}
            inputs += ["", "", "", "", f"ws{i}", f"wz{i}", f"rs{i}", f"rz{i}"]
            more = {"domain": "com.microsoft"}
        else:
            constants |= {f"w{i}": arrays[0], f"r{i}": arrays[1]}
            more = {} if lstm else {"linear_before_reset": 1}
        kind = "DynamicQuantizeLSTM" if int8 else network.cell.upper()
        nodes.append(helper.make_node(kind, inputs, [f"d{i}"], hidden_size=network.hidden, **more))
        y = "y" if i + 1 == network.layers else f"y{i}"
        nodes.append(helper.make_node("Squeeze", [f"d{i}", "axes"], [y]))
        x = y
    shapes = ["steps", "batch", network.inputs], ["steps", "batch", network.hidden]
    return onnxruntime_call(onnx_model(nodes, constants, *shapes), pool)
