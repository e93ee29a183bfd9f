"""Problems of int8 weights that are kept sparse; a part of cases.py, which imports it."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import numpy as np

from pycompress import kernels
from pycompress.formats import BLOCKS, Int8, Sparse


def weight(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[np.ndarray, Sparse]:
    """An int8 weight with zeros, often in blocks, and a format, often of those very blocks."""
    block, other = (BLOCKS[Int8][i] for i in rng.integers(0, len(BLOCKS[Int8]), 2))
    kept = rng.random((-(-outputs // block[0]), -(-inputs // block[1]))) < rng.choice([0, 0.05, 0.2, 0.5, 0.9, 1])
    integers = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    integers[~np.kron(kept, np.ones(block, bool))[:outputs, :inputs]] = 0
    return integers, Sparse(block if rng.random() < 0.7 else other, Int8())


def make(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A layer, sometimes with a residual and int8 outputs."""
    integers, format = weight(rng, outputs, inputs)
    x = cases.floats(rng, rows, inputs)
    largest = max(float(np.abs(x).max(initial=0)), 1e-20)
    problem: dict[str, Any] = {
        "x": x,
        "weight": integers,
        "format": format,
        "scale": rng.uniform(1e-3, 1, outputs).astype(np.float32),
        "bias": cases.floats(rng, outputs) if rng.random() < 0.5 else None,
        "input_scale": largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.4 else None,
        "activation": cases.activation(rng),
    }
    if rng.random() < 0.3:
        problem["residual"] = cases.floats(rng, rows, outputs)
        problem["output_scale"] = 0.05 if rng.random() < 0.5 else None
    return problem


def truth(problem: dict[str, Any]) -> Any:
    """The dense layer of the reference."""
    with kernels.use_backend("reference"):
        return cases.run_linear({**problem, "format": Int8()})


def make_chain(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """Layers of which some are dense."""
    widths = [inputs, *(int(width) for width in rng.integers(1, 70, rng.integers(0, 3))), outputs]
    layers = []
    for before, after in itertools.pairwise(widths):
        layer = make(rng, 1, before, after)
        layer["format"] = Int8() if rng.random() < 0.3 else layer["format"]
        layers.append({key: layer[key] for key in ("weight", "format", "scale", "bias", "input_scale", "activation")})
    return {"x": cases.floats(rng, rows, inputs), "layers": layers}


def run_chain(problem: dict[str, Any]) -> Any:
    """Pack and run."""
    arguments = [{key: value for key, value in layer.items() if key != "activation"} for layer in problem["layers"]]
    packed = [kernels.pack(**each) for each in arguments]
    return kernels.linear_chain(problem["x"], packed, [layer["activation"] for layer in problem["layers"]])


def chain_truth(problem: dict[str, Any]) -> Any:
    """The dense layers of the reference."""
    with kernels.use_backend("reference"):
        return run_chain({**problem, "layers": [{**layer, "format": Int8()} for layer in problem["layers"]]})
