"""Problems of the operations lstm and gru; cases.py lists them."""

from typing import Any

import cases
import numpy as np

from pycompress import kernels

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "scale_ih", "scale_hh", "scale_hr")


def make(cell: str, rng: np.random.Generator, rows: int, inputs: int, hidden: int) -> dict[str, Any]:
    """A sequence of about `rows` rows, whole or packed, either way, from zeros or from a state."""
    gates = 4 if cell == "lstm" else 3
    out = int(rng.integers(1, hidden + 1)) if cell == "lstm" and hidden and rng.random() < 0.3 else hidden
    steps = int(rng.integers(0 if rows == 0 else 1, 5))
    batch = rows // max(steps, 1)
    batch_sizes = None
    if rng.random() < 0.3 and batch:
        batch_sizes = tuple(int(n) for n in sorted(rng.integers(1, batch + 1, steps), reverse=True))
    shape = (steps, batch, inputs) if batch_sizes is None else (sum(batch_sizes), inputs)
    batch = batch if batch_sizes is None else batch_sizes[0]
    problem: dict[str, Any] = {"cell": cell, "x": cases.floats(rng, *shape) if steps else np.zeros(shape, np.float32)}
    shapes = {"weight_ih": (gates * hidden, inputs), "weight_hh": (gates * hidden, out)}
    if cell == "lstm":
        shapes["weight_hr"] = (out, hidden)
    integers = rng.random() < 0.3
    for name, shape in shapes.items():
        scale = name.replace("weight", "scale")
        problem[name], problem[scale] = _spread(rng, shape, 4 / max(shape[1], 1) ** 0.5), None
        if integers:
            problem[name] = rng.integers(-128, 128, shape).astype(np.int8)
            problem[scale] = rng.uniform(0.01, 0.03, shape[0]).astype(np.float32)
    if rng.random() < 0.4:  # pruned, in blocks or one by one: such weights are kept sparse
        for name, shape in shapes.items():
            block = [(16, 4), (32, 8), (1, 1)][rng.integers(3)]
            kept = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) < rng.choice([0, 0.1, 0.3])
            problem[name][~np.kron(kept, np.ones(block, bool))[: shape[0], : shape[1]]] = 0
    if out == hidden and cell == "lstm":
        problem["weight_hr"] = problem["scale_hr"] = None
    for name in ("bias_ih", "bias_hh"):
        problem[name] = _spread(rng, (gates * hidden,), 1) if rng.random() < 0.5 else None
    largest = max(float(np.abs(problem["x"]).max(initial=0)), 1e-20)
    problem["input_scale"] = largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.4 else None
    given = rng.random() < 0.5
    problem["h"] = _spread(rng, (batch, out), 1) if given else None
    problem["c"] = _spread(rng, (batch, hidden), 3) if given and cell == "lstm" else None
    return problem | {"batch_sizes": batch_sizes, "backwards": bool(rng.random() < 0.5)}


def _spread(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> np.ndarray:
    """Random floats that leave gates in the range where they matter; some layouts are not contiguous."""
    array = (rng.standard_normal(shape) * size).astype(np.float32)
    return np.asfortranarray(array) if rng.random() < 0.2 else array


def pack(problem: dict[str, Any]) -> kernels.PackedRecurrent:
    """The packed weights of a problem."""
    function = kernels.pack_lstm if problem["cell"] == "lstm" else kernels.pack_gru
    return function(input_scale=problem["input_scale"], **{name: problem[name] for name in WEIGHTS if name in problem})


def run(problem: dict[str, Any]) -> tuple[Any, ...]:
    """Outputs and final states."""
    packed, how = pack(problem), {"batch_sizes": problem["batch_sizes"], "backwards": problem["backwards"]}
    if problem["cell"] == "gru":
        return tuple(kernels.gru(problem["x"], packed, problem["h"], **how))
    state = None if problem["h"] is None else (problem["h"], problem["c"])
    y, (h, c) = kernels.lstm(problem["x"], packed, state, **how)
    return y, h, c


def truth(problem: dict[str, Any]) -> tuple[Any, ...]:
    """The same by the reference."""
    with kernels.use_backend("reference"):
        return run(problem)
