"""The kernels alone, on NumPy arrays: prune a weight by a threshold, pack it, multiply with it. No torch needed.

python examples/numpy_kernels.py
"""

import numpy as np

from pycompress import kernels
from pycompress.formats import Int8, Sparse

rng = np.random.default_rng(0)
weight = rng.standard_normal((768, 3072), dtype=np.float32)  # [out_features, in_features]
bias = np.zeros(768, np.float32)
x = rng.standard_normal((8, 3072), dtype=np.float32)  # [rows, in_features]

# Keep the largest 10 % of the weights: the threshold is the magnitude that 90 % do not pass.
threshold = kernels.kth_magnitude([weight], round(0.9 * weight.size))
zeros = kernels.apply_threshold(weight, threshold)  # in place
print(f"threshold {threshold:.3f} sets {zeros:,} of {weight.size:,} weights to zero")

expected = x @ weight.T + bias
for format in (Sparse(), Int8()):
    packed = kernels.pack(weight, format, bias)
    y = kernels.linear(x, packed)
    error = np.abs(y - expected).max() / np.abs(expected).max()
    memory = packed.nbytes / weight.nbytes
    print(f"{format}: {memory:.0%} of the memory, largest error {error:.1e}, runs {packed.kernel}")
