"""Layers that are so small that int8 gains no time: what ``quantize_dynamic`` goes by where it cannot measure.

Bounds of sizes, not times: they are the same on every machine, so that the same model is quantized to the same layers
everywhere. ``python bench/drop_in.py --sizes`` shows what they come from.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .linears import is_conv1d

LINEAR = 2048
"""Weights of a linear layer."""

OUTPUTS, INPUTS = 8, 16
"""Of a linear layer: each input is rounded, and each output scaled, for few multiplications."""

ENCODER = 128 * 1024
"""Weights of one linear layer of an encoder layer on its fused path, which it has to leave."""

LSTM, HIDDEN = 32, 16
"""Hidden units of an nn.LSTM, whose float form is that of oneDNN, and of nn.GRU and cells."""

CELL = 16 * 1024
"""Weights of an nn.RNNCell."""


def too_small(layer: nn.Module) -> str:
    """Return why a layer of this size gains nothing from int8, or "".

    Examples
    --------
    >>> too_small(nn.Linear(1024, 1024)), too_small(nn.Linear(16, 16))
    ('', 'at 16 x 16 weights int8 gains no time')
    """
    if isinstance(layer, nn.TransformerEncoderLayer):
        outputs, inputs = layer.linear1.out_features, layer.linear1.in_features
        if outputs * inputs < ENCODER:
            return f"at {outputs} x {inputs} weights int8 gains less time than its encoder layer's fused path does"
        return ""
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        hidden = layer.hidden_size
        weights = hidden * (layer.input_size + hidden)
        few = hidden < (LSTM if isinstance(layer, nn.LSTM) else HIDDEN)
        small = few or (isinstance(layer, nn.RNNCell) and weights < CELL)
        return f"at {layer.input_size} inputs and {hidden} hidden units int8 gains no time" if small else ""
    if not isinstance(layer, nn.Linear) and not is_conv1d(layer):
        return ""
    outputs, inputs = cast(Tensor, layer.weight).shape
    if outputs * inputs < LINEAR or outputs < OUTPUTS or inputs < INPUTS:
        return f"at {outputs} x {inputs} weights int8 gains no time"
    return ""
