"""Inputs of convolutions; part of cases.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycompress import kernels

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
