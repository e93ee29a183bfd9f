"""Problems of weights of few bits; a part of cases.py, which imports it."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np

from pycompress.formats import Binary, Codebook


def make(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A problem of a table, with a weight to find it for or one that has few integers already."""
    format = Codebook(int(rng.choice([2, 4])), int(rng.choice([32, 32, 64, 128])))
    weight = cases.floats(rng, outputs, inputs)
    weight = weight * np.float32(min(1.0, 1e5 / max(float(np.abs(weight).max(initial=0)), 1e-9)))  # float16 scales
    problem: dict[str, Any] = {"x": cases.floats(rng, rows, inputs), "weight": weight, "format": format}
    if rng.random() < 0.7:
        table = rng.choice(np.arange(-127, 128), int(rng.integers(1, 2**format.bits + 1)), replace=False)
        if rng.random() < 0.3:
            table[0] = rng.choice([-127, 127])
        problem["weight"] = rng.choice(table, weight.shape).astype(np.int8)
        problem["scale"] = rng.normal(0, 0.01, (outputs, -(-inputs // format.group))).astype(np.float16)
    return _completed(rng, problem)


def binary(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A problem of signs, with int8 rows."""
    weight = cases.floats(rng, outputs, inputs, density=float(rng.choice([0.5, 1])))
    problem: dict[str, Any] = {"x": cases.floats(rng, rows, inputs), "weight": weight, "format": Binary()}
    if rng.random() < 0.5:
        problem["weight"] = rng.choice(np.array([-1, 1], np.int8), weight.shape)
        problem["scale"] = rng.uniform(0, 1, outputs).astype(np.float32)
    return _completed(rng, problem)


def signs(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A problem of signs, with rows of signs."""
    problem = binary(rng, rows, inputs, outputs) | {"format": Binary("binary"), "input_scale": None}
    if rng.random() < 0.3:
        problem["x"] = problem["x"] * rng.choice(np.array([0, -0.0, 1], np.float32), problem["x"].shape)
    return problem


def _completed(rng: np.random.Generator, problem: dict[str, Any]) -> dict[str, Any]:
    problem["bias"] = cases.floats(rng, len(problem["weight"])) if rng.random() < 0.5 else None
    problem["activation"] = cases.activation(rng)
    largest = max(float(np.abs(problem["x"]).max(initial=0)), 1e-20)
    problem["input_scale"] = largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.4 else None
    return problem
