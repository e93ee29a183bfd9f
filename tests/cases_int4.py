"""Problems of 4-bit weights; a part of cases.py, which imports it."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np

from pycompress import kernels
from pycompress.formats import Int4


def weight_only(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A problem of fp32 rows."""
    group, zero_point = int(rng.choice([32, 32, 64, 128])), bool(rng.random() < 0.5)
    weight = cases.floats(rng, outputs, inputs)
    weight = weight * np.float32(min(1.0, 1e5 / max(float(np.abs(weight).max(initial=0)), 1e-9)))  # float16 scales
    problem = {"x": cases.floats(rng, rows, inputs), "weight": weight, "format": Int4(group, zero_point)}
    if rng.random() < 0.3:
        side = outputs, -(-inputs // group)
        low = 0 if zero_point else -8
        problem["weight"] = rng.integers(low, low + 16, weight.shape).astype(np.int8)
        problem["scale"] = rng.normal(size=side).astype(np.float16)
        problem["zero_point"] = rng.integers(0, 16, side).astype(np.uint8) if zero_point else None
    problem["bias"] = cases.floats(rng, outputs) if rng.random() < 0.5 else None
    problem["activation"] = cases.activation(rng)
    return problem


def quantized(rng: np.random.Generator, rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """A problem of int8 rows, also with integer scales."""
    problem = weight_only(rng, rows, inputs, outputs)
    group = problem["format"].group
    problem["format"] = Int4(group, problem["format"].zero_point, activations="int8")
    if not problem["format"].zero_point and rng.random() < 0.6:
        problem["format"] = Int4(group, scales="int", activations="int8")
        if "scale" in problem:
            side = outputs, -(-inputs // group)
            problem["scale"] = rng.uniform(1e-3, 1, outputs).astype(np.float32)
            problem["multiplier"] = rng.integers(1, 16, side).astype(np.uint8)
    largest = max(float(np.abs(problem["x"]).max(initial=0)), 1e-20)
    problem["input_scale"] = largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.4 else None
    return problem


def _weight(problem: dict[str, Any]) -> np.ndarray:
    keys = ("weight", "format", "scale", "zero_point")
    with kernels.use_backend("reference"):
        return kernels.pack(**{key: problem.get(key) for key in keys}).unpack()


def truth(problem: dict[str, Any]) -> np.ndarray:
    """The product in float64."""
    return cases.float_truth(problem | {"weight": _weight(problem)})


def tolerance(problem: dict[str, Any], expected: np.ndarray) -> np.ndarray:
    """What fp32 sums may lose."""
    return cases.float_tolerance(problem | {"weight": _weight(problem)}, expected)
