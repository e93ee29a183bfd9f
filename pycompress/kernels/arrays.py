"""Arrays and torch CPU tensors as NumPy arrays, checked and without a copy where possible."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

ArrayLike = Any
"""A NumPy array or a torch CPU tensor."""


def is_tensor(x: object) -> bool:
    """Whether x is a torch tensor (torch is never imported for the question)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_plain_tensor(x: Any, double: bool = False) -> bool:
    """Whether x is a contiguous float32 (with double: float64) CPU tensor, not of a subclass, that needs no grad."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and type(x) is torch.Tensor
        and x.dtype is (torch.float64 if double else torch.float32)
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and not x.is_neg()
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def is_plain_image(x: Any) -> bool:
    """Whether x is a 4-D float32 or int8 CPU tensor, channels last, not of a subclass, that needs no grad."""
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and type(x) is torch.Tensor
        and x.ndim == 4
        and (x.dtype is torch.float32 or x.dtype is torch.int8)
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_neg()
        and not (x.requires_grad and torch.is_grad_enabled())
    )


def is_bfloat16(x: Any) -> bool:
    """Whether x is a bfloat16 tensor, a type that NumPy lacks."""
    return is_tensor(x) and x.dtype is sys.modules["torch"].bfloat16


def view(x: ArrayLike, name: str) -> NDArray[Any]:
    """Return x as a NumPy array that shares its memory; bfloat16 tensors, which NumPy lacks, as a float32 copy.

    Raises
    ------
    TypeError
        When x is neither an array nor a tensor.
    ValueError
        When x is a tensor that is not a dense CPU tensor, or needs a gradient that no kernel gives.
    """
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if not is_tensor(x):
        raise TypeError(f"{name} must be a NumPy array or a torch CPU tensor, got {type(x).__name__}")
    torch = sys.modules["torch"]
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense CPU tensor, got device {x.device} and layout {x.layout}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require grad: kernels have no gradients (use torch.no_grad())")
    if x.dtype == torch.bfloat16:
        x = x.float()
    try:
        array: NDArray[Any] = x.detach().resolve_neg().resolve_conj().numpy()
    except (TypeError, RuntimeError) as error:  # a dtype that NumPy lacks, or a tensor that stands for others
        raise TypeError(f"{name} must be a tensor that NumPy can share, got {describe(x)}: {error}") from None
    return array


def like(result: NDArray[Any], x: ArrayLike) -> Any:
    """Return result as the kind of x: an array, or a tensor that shares the result's memory."""
    return sys.modules["torch"].from_numpy(result) if is_tensor(x) else result


def float32(x: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return x as float32 in native byte order; float16 and bfloat16 are widened, other dtypes refused."""
    array = view(x, name)
    if array.dtype == np.float32 and array.dtype.isnative:
        return array
    if array.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise TypeError(f"{name} must be float32 (or float16, bfloat16), got {describe(x)}")
    return array.astype(np.float32)


def narrow(x: ArrayLike, name: str) -> NDArray[Any]:
    """Return x as it lies, in native byte order: float32, float16, or for bfloat16 its bits as uint16."""
    if is_bfloat16(x):
        view(x[:0] if x.ndim else x, name)  # for its checks
        array: NDArray[Any] = x.detach().resolve_neg().view(sys.modules["torch"].int16).numpy().view(np.uint16)
        return array
    array = view(x, name)
    if array.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise TypeError(f"{name} must be float32 (or float16, bfloat16), got {describe(x)}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def finite(array: NDArray[Any], name: str) -> None:
    """Raise a ValueError when array holds NaN or infinity."""
    # A sum of float32 values in float64 overflows only from infinities, and is NaN or infinite with any of them.
    if not np.isfinite(array.sum(dtype=np.float64)):
        bad = int(array.size - np.isfinite(array).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries")


def describe(x: ArrayLike) -> str:
    """Shape and dtype of x, for messages."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def restore(result: NDArray[Any], x: ArrayLike) -> Any:
    """Return a float32 result, or the bits of a bfloat16 one as uint16, as the kind and floating dtype of x."""
    if is_tensor(x):
        tensor = like(result, x)
        if result.dtype == np.uint16:
            return tensor.view(x.dtype)
        return tensor.to(x.dtype) if x.dtype.is_floating_point else tensor
    return result.astype(np.float16) if x.dtype.newbyteorder("=") == np.float16 else result


def flag(value: object, name: str) -> bool:
    """Return value, which must be a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def integer(value: object, name: str, low: int, high: int | None = None) -> int:
    """Return value as an int inside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be at least {low}{'' if high is None else f' and at most {high}'}, got {value}")
    return int(value)
