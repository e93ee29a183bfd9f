"""Activations: one formula in float64 for every backend and level, rounded to float32 at the end (below 0.51 ulp).

The steps are those of `csrc/activation.inc`, in the same order and without fused operations, so that all agree bit for
bit.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

CODES: dict[str | None, int] = {None: 0, "relu": 1, "gelu": 2, "silu": 3, "tanh": 4, "sigmoid": 5, "relu6": 6}
"""What the kernels call each activation."""

MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits
EXP = (1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0)
TAIL = (
    -0.01510272228078171,
    0.10860416793729127,
    -0.31013657202292094,
    0.4377062975274508,
    -0.3591466772799327,
    0.2745903329997206,
    -0.03434689749815412,
    0.1100343906037435,
    0.08760102705464888,
    0.10052027307403806,
    0.09967424788696826,
    2.1322089298614344e-06,
)
"""1 - Phi(a) = e^(-a^2 / 2) * P(1 / (1 + a / 4)), relative error 4e-10 on [0, 16]; highest power first."""

Double = NDArray[np.float64]


def _exp_parts(x: Double) -> tuple[Double, Double]:
    """For |x| <= 110: ``e^r - 1`` and ``2^n``, with ``x = n ln 2 + r``."""
    shifted = x * 1.4426950408889634 + MAGIC
    r = x - (shifted - MAGIC) * 0.6931471805599453
    power = ((shifted.view(np.uint64) << np.uint64(52)) + np.uint64(0x3FF0000000000000)).view(np.float64)
    p = r * EXP[0] + EXP[1]
    for coefficient in EXP[2:]:
        p = p * r + coefficient
    return p * r, power


def _exp(x: Double) -> Double:
    part, power = _exp_parts(x)
    return power * part + power


def _relu(x: Double) -> Double:
    return np.where(x < 0, 0.0, x)


def _gelu(x: Double) -> Double:
    a = np.minimum(np.abs(x), 14.8)  # from there on the result is max(x, 0) in float32
    t = 1.0 / (a * 0.25 + 1.0)
    p = t * TAIL[0] + TAIL[1]
    for coefficient in TAIL[2:]:
        p = p * t + coefficient
    return np.where(x > 0, x, 0.0) - a * (p * _exp(a * a * -0.5))


def _silu(x: Double) -> Double:
    x = np.maximum(x, -110.0)
    return x / (1.0 + _exp(np.clip(-x, -110.0, 110.0)))


def _tanh(x: Double) -> Double:
    part, power = _exp_parts(np.clip(x, -20.0, 20.0) * 2.0)
    e = power * part + (power - 1.0)
    return e / (e + 2.0)


def _sigmoid(x: Double) -> Double:
    return 1.0 / (1.0 + _exp(np.clip(-x, -110.0, 110.0)))


def _relu6(x: Double) -> Double:
    x = np.where(x < 0, 0.0, x)
    return np.where(x > 6, 6.0, x)


_FUNCTIONS = {1: _relu, 2: _gelu, 3: _silu, 4: _tanh, 5: _sigmoid, 6: _relu6}


def activate(y: NDArray[np.float32], activation: int) -> NDArray[np.float32]:
    """Apply an activation (a value of `CODES`) to y, any shape; NaN stays NaN."""
    if activation == 0:
        return y
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return cast("NDArray[np.float32]", _FUNCTIONS[activation](y.astype(np.float64)).astype(np.float32))
