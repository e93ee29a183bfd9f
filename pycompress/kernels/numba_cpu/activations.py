"""Activations: the formulas of `reference.activations`, step by step, for one value."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

import numpy as np

from ..reference.activations import EXP, MAGIC, TAIL
from .compiling import function


@function
def _exp_parts(x):
    shifted = x * 1.4426950408889634 + MAGIC
    r = x - (shifted - MAGIC) * 0.6931471805599453
    bits = np.float64(shifted).view(np.uint64)
    bits = (bits << np.uint64(52)) + np.uint64(0x3FF0000000000000)
    power = np.uint64(bits).view(np.float64)
    p = r * EXP[0] + EXP[1]
    for i in range(2, len(EXP)):
        p = p * r + EXP[i]
    return p * r, power


@function
def _exp(x):
    part, power = _exp_parts(x)
    return power * part + power


@function
def _clamp(x, limit):
    top = limit if x > limit else x
    return -limit if top < -limit else top


@function
def _gelu(x):
    a = abs(_clamp(x, 14.8))
    t = 1.0 / (a * 0.25 + 1.0)
    p = t * TAIL[0] + TAIL[1]
    for i in range(2, len(TAIL)):
        p = p * t + TAIL[i]
    return (0.0 if x < 0.0 else x) - a * (p * _exp(a * a * -0.5))


@function
def _tanh(x):
    part, power = _exp_parts(_clamp(x, 20.0) * 2.0)
    e = power * part + (power - 1.0)
    return e / (e + 2.0)


@function
def activate(y, activation):
    """Apply an activation (a value of `reference.activations.CODES`) to one float32; NaN stays NaN."""
    if activation == 0:
        return y
    if activation == 1:
        return np.float32(0) if y < 0 else y
    if activation == 6:
        return np.float32(0) if y < 0 else np.float32(6) if y > 6 else y
    x = np.float64(y)
    if activation == 2:
        x = _gelu(x)
    elif activation == 3:
        x = (-110.0 if x < -110.0 else x) / (1.0 + _exp(_clamp(-x, 110.0)))
    elif activation == 4:
        x = _tanh(x)
    else:
        x = 1.0 / (1.0 + _exp(_clamp(-x, 110.0)))
    return np.float32(x)
