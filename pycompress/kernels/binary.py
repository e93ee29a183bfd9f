"""Weights of signs: checked, or taken from floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats import Binary
from . import arrays
from .arrays import ArrayLike
from .reference import CodebookParts


def parts(weight: NDArray[Any], format: Binary, scale: ArrayLike | None) -> CodebookParts:
    """Return what a weight of signs is made of; ``kernels.pack`` describes the arguments.

    Parameters
    ----------
    weight : [out, in] float32, finite, or int8
    format : Binary
    scale : as given to ``pack``

    Returns
    -------
    CodebookParts

    Raises
    ------
    TypeError, ValueError
        When they do not fit the format or each other.

    Examples
    --------
    >>> found = parts(np.array([[-2.0, 1.0, 0.0]], np.float32), Binary(), None)
    >>> found.weight, found.channel_scale
    (array([[-1,  1,  1]], dtype=int8), array([1.], dtype=float32))
    """
    outputs, inputs = weight.shape
    if scale is None:
        mean = np.abs(weight).sum(axis=1, dtype=np.float64) / max(inputs, 1)
        alpha = mean.astype(np.float32)
    else:
        alpha = np.asarray(scale, np.float32) if isinstance(scale, (int, float)) else arrays.float32(scale, "scale")
        arrays.finite(alpha, "scale")
        if alpha.size == 1:
            alpha = np.broadcast_to(alpha.reshape(1), (outputs,))
        if alpha.shape != (outputs,):
            raise ValueError(f"scale must have shape ({outputs},), got {alpha.shape}")
        if not (alpha >= 0).all():
            raise ValueError(f"scale must not be negative, got {float(alpha.min())}")
        alpha = np.abs(alpha).astype(np.float32)
    if weight.dtype == np.int8:
        wrong = (weight != 1) & (weight != -1)
        if wrong.any():
            raise ValueError(f"weight must hold -1 and 1 for {format}, got {int(weight[wrong][0])}")
        integers = np.ascontiguousarray(weight)
    else:
        integers = np.where(weight >= 0, np.int8(1), np.int8(-1))
    return CodebookParts(integers, 1, max(inputs, 1), None, np.ascontiguousarray(alpha))
