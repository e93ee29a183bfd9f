"""Products of signs, 64 to a word."""

# mypy: disable-error-code="no-untyped-def"
# (Numba infers the types of the kernels.)

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..reference import BinaryState, Float, Int8Array
from ..threads import run
from .activations import activate
from .compiling import as_input, inlined, kernel


@dataclass(frozen=True)
class _State(BinaryState):
    bits: NDArray[np.uint64]  # [out, words]


def pack_binary(weight: Int8Array, scale: Float, bias: Float | None) -> BinaryState:
    """Keep the integers, and their signs as bits."""
    bias = as_input(np.zeros(weight.shape[0], np.float32) if bias is None else bias.copy())
    bits = np.zeros((weight.shape[0], -(-weight.shape[1] // 64) * 8), np.uint8)
    packed = np.packbits(weight > 0, axis=1, bitorder="little")
    bits[:, : packed.shape[1]] = packed
    return _State(weight.copy(), as_input(scale.copy()), bias, as_input(bits.view(np.uint64)))


unpack_binary = reference.unpack_binary


@inlined
def _ones(word):
    """Count the bits of a word that are 1."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def _binarize(x, bits, means, first, last):
    for r in range(first, last):
        sums = np.zeros(16, np.float64)
        for start in range(0, x.shape[1], 64):
            part = x[r, start : start + 64]
            word = np.uint64(0)
            for k in range(part.size):
                if part[k] >= 0:
                    word |= np.uint64(1) << np.uint64(k)
                sums[k % 16] += np.float64(abs(part[k]))
            bits[r, start // 64] = word
        half = 8
        while half > 0:
            for l in range(half):
                sums[l] += sums[l + half]
            half //= 2
        mean = sums[0] / max(x.shape[1], 1)
        means[r] = np.float32(mean) if np.isfinite(mean) else np.float32(np.nan)


@kernel
def _outputs(a, means, bits, scale, bias, features, activation, y, first, last):
    for o in range(first, last):
        for r in range(a.shape[0]):
            count = np.int64(0)
            left, right = a[r], bits[o]
            for k in range(left.size):
                count += _ones(left[k] ^ right[k])
            y[r, o] = activate(np.float32(features - 2 * count) * (means[r] * scale[o]) + bias[o], activation)


def binary_linear(x: Float, state: BinaryState, activation: int, threads: int) -> Float:
    """``y = float(signs of x @ signs of w) * (K * alpha) + bias``, as `reference` writes it."""
    assert isinstance(state, _State)
    rows, features = x.shape
    y = np.empty((rows, state.weight.shape[0]), np.float32)
    bits, means = np.zeros((rows, state.bits.shape[1]), np.uint64), np.empty(rows, np.float32)
    run(_binarize, rows, 20 + 2.0 * features, threads, as_input(x), bits, means)
    weight = (state.bits, state.scale, state.bias, features, activation)
    run(_outputs, y.shape[1], rows * (20 + features / 60) + 1, threads, as_input(bits), as_input(means), *weight, y)
    return y
