"""Chains, recurrent and 4-bit layers, convolutions: `pytest bench/bench_operations.py --benchmark-group-by=group`.

As in bench_kernels.py; every contestant of a case is checked once, before the first of them is timed. peers.py has the
whole list of convolutions, here are a few.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import chains
import convolutions
import int4
import measure
import networks
import pytest
import recurrent
import small
from measure import OURS

pytestmark = pytest.mark.benchmark(max_time=0.1, min_rounds=5)

FLOAT = [OURS, "torch fp32", "torch bf16"]
READERS = ["onnxruntime int8", "openvino int8"]
DYNAMIC = ["torch int8 x86", "torch int8 onednn"]
INT4 = ["pycompress Int8", "torch int4 bf16", "onnxruntime int4 level 0", "onnxruntime int4 level 4"]


@lru_cache(maxsize=1)
def _calls(make: Callable[..., dict[str, Callable[[], object]]], *case: Any) -> dict[str, Callable[[], object]]:
    return make(*case)


def _run(compared: Any, group: str, name: str, threads: int, make: Any, *case: Any) -> None:
    with measure.threads(threads):
        calls = _calls(make, *case)
    if name not in calls:
        pytest.skip(f"{name} is not installed, has no such operation, or no pool of {threads} threads here")
    compared(f"{group} threads={threads}", calls, name, threads, "torch fp32")


@pytest.mark.parametrize("name", [*FLOAT, *DYNAMIC, *READERS])
@pytest.mark.parametrize("format", chains.FORMATS)
def test_ffn(name: str, format: str, rows: int, threads: int, pool: int, compared: Any) -> None:
    group = f"ffn {format} rows={rows}"
    _run(compared, group, name, threads, chains.check_calls, format, rows, threads, pool)


@pytest.mark.parametrize("name", [OURS, "torch fp32", *DYNAMIC, "onnxruntime fp32", "onnxruntime int8"])
@pytest.mark.parametrize("network", recurrent.NETWORKS, ids="{0.cell}-{0.inputs}-{0.hidden}-{0.layers}".format)
def test_rnn(name: str, network: recurrent.Network, sequences: int, threads: int, pool: int, compared: Any) -> None:
    sizes = f"{network.cell}({network.inputs}, {network.hidden}) x {network.layers}, {network.steps} steps"
    group = f"rnn {sizes} batch={sequences}"
    _run(compared, group, name, threads, recurrent.check_calls, network, sequences, threads, pool)


@pytest.mark.parametrize("name", [*FLOAT, *INT4])
@pytest.mark.parametrize("activations", int4.ACTIVATIONS)
@pytest.mark.parametrize("size", int4.GROUPS)
def test_int4_linear(
    name: str,
    activations: str,
    size: int,
    rows: int,
    threads: int,
    shape: tuple[int, int],
    pool: int,
    compared: Any,
) -> None:
    group = f"int4_linear {shape[0]}x{shape[1]} group={size} {activations} rows={rows}"
    _run(compared, group, name, threads, int4.check_calls, shape, size, activations, rows, threads, pool)


@pytest.mark.parametrize("name", [OURS, "torch fp32", "pycompress Int8", "pycompress Int4"])
@pytest.mark.parametrize("format", small.FORMATS, ids=repr)
def test_small_linear(
    name: str, format: Any, rows: int, threads: int, shape: tuple[int, int], pool: int, compared: Any
) -> None:
    group = f"small_linear {shape[0]}x{shape[1]} {format} rows={rows}"
    _run(compared, group, name, threads, small.check_calls, shape, format, rows, threads, pool)


@pytest.mark.parametrize("name", [OURS, "torch fp32", *READERS])
@pytest.mark.parametrize("layer", convolutions.CORNERS)
def test_int8_conv(name: str, layer: str, images: int, threads: int, pool: int, compared: Any) -> None:
    found = [convolution for convolution in convolutions.convolutions() if convolution.name == layer]
    if not found:
        pytest.skip("the network's package is not installed")
    group = f"int8_conv {found[0].model} {layer} batch={images}"
    _run(compared, group, name, threads, convolutions.check_calls, found[0], images, threads, pool)


@pytest.mark.parametrize("name", [OURS, "torch fp32", *READERS])
@pytest.mark.parametrize("network", ["LeNet-5", "EfficientNet-Lite0"])
def test_network(name: str, network: str, images: int, threads: int, pool: int, checking: bool, compared: Any) -> None:
    if network not in networks.networks():
        pytest.skip("the network's package is not installed")
    if checking and network != "LeNet-5":
        pytest.skip("packing it by measurement takes too long for a check")
    group = f"{network}, static int8, batch={images}"
    _run(compared, group, name, threads, networks.check_calls, network, images, threads, pool)
