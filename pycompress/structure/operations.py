"""Which modules, functions and methods keep the channels of a tensor apart, and how: the tables of the rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import padding

from ..selection import LAYERS

GATES: dict[Any, int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}
"""Recurrent modules, and how many rows of their weights belong to one hidden unit."""
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
LOSERS = (*LAYERS, *TRANSPOSED, *GATES, *TABLES, nn.MultiheadAttention)
"""Modules that lose some of what they give."""
BLOCKS = (
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.Transformer,
)  # fmt: skip
"""Modules of torch that have layers inside, and are followed as a whole."""
PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.PReLU)
NORMALIZATIONS = (nn.LayerNorm, nn.RMSNorm)
ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softplus, nn.Softsign,
    nn.Threshold,
)  # fmt: skip
PADDING = (padding._ConstantPadNd, padding._ReflectionPadNd, padding._ReplicationPadNd, padding._CircularPadNd)
RESHAPING = (nn.Flatten, nn.Unflatten)
ALONG = (nn.Softmax, nn.LogSoftmax)
POOLING = {
    nn.MaxPool1d: 1, nn.AvgPool1d: 1, nn.LPPool1d: 1, nn.LPPool2d: 2, nn.AdaptiveMaxPool1d: 1, nn.AdaptiveAvgPool1d: 1,
    nn.MaxPool2d: 2, nn.AvgPool2d: 2, nn.AdaptiveMaxPool2d: 2, nn.AdaptiveAvgPool2d: 2,
}  # fmt: skip
"""Modules that work along the last dimensions, and along how many."""

KNOWN = (*PER_CHANNEL, nn.GroupNorm, *NORMALIZATIONS, *ELEMENTWISE, *PADDING, *RESHAPING, *ALONG, *POOLING, nn.Upsample)

ELEMENTWISE_CALLS: frozenset[Any] = frozenset({
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.selu_,
    F.celu, F.gelu, F.silu, F.mish, F.sigmoid, torch.sigmoid, F.logsigmoid, F.tanh, torch.tanh, F.hardtanh,
    F.hardsigmoid, F.hardswish, F.softplus, F.softsign, F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout,
    torch.dropout, torch.abs, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.square, torch.neg, torch.clamp,
    torch.erf, torch.sin, torch.cos, operator.neg, torch.pow, operator.pow,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.maximum, torch.minimum,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "exp", "log", "sqrt", "rsqrt", "square", "neg",
    "clamp", "clamp_", "erf", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum",
    "expand_as", "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "cpu", "masked_fill",
    torch.masked_fill, torch.where, torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like,
})  # fmt: skip
"""Of one tensor, or of several that are broadcast against each other."""

POOLING_CALLS: dict[Any, int] = {
    F.max_pool1d: 1, F.avg_pool1d: 1, F.adaptive_max_pool1d: 1, F.adaptive_avg_pool1d: 1, torch.max_pool1d: 1,
    F.max_pool2d: 2, F.avg_pool2d: 2, F.adaptive_max_pool2d: 2, F.adaptive_avg_pool2d: 2, torch.max_pool2d: 2,
}  # fmt: skip
RESHAPING_CALLS: frozenset[Any] = frozenset({
    "flatten", "view", "reshape", "unflatten", "expand", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "swapaxes", "movedim", "repeat", "repeat_interleave", torch.repeat_interleave, "flip", torch.flip,
    torch.flatten, torch.reshape, torch.unflatten, torch.permute, torch.transpose, torch.t, torch.squeeze,
    torch.unsqueeze, torch.swapaxes, torch.movedim,
})  # fmt: skip
REDUCTIONS: frozenset[Any] = frozenset({"mean", "sum", "amax", "amin", torch.mean, torch.sum, torch.amax, torch.amin})
ALONG_CALLS: frozenset[Any] = frozenset({
    "softmax", "log_softmax", F.softmax, F.log_softmax, torch.softmax, torch.log_softmax,
})  # fmt: skip
SPLITS: frozenset[Any] = frozenset({"chunk", "split", "unbind", torch.chunk, torch.split, torch.unbind})
CONCATENATIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})
HARMLESS_NUMBERS = frozenset({"dim", "ndimension", "ndim", "dtype", "device", "requires_grad", "is_floating_point"})
"""Methods and attributes of a tensor that give something else than a tensor, and do not depend on its sizes."""
ITEM = operator.getitem
CHOICES: frozenset[Any] = frozenset({"argmax", "argmin", "argsort", torch.argmax, torch.argmin, torch.argsort})
"""They give the numbers of positions."""
EXTREMES: frozenset[Any] = frozenset({"max", "min", torch.max, torch.min})
BESIDE: frozenset[Any] = frozenset({
    "index_select", "select", "narrow", "cumsum", torch.index_select, torch.select, torch.narrow, torch.cumsum,
})  # fmt: skip
"""They take, or go along, positions of the dimension that is their first argument."""
MADE: frozenset[Any] = frozenset({
    "new_zeros", "new_ones", "new_full", "new_empty", torch.zeros, torch.ones, torch.full, torch.empty,
})  # fmt: skip
"""They make tensors of given sizes, of one value."""
PRODUCTS: frozenset[Any] = frozenset({"matmul", "bmm", operator.matmul, torch.matmul, torch.bmm})


def is_block(module: nn.Module) -> bool:
    """Whether a module is an encoder or a decoder of torch with torch's own forward.

    Examples
    --------
    >>> is_block(nn.TransformerEncoderLayer(4, 1)), is_block(nn.Linear(1, 1))
    (True, False)
    """
    return any(type(module).forward is kind.forward for kind in BLOCKS)
