"""Kernels on NumPy arrays and torch CPU tensors: pack a weight once, multiply with it often.

Needs NumPy alone. A torch tensor is used without a copy, and the result is then a torch tensor too.

Examples
--------
>>> import numpy as np
>>> from pycompress import kernels
>>> from pycompress.formats import Int8
>>> weight = np.array([[1.0, -2.0, 0.5]], np.float32)
>>> packed = kernels.pack(weight, Int8())
>>> kernels.linear(np.array([[1.0, 1.0, 2.0]], np.float32), packed).round(1)
array([[0.]], dtype=float32)
"""

from .backends import (
    available_backends,
    backend_name,
    get_num_threads,
    isa_levels,
    isa_name,
    set_num_threads,
    use_backend,
    use_isa,
)
from .blocks import find_block
from .convolution import PackedConv, pack_conv
from .convolving import conv
from .ops import int8_matmul, linear, linear_chain
from .packed import PackedWeight, pack
from .recurrent import PackedRecurrent, gru, lstm, pack_gru, pack_lstm
from .selection import Kept, Norms, above, apply_threshold, kth_magnitude, l1_scores, l2_scores, nm_mask, norms
from .sparse import PackedCSR, pack_csr, spmm
from .uniform import Quantized, dequantize, quantize

__all__ = [
    "Kept",
    "Norms",
    "PackedCSR",
    "PackedConv",
    "PackedRecurrent",
    "PackedWeight",
    "Quantized",
    "above",
    "apply_threshold",
    "available_backends",
    "backend_name",
    "conv",
    "dequantize",
    "find_block",
    "get_num_threads",
    "gru",
    "int8_matmul",
    "isa_levels",
    "isa_name",
    "kth_magnitude",
    "l1_scores",
    "l2_scores",
    "linear",
    "linear_chain",
    "lstm",
    "nm_mask",
    "norms",
    "pack",
    "pack_conv",
    "pack_csr",
    "pack_gru",
    "pack_lstm",
    "quantize",
    "set_num_threads",
    "spmm",
    "use_backend",
    "use_isa",
]
