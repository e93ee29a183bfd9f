"""int8 convolutions with fixed scales: each one of two networks by name, and the networks as a whole.

Every contestant takes float images [N, C, H, W] and gives float ones, but INSIDE: that is the layer as it runs in a
packed network, with int8 images on both sides. ONNX Runtime and OpenVINO read the same QDQ model
of the very batch: they multiply integers only where the output has a scale too, so that theirs is rounded once more and
turned back. The ratio is over torch fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import networks
import numpy as np
import torch
from contestants import EXACT, Contestant, Point, checked_calls
from measure import OURS
from networks import readers
from numpy.typing import NDArray
from runtimes import onnx_model
from torch import Tensor, nn
from torch.nn import functional as F

from pycompress import kernels
from pycompress.formats import Int8

BATCHES = [1, 8]
TOLERANCE = 0.4  # one scale for all images: the largest error of a million values, in units of their root mean square
CORNERS = ("_conv_stem", "_blocks.1._depthwise_conv", "_blocks.1._project_conv", "_blocks.12._expand_conv", "2")
"""Convolutions of --quick."""
INSIDE = f"{OURS} int8 images"


@dataclass(frozen=True)
class Convolution:
    """What one layer of a network does, and the images that it gets from a batch of one random image.

    Attributes
    ----------
    padding : ((int, int), (int, int))
        Zeros above and below, left and right.
    output_scale : float
        Of the values that it gives.
    """

    model: str
    name: str
    weight: Tensor
    bias: Tensor
    x: Tensor
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, ...]
    groups: int
    output_scale: float

    def __hash__(self) -> int:
        return hash((self.model, self.name))

    @property
    def input_scale(self) -> float:
        """Scale of the values that it gets."""
        return float(self.x.abs().max()) / 127

    def packed(self, channels_last: bool) -> kernels.PackedConv:
        """Ours."""
        return kernels.pack_conv(
            self.weight,
            Int8(),
            self.bias,
            input_scale=self.input_scale,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            channels_last=channels_last,
        )

    def quantized(self, x: Tensor) -> Tensor:
        """The int8 images that a convolution before hands over."""
        q = (x / self.input_scale).round().clamp(-127, 127).to(torch.int8)
        return q.contiguous(memory_format=torch.channels_last)

    def dense(self, x: Tensor) -> Tensor:
        """What torch computes, in the type of x."""
        (top, bottom), (left, right) = self.padding
        if top != bottom or left != right:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)


def points(batches: Iterable[int], threads: int, quick: bool) -> Iterator[Callable[[], Point]]:
    """Yield functions that make the lines of a table."""
    for layer in convolutions():
        if not quick or layer.name in CORNERS:
            for batch in batches:
                yield partial(point, layer, batch, threads)
    for name in networks.networks():
        for batch in batches:
            yield partial(networks.point, name, batch, threads)


def point(layer: Convolution, batch: int, threads: int) -> Point:
    """Make the line of one convolution: all contestants, checked."""
    contestants, packed = _contestants(layer, batch, threads, threads)
    x, right = _batch(layer, batch)
    calls = checked_calls(contestants, x, right, lenient=True)
    shape = [layer.model, layer.name, *layer.weight.shape, *layer.x.shape[2:]]
    work = 2.0 * right.size * layer.weight[0].numel(), packed.nbytes + 4.0 * (x.numel() + right.size)
    nbytes = int(work[1])  # images and weights alike pass once through the same caches
    return Point(shape, batch, packed.kernel.rpartition("/")[2], "Int8, static", calls, ("torch fp32",), work, nbytes)


def check_calls(layer: Convolution, batch: int, threads: int, pool: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(layer, batch, threads, pool)[0], *_batch(layer, batch))


@cache
def convolutions() -> list[Convolution]:
    """Return all convolutions of the networks, with what each gets."""
    found: list[Convolution] = []
    for model_name, (model, image) in networks.networks().items():
        handles = [
            module.register_forward_hook(partial(_note, found, model_name, name))
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        with torch.inference_mode():
            model(image)
        for handle in handles:
            handle.remove()
    return found


def _note(found: list[Convolution], model: str, name: str, layer: nn.Conv2d, inputs: Any, y: Tensor) -> None:
    top, left = (int(size) for size in layer.padding)
    padding = (top, top), (left, left)
    zeros = getattr(layer, "static_padding", None)  # EfficientNet's layers pad in a module of their own
    if isinstance(zeros, nn.ZeroPad2d):
        before, after, above, below = zeros.padding
        padding = (above, below), (before, after)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    scale = float(y.abs().max()) / 127
    x, stride, dilation = inputs[0].clone(), tuple(layer.stride), tuple(layer.dilation)
    weight = layer.weight.detach()
    found.append(Convolution(model, name, weight, bias.detach(), x, stride, padding, dilation, layer.groups, scale))


@lru_cache(maxsize=2)
def _batch(layer: Convolution, batch: int) -> tuple[Tensor, NDArray[np.float64]]:
    x = layer.x.clone().repeat(batch, 1, 1, 1)
    return x, layer.dense(x.double()).numpy()


@lru_cache(maxsize=1)
def _contestants(
    layer: Convolution, batch: int, threads: int, pool: int
) -> tuple[dict[str, Contestant], kernels.PackedConv]:
    packed, last = layer.packed(channels_last=False), layer.packed(channels_last=True)
    scale = layer.output_scale
    contestants = {
        "torch fp32": Contestant([layer.dense], EXACT),
        OURS: Contestant([lambda x: kernels.conv(x, packed)], TOLERANCE),
        INSIDE: Contestant(
            [lambda q: kernels.conv(q, last, output_scale=scale)],
            TOLERANCE,
            layer.quantized,
            lambda y: y.float() * scale,
        ),
    }
    return contestants | readers(_qdq(layer, batch), threads, pool, TOLERANCE), packed


def _qdq(layer: Convolution, batch: int) -> bytes:
    from onnx import helper

    signed = bool((layer.x < 0).any())
    step = np.float32(layer.input_scale if signed else layer.input_scale * 127 / 255)
    # an output of hardly any weights gets a scale with which its bias fits into int32
    smallest = layer.bias.abs() / (float(step) * 2**30)
    scale = torch.maximum(layer.weight.abs().amax((1, 2, 3)) / 127, smallest).clamp_min(1e-30).numpy()
    sums = (scale * step).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        "x_scale": np.asarray(step),
        "x_zero": np.asarray(128 if signed else 0, np.uint8),
        "w": np.rint(layer.weight.numpy() / scale[:, None, None, None]).astype(np.int8),
        "w_scale": scale,
        "w_zero": np.zeros(len(scale), np.int8),
        "b": np.rint(layer.bias.numpy() / sums).astype(np.int32),
        "b_scale": sums,
        "y_scale": np.asarray(np.float32(layer.output_scale)),
        "y_zero": np.asarray(128, np.uint8),
    }
    (top, bottom), (left, right) = layer.padding
    geometry: dict[str, Any] = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[top, left, bottom, right], **geometry),
        helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "y_scale", "y_zero"], ["y"]),
    ]
    return onnx_model(nodes, constants, [batch, *layer.x.shape[1:]], [batch, len(scale), "h", "w"])
