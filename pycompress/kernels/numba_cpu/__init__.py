"""The kernels compiled by Numba: speed where no C++ compiler was at hand.

The names are those of `reference`. Every kernel takes a range of items (rows, tiles, chunks), so that Python threads
share the work: `parallel=True` is never used, because its OpenMP layer hangs in forked children and its workqueue layer
aborts under concurrent callers. No kernel uses fast math: what a row computes depends neither on the number of
threads nor on the rows beside it, and int8 and quantization give the bits of `reference`.

Inputs are handed to Numba read-only and aligned, so that each kernel is compiled once. Inner loops count from 0 (over
slices): Numba tests other indices for being negative, and such a loop is not vectorised.
"""

from .bf16 import bf16_linear, pack_bf16, unpack_bf16
from .binary import binary_linear, pack_binary, unpack_binary
from .codebook import codebook_linear, pack_codebook, unpack_codebook
from .convolution import (
    int8_conv,
    int8_conv_last,
    pack_conv,
    pack_conv_last,
    pack_sparse_conv,
    sparse_conv,
    unpack_sparse_conv,
)
from .int4 import int4_linear, pack_int4, unpack_int4
from .matmul import (
    int8_linear,
    int8_matmul,
    pack_int8,
    pack_sparse,
    sparse_linear,
    unpack_int8,
    unpack_sparse,
)
from .recurrent import int8_recurrent, pack_recurrent, unpack_recurrent
from .selection import above, apply_threshold, block_norms, kth_magnitude, nm_mask
from .sparse import pack_csr, spmm, unpack_csr
from .vectors import dequantize, quantize

__all__ = [
    "above",
    "apply_threshold",
    "bf16_linear",
    "binary_linear",
    "block_norms",
    "codebook_linear",
    "dequantize",
    "int4_linear",
    "int8_conv",
    "int8_conv_last",
    "int8_linear",
    "int8_matmul",
    "int8_recurrent",
    "kth_magnitude",
    "nm_mask",
    "pack_bf16",
    "pack_binary",
    "pack_codebook",
    "pack_conv",
    "pack_conv_last",
    "pack_csr",
    "pack_int4",
    "pack_int8",
    "pack_recurrent",
    "pack_sparse",
    "pack_sparse_conv",
    "quantize",
    "sparse_conv",
    "sparse_linear",
    "spmm",
    "unpack_bf16",
    "unpack_binary",
    "unpack_codebook",
    "unpack_csr",
    "unpack_int4",
    "unpack_int8",
    "unpack_recurrent",
    "unpack_sparse",
    "unpack_sparse_conv",
]
