"""The truth: every kernel in plain NumPy, in float64 or int64, rounded at the end.

int8 follows its written fp32 formula step by step, so that all other implementations can be compared with it bit for
bit. The names are those of `numba_cpu` and `native`; `ops.py` checks arguments before it calls any of them.
"""

from .bf16 import Bf16State, bf16_linear, pack_bf16, to_bfloat16, unpack_bf16
from .binary import BinaryState, binary_linear, pack_binary, unpack_binary
from .codebook import CodebookParts, CodebookState, codebook_linear, pack_codebook, unpack_codebook
from .convolution import ConvState, int8_conv, int8_conv_last, pack_conv, pack_conv_last
from .int4 import Int4Parts, Int4State, int4_linear, pack_int4, unpack_int4
from .matmul import (
    DTYPES,
    ZERO_ROW,
    Float,
    Int8Array,
    Int8State,
    Output,
    SparseState,
    as_output,
    int8_linear,
    int8_matmul,
    pack_int8,
    pack_sparse,
    quantize_rows,
    sparse_linear,
    unpack_int8,
    unpack_sparse,
)
from .recurrent import GATES, Cell, RecurrentState, Starts, int8_recurrent, pack_recurrent, unpack_recurrent
from .selection import Above, Narrow, above, apply_threshold, block_norms, kth_magnitude, nm_mask
from .sparse import CsrState, pack_csr, spmm, unpack_csr
from .vectors import dequantize, quantize

__all__ = [
    "DTYPES",
    "GATES",
    "ZERO_ROW",
    "Above",
    "Bf16State",
    "BinaryState",
    "Cell",
    "CodebookParts",
    "CodebookState",
    "ConvState",
    "CsrState",
    "Float",
    "Int4Parts",
    "Int4State",
    "Int8Array",
    "Int8State",
    "Narrow",
    "Output",
    "RecurrentState",
    "SparseState",
    "Starts",
    "above",
    "apply_threshold",
    "as_output",
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
    "quantize",
    "quantize_rows",
    "sparse_linear",
    "spmm",
    "to_bfloat16",
    "unpack_bf16",
    "unpack_binary",
    "unpack_codebook",
    "unpack_csr",
    "unpack_int4",
    "unpack_int8",
    "unpack_recurrent",
    "unpack_sparse",
]
