"""Inputs of convolutions; part of cases.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycompress import kernels
from pycompress.formats import BLOCKS, Float32, Int8, Sparse

GEOMETRY = ("stride", "padding", "dilation", "groups")
WORK = 1_000_000  # multiply-adds of one problem, about: the reference takes them one by one


def make(rng: np.random.Generator, size: int, inputs: int, outputs: int) -> dict[str, Any]:
    """An image of about `size` columns, `inputs` channels and `outputs` channels, as far as that is not too much."""
    from cases import activation, floats

    sides = 1 if rng.random() < 0.2 else 2
    kind = rng.choice(["pointwise", "dense", "depthwise", "grouped"])
    kernel = tuple(1 if kind == "pointwise" else int(n) for n in rng.integers(1, 6, sides))
    plain = kind == "pointwise" and rng.random() < 0.7
    stride = tuple(1 if plain else int(n) for n in rng.choice([1, 1, 2, 3], sides))
    dilation = tuple(int(n) for n in rng.choice([1, 1, 2], sides))
    padding = tuple((0, 0) if plain else tuple(int(n) for n in rng.integers(0, 4, 2)) for _ in range(sides))
    channels, out = max(1, inputs), max(1, outputs)
    groups = channels if kind == "depthwise" else int(rng.integers(2, 5)) if kind == "grouped" else 1
    channels, out = -(-channels // groups), -(-out // groups)  # of a group
    out = min(out, 3) if kind == "depthwise" else out
    images = int(rng.integers(1, 4)) if size else 0
    least = [max(1, (k - 1) * d + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    pixels = WORK // (groups * channels * out * int(np.prod(kernel)) * max(1, images))
    width = max(least[-1], min(size, max(pixels, 1)))
    height = max(least[0], min(int(rng.integers(1, 24)), max(pixels // width, 1)))
    shape = (height, width)[-sides:]

    problem: dict[str, Any] = {"x": floats(rng, images, groups * channels, *shape)}
    problem |= {"weight": floats(rng, groups * out, channels, *kernel), "scale": None}
    if rng.random() < 0.3:
        problem["weight"] = rng.integers(-128, 128, (groups * out, channels, *kernel)).astype(np.int8)
        problem["scale"] = rng.uniform(0.01, 1, groups * out).astype(np.float32)
    problem["bias"] = floats(rng, groups * out) if rng.random() < 0.5 else None
    largest = max(float(np.abs(problem["x"]).max(initial=0)), 1e-20)
    problem["input_scale"] = largest / 127 * float(rng.choice([0.5, 1.0, 3.0])) if rng.random() < 0.5 else None
    problem["activation"] = activation(rng)
    return problem | {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def make_sparse(rng: np.random.Generator, size: int, inputs: int, outputs: int) -> dict[str, Any]:
    """The same with a pruned weight: mostly its zeros come in blocks, which the edges cut, with zeros inside too."""
    from cases import floats

    problem = make(rng, size, inputs, outputs)
    block = BLOCKS[Float32][rng.integers(len(BLOCKS[Float32]))]
    shape = problem["weight"].shape
    weight = floats(rng, shape[0], int(np.prod(shape[1:])), density=float(rng.choice([0.3, 0.8, 1])))
    if rng.random() < 0.7:
        kept = rng.random((-(-shape[0] // block[0]), -(-weight.shape[1] // block[1]))) < rng.choice([0.1, 0.3, 0.7])
        weight = weight * np.kron(kept, np.ones(block, np.float32))[: shape[0], : weight.shape[1]].astype(np.float32)
    return problem | {"weight": weight.reshape(shape), "scale": None, "input_scale": None, "format": Sparse(block)}


def make_sparse_int8(rng: np.random.Generator, size: int, inputs: int, outputs: int) -> dict[str, Any]:
    """An int8 convolution of which blocks, or words of four channels, are zero, with zeros inside too."""
    problem = make(rng, size, inputs, outputs)
    block = BLOCKS[Int8][rng.integers(len(BLOCKS[Int8]))]
    weight = problem["weight"]
    out, channels = weight.shape[:2]
    words = np.repeat(rng.random((out, -(-channels // 4), *weight.shape[2:])) < rng.choice([0.05, 0.3, 0.8]), 4, axis=1)
    kept = rng.random((-(-out // block[0]), -(-weight[0].size // block[1]))) < rng.choice([0.1, 0.3, 0.7])
    blocks = np.kron(kept, np.ones(block, bool))[:out, : weight[0].size].reshape(weight.shape)
    mask = (rng.random(weight.shape) < rng.choice([0.2, 0.9, 1])) & (
        words[:, :channels] if rng.random() < 0.5 else blocks
    )
    return problem | {"weight": (weight * mask).astype(weight.dtype), "format": Sparse(block, Int8())}


def run_dense(problem: dict[str, Any]) -> Any:
    """What the format Int8 gives with the same integers."""
    return run(problem | {"format": Int8()})


def sparse_truth(problem: dict[str, Any]) -> np.ndarray:
    """The convolution in float64."""
    from cases import ACTIVATIONS

    y = _float64(problem, problem["x"], problem["weight"])
    if problem["bias"] is not None:
        y = y + problem["bias"].reshape(-1, *[1] * (y.ndim - 2))
    return ACTIVATIONS[problem["activation"]](y)


def sparse_tolerance(problem: dict[str, Any], truth: np.ndarray) -> np.ndarray:
    """2 * K * 2^-24 * sum |x * w|, for an activation at most 1.13 times as steep, and a rounding of its own."""
    from cases import ULP

    total = _float64(problem, np.abs(problem["x"]), np.abs(problem["weight"]))
    if problem["bias"] is not None:
        total = total + np.abs(problem["bias"]).reshape(-1, *[1] * (total.ndim - 2))
    return 2.3 * problem["weight"][0].size * (ULP * total + 2.0**-149) + 2 * ULP * np.abs(truth) + 2.0**-149


def _float64(problem: dict[str, Any], x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolve in float64, one weight of the kernel at a time."""
    sides, groups = weight.ndim - 2, problem["groups"]
    stride, dilation = ([1] * (2 - sides) + list(problem[name]) for name in ("stride", "dilation"))
    pads = [(0, 0)] * (2 - sides) + list(problem["padding"])
    x = x.reshape(*x.shape[:2], *[1] * (2 - sides), *x.shape[2:]).astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    out, channels, rows, columns = (*weight.shape[:2], *[1] * (2 - sides), *weight.shape[2:])
    w = weight.reshape(groups, out // groups, channels, rows, columns).astype(np.float64)
    x = x.reshape(len(x), groups, channels, *x.shape[2:])
    reach = [(k - 1) * d for k, d in zip((rows, columns), dilation, strict=True)]
    size = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[3:], reach, stride, strict=True)]
    y = np.zeros((len(x), groups, out // groups, *size))
    for r in range(rows):
        for c in range(columns):
            taps = x[:, :, :, r * dilation[0] :: stride[0], c * dilation[1] :: stride[1]][..., : size[0], : size[1]]
            y += np.einsum("ngchw,goc->ngohw", taps, w[..., r, c])
    return y.reshape(len(x), out, *size[2 - sides :])


def make_last(rng: np.random.Generator, size: int, inputs: int, outputs: int) -> dict[str, Any]:
    """The same for images whose channels come last: dense or depthwise, float32 or int8 on both sides."""
    problem = make(rng, size, inputs, outputs)
    out, depth, *kernel = problem["weight"].shape
    if depth > 1 or problem["groups"] != out:
        problem["groups"] = 1
        problem["weight"] = problem["weight"][:, :1].repeat(problem["x"].shape[1], axis=1)
    if len(kernel) == 1:
        for key in ("stride", "padding", "dilation"):
            problem[key] = ({"stride": 1, "padding": (0, 0), "dilation": 1}[key], *problem[key])
        problem["x"], problem["weight"] = problem["x"][:, :, None], problem["weight"][:, :, None]
    problem["weight"] = np.ascontiguousarray(problem["weight"])
    problem["output_scale"] = float(rng.choice([0.02, 0.5])) if rng.random() < 0.5 else None
    if problem["input_scale"] is not None and rng.random() < 0.5:
        problem["x"] = rng.integers(-128, 128, problem["x"].shape).astype(np.int8)
    return problem | {"channels_last": True}


def packed(problem: dict[str, Any]) -> kernels.PackedConv:
    """The packed weight of a problem."""
    arguments = {key: value for key, value in problem.items() if key not in ("x", "activation", "output_scale")}
    return kernels.pack_conv(**arguments)


def run(problem: dict[str, Any]) -> Any:
    """Pack, then convolve."""
    options = {"output_scale": problem["output_scale"]} if "output_scale" in problem else {}
    return kernels.conv(problem["x"], packed(problem), problem["activation"], **options)
