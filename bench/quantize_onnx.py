"""Let ONNX Runtime quantize a model statically: python bench/quantize_onnx.py FLOAT.onnx BATCH.npy INT8.onnx

Activations uint8 per tensor, weights int8 per channel, QDQ form. In a process of its own, since the tool opens sessions
with threads of their own, which ONNX Runtime refuses in a process that has set up one pool for all.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Images(CalibrationDataReader):  # type: ignore[misc]
    """One batch."""

    def __init__(self, path: str) -> None:
        self.batches = iter([{"x": np.load(path)}])

    def get_next(self) -> Any:
        """Return the batch, then None."""
        return next(self.batches, None)


def main(model: str, batch: str, quantized: str) -> None:
    """Quantize a file into another."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(model, prepared, skip_symbolic_shape=True)  # pads move into the convolutions
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, quantized, Images(batch), per_channel=True, **types)


if __name__ == "__main__":
    main(*sys.argv[1:])
