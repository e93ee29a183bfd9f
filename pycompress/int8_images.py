"""The tensor that stands for int8 images between two packed convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from .kernels.ops import Activation


class Int8Images(Tensor):
    """Images as int8 values and a scale. Whatever else than a packed convolution uses them sees float32 tensors.

    So a hook, or a way through a model that its example inputs did not take, gets right values, only more slowly. A
    ReLU that was already applied does not count as another use.

    Attributes
    ----------
    integers : [images, channels, height, width] int8 tensor
    scale : float
        ``x = integers * scale``; an image of -128 alone is NaN.
    activation : None, "relu", "relu6" or another
        What was applied to the values.

    Examples
    --------
    >>> images = int8_images(torch.tensor([[[[2, 4]]]], dtype=torch.int8), 0.5, "relu")
    >>> F.relu(images) is images
    True
    >>> images + 1
    tensor([[[[2., 3.]]]])
    """

    integers: Tensor
    scale: float
    activation: Activation | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch on float32 tensors instead."""
        kwargs = kwargs or {}
        if args and type(args[0]) is Int8Images and _was_applied(func, args[0].activation, kwargs):
            return args[0]
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            raise RuntimeError(f"{name} cannot change int8 images in place: they are handed to a packed convolution")
        args, kwargs = tree_map_only(Int8Images, float_images, (args, kwargs))
        return func(*args, **kwargs)


def _was_applied(func: Any, activation: Activation | None, kwargs: dict[str, Any]) -> bool:
    """Whether a function is a clamp that changes nothing behind an activation."""
    if func is F.hardtanh:  # what nn.ReLU6 calls
        return activation == "relu6" and (kwargs.get("min_val"), kwargs.get("max_val")) == (0.0, 6.0)
    if func is F.relu6:
        return activation == "relu6"
    return activation in ("relu", "relu6") and func in _RELUS


_RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


def int8_images(integers: Tensor, scale: float, activation: Activation | None = None) -> Int8Images:
    """Make int8 images of int8 values [images, channels, height, width], which are shared.

    Examples
    --------
    >>> int8_images(torch.ones(1, 1, 1, 1, dtype=torch.int8), 2.0).scale
    2.0
    """
    images = integers.as_subclass(Int8Images)
    images.integers, images.scale, images.activation = integers, scale, activation
    return images


def float_images(images: Int8Images) -> Tensor:
    """Return int8 images as float32.

    Examples
    --------
    >>> float_images(int8_images(torch.full((1, 1, 1, 2), -128, dtype=torch.int8), 1.0))
    tensor([[[[nan, nan]]]])
    """
    integers = images.integers
    return (integers.float() * images.scale).masked_fill_(integers == -128, torch.nan)
