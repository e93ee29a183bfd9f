"""The C++ kernels; arrays are checked by pycompress.kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

class _State:
    def linear(self, x: NDArray[np.float32], activation: int, threads: int) -> NDArray[np.float32]: ...
    def linear_into(self, x: int, y: int, rows: int, activation: int, threads: int) -> None: ...
    @property
    def level(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class Int8State(_State):
    def unpack(self) -> NDArray[np.int8]: ...
    @property
    def out_features(self) -> int: ...
    def into(
        self,
        x: int,
        y: int,
        rows: int,
        activation: int,
        threads: int,
        input: int,
        output: int,
        output_scale: float,
        residual: int,
    ) -> None: ...

class Int8Chain:
    def __init__(self, states: list[Int8State], activations: list[int]) -> None: ...
    def into(self, x: int, y: int, rows: int, threads: int) -> None: ...

class SparseChain:
    def __init__(self, states: list[SparseState], activations: list[int]) -> None: ...
    def into(self, x: int, y: int, rows: int, threads: int) -> None: ...

class Int4State(_State):
    def unpack(self) -> NDArray[np.int8]: ...

class BinaryState(_State):
    def unpack(self) -> NDArray[np.int8]: ...

class CodebookState(_State):
    def unpack(self) -> NDArray[np.int8]: ...

class SparseState(_State):
    def unpack(self) -> NDArray[np.float32]: ...

class Bf16State(_State):
    def unpack(self) -> NDArray[np.float32]: ...

class ConvState:
    def into(
        self,
        x: int,
        y: int,
        images: int,
        height: int,
        width: int,
        pixels: int,
        activation: int,
        threads: int,
    ) -> None: ...
    @property
    def outputs(self) -> int: ...
    @property
    def level(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class SparseConvState(ConvState):
    def unpack(self) -> NDArray[np.float32]: ...

class DenseState:
    def into(
        self,
        x: int,
        y: int,
        images: int,
        height: int,
        width: int,
        out_height: int,
        out_width: int,
        activation: int,
        threads: int,
        input: int,
        output: int,
        output_scale: float,
    ) -> None: ...
    @property
    def outputs(self) -> int: ...
    @property
    def level(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class DepthwiseState(DenseState): ...

class RecurrentState:
    def run(
        self,
        x: NDArray[np.float32],
        starts: NDArray[np.uint64],
        h: NDArray[np.float32],
        c: NDArray[np.float32],
        y: NDArray[np.float32],
        backwards: bool,
        threads: int,
    ) -> None: ...
    def run_at(
        self, x: int, steps: int, batch: int, h: int, c: int, y: int, y_stride: int, backwards: bool, threads: int
    ) -> None: ...
    def unpack(self) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8] | None]: ...
    @property
    def level(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

class CsrState:
    def __init__(
        self, starts: NDArray[np.uint64], indices: NDArray[Any], values: NDArray[Any], inner: int, isa: str
    ) -> None: ...
    def multiply(self, b: NDArray[Any], threads: int) -> NDArray[Any]: ...
    def into(self, b: int, y: int, columns: int, threads: int) -> None: ...
    def unpack(self) -> tuple[NDArray[np.uint64], NDArray[Any], NDArray[Any]]: ...
    @property
    def level(self) -> str: ...
    @property
    def nbytes(self) -> int: ...

def levels() -> list[str]: ...
def kernels() -> dict[str, list[str]]: ...
def pack_int4(
    weight: NDArray[np.int8],
    group: int,
    scale: NDArray[np.uint16] | None,
    zero_point: NDArray[np.uint8] | None,
    multiplier: NDArray[np.uint8] | None,
    channel_scale: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    int8_activations: bool,
    input_scale: float | None,
    isa: str,
) -> Int4State: ...
def pack_binary(
    weight: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32] | None, isa: str
) -> BinaryState: ...
def pack_codebook(
    codes: NDArray[np.int8],
    table: NDArray[np.int8],
    bits: int,
    group: int,
    scale: NDArray[np.uint16] | None,
    channel_scale: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
    isa: str,
) -> CodebookState: ...
def pack_int8(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
    isa: str,
    strip: int | None,
) -> Int8State: ...
def pack_recurrent(
    cell: str,
    input_weight: NDArray[np.int8],
    input_weight_scale: NDArray[np.float32],
    input_bias: NDArray[np.float32],
    input_scale: float | None,
    recurrent_weight: NDArray[np.int8],
    recurrent_scale: NDArray[np.float32],
    recurrent_bias: NDArray[np.float32],
    projection_weight: NDArray[np.int8] | None,
    projection_scale: NDArray[np.float32] | None,
    isa: str,
) -> RecurrentState: ...
def pack_sparse(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None, height: int, isa: str
) -> SparseState: ...
def pack_bf16(weight: NDArray[np.float32], bias: NDArray[np.float32] | None, isa: str) -> Bf16State: ...
def pack_conv(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    strip: int,
    isa: str,
) -> ConvState: ...
def pack_sparse_conv(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    height: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    isa: str,
) -> SparseConvState: ...
def int8_matmul(a: NDArray[np.int8], b: NDArray[np.int8], threads: int, isa: str) -> NDArray[np.int32]: ...
def quantize(
    x: NDArray[np.float32],
    q: NDArray[Any],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float32],
    low: float,
    high: float,
    inverse: bool,
    threads: int,
    isa: str,
) -> None: ...
def scores(
    x: NDArray[Any],
    height: int,
    width: int,
    g: NDArray[Any] | None,
    factor: NDArray[np.float32] | None,
    threads: int,
    isa: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def kth_magnitude(arrays: list[NDArray[Any]], k: int, threads: int, isa: str) -> tuple[float, int]: ...
def threshold(
    x: NDArray[Any],
    limit: float,
    write: bool,
    mask: NDArray[np.int8] | None,
    bitmap: NDArray[np.uint8] | None,
    threads: int,
    isa: str,
) -> int: ...
def packed_above(
    x: NDArray[Any],
    limit: float,
    mask: NDArray[np.int8] | None,
    bitmap: NDArray[np.uint8] | None,
    threads: int,
    isa: str,
) -> tuple[NDArray[np.uint8], NDArray[Any], bool]: ...
def nm_mask(x: NDArray[Any], n: int, m: int, mask: NDArray[np.int8], threads: int, isa: str) -> bool: ...
def limits(limit: str, data: NDArray[np.uint8], steps: int, threads: int, isa: str) -> float: ...
def pack_dense(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    isa: str,
) -> DenseState: ...
def pack_depthwise(
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: float | None,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    isa: str,
) -> DepthwiseState: ...
