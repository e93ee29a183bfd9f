"""The quantization grid that `quantize_` records on a layer, and the integers of a weight that lies on it.

``w = (q - zero_point) * scale`` in fp32, each operation rounded once, then rounded to the weight's own dtype. The
record is a plain attribute of the module: copies and pickles carry it, ``state_dict`` does not change.

A weight that is exactly zero stays zero and always counts as on the grid, because pruned weights must stay zero also
where an affine grid has no zero. Its integer is the one nearest to zero, and :func:`weight_from` gives the zero back
when it is told which weights are zero. So whoever stores integers stores those of the nonzero weights with their
positions; or all of them, where ``has_zero(record)`` holds or no weight is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .formats import Affine, FixedPoint, Grid, Int8

_ATTRIBUTE = "_pycompress_grid"


@dataclass(frozen=True, eq=False)
class GridRecord:
    """The grid of one weight.

    Attributes
    ----------
    format : Int8, Affine or FixedPoint
    scale : [] or [out] float32
        Step between neighbouring values; one for each index of the weight's first axis, or one for all.
    zero_point : float32, shape of scale
        Where zero lies on the integer axis: a real number for Affine, else 0.
    input_scale : float or None
        Fixed scale of the layer's int8 inputs, from calibration data; None when it is found per row at run time.

    Examples
    --------
    >>> GridRecord(FixedPoint(4), torch.tensor(0.0625), torch.tensor(0.0)).input_scale is None
    True
    """

    format: Grid
    scale: Tensor
    zero_point: Tensor
    input_scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.format, (Int8, Affine, FixedPoint)):
            raise TypeError(f"format must be Int8(), Affine() or FixedPoint(), got {self.format!r}")
        for name, tensor in (("scale", self.scale), ("zero_point", self.zero_point)):
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tensor.ndim > 1:
                raise TypeError(f"{name} must be a float32 tensor [] or [out], got {tensor!r}")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")
        if self.zero_point.shape != self.scale.shape:
            raise ValueError(
                f"zero_point must have the shape of scale, {tuple(self.scale.shape)}, "
                f"got {tuple(self.zero_point.shape)}"
            )
        if not bool((self.scale > 0).all()):
            raise ValueError(f"scale must be positive, got {float(self.scale.min())}")


def set_grid(module: nn.Module, record: GridRecord | None, name: str = "weight") -> None:
    """Record the grid of one of a module's weights, or forget it with None.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> set_grid(layer, GridRecord(FixedPoint(4), torch.tensor(0.0625), torch.tensor(0.0)))
    >>> grid_of(layer).format
    FixedPoint(bits=4)
    """
    if record is not None and not isinstance(record, GridRecord):
        raise TypeError(f"record must be a GridRecord or None, got {type(record).__name__}")
    if record is None:
        module.__dict__.pop(_attribute(name), None)
    else:
        module.__dict__[_attribute(name)] = record


def grid_of(module: nn.Module, name: str = "weight") -> GridRecord | None:
    """Return the grid recorded for one of a module's weights, or None.

    The weight may have been trained since: :func:`integers` says whether it still lies on the grid.

    Examples
    --------
    >>> grid_of(nn.Linear(2, 1)) is None
    True
    """
    record: GridRecord | None = module.__dict__.get(_attribute(name))
    return record


def _attribute(name: str) -> str:
    return _ATTRIBUTE if name == "weight" else f"{_ATTRIBUTE}_{name}"


def int8_of(module: nn.Module, name: str = "weight") -> tuple[Tensor, Tensor] | None:
    """Return the integers and the scale [out] of a weight that lies on its recorded Int8 grid, or None.

    Examples
    --------
    >>> layer = nn.GRUCell(1, 1)
    >>> _ = layer.weight_hh.data.fill_(1.0)
    >>> set_grid(layer, GridRecord(Int8(), torch.full((3,), 0.5), torch.zeros(3)), "weight_hh")
    >>> int8_of(layer, "weight_hh")[0].tolist(), int8_of(layer, "weight_ih")
    ([[2], [2], [2]], None)
    """
    record, weight = grid_of(module, name), module._parameters.get(name)
    if record is None or weight is None or not isinstance(record.format, Int8):
        return None
    found = integers(weight, record)
    return None if found is None else (found, record.scale.expand(len(found)))


def integers(weight: Tensor, record: GridRecord) -> Tensor | None:
    """Return the integers of a weight that lies exactly on a grid, or None when it was changed since.

    ``q = clamp(rint(w / scale + zero_point), low, high)``, accepted when ``(q - zero_point) * scale`` is w again, bit
    for bit, or w is zero.

    Parameters
    ----------
    weight : [out, ...] floating, CPU or other device
    record : GridRecord

    Returns
    -------
    [shape of weight] or None
        int8 for Int8; uint8, int8, uint16 or int16 for Affine; for FixedPoint the smallest of int8, int16 and int32
        that holds them.

    Examples
    --------
    >>> record = GridRecord(Int8(), torch.tensor([0.5]), torch.tensor([0.0]))
    >>> integers(torch.tensor([[1.0, -63.5]]), record)
    tensor([[   2, -127]], dtype=torch.int8)
    >>> integers(torch.tensor([[1.1, -63.5]]), record) is None
    True
    """
    weight = weight.detach()
    if record.scale.ndim and record.scale.shape != weight.shape[:1]:
        return None
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        return None
    values = nearest(wide, record)
    on_grid = (weight_from(values, record).to(weight.dtype) == weight) | (weight == 0)
    return values if bool(on_grid.all()) else None


def nearest(weight: Tensor, record: GridRecord) -> Tensor:
    """Return the integers nearest to a weight, ``q = clamp(rint(w / scale + zero_point), low, high)`` in fp32.

    Parameters
    ----------
    weight : [out, ...] float32, finite
    record : GridRecord

    Returns
    -------
    [shape of weight]
        The types of :func:`integers`.

    Examples
    --------
    >>> nearest(torch.tensor([[1.1, -99.0]]), GridRecord(Int8(), torch.tensor([0.5]), torch.tensor([0.0])))
    tensor([[   2, -127]], dtype=torch.int8)
    """
    scale, zero_point = _broadcast(record, weight)
    q = torch.round(weight / scale + zero_point).clamp_(*limits(record))  # torch.round: ties to even
    return q.to(_dtype(record, q))


def weight_from(values: Tensor, record: GridRecord, zeros: Tensor | None = None) -> Tensor:
    """Invert :func:`integers`: ``w = (q - zero_point) * scale`` in fp32, and exactly zero where ``zeros`` is True.

    Parameters
    ----------
    values : [out, ...] integers
    record : GridRecord
    zeros : [shape of values] bool, optional
        The weights that are exactly zero.

    Returns
    -------
    [shape of values] float32

    Examples
    --------
    >>> record = GridRecord(Affine(), torch.tensor(0.5), torch.tensor(2.25))
    >>> weight_from(torch.tensor([[2, 4]], dtype=torch.uint8), record, torch.tensor([[True, False]]))
    tensor([[0.0000, 0.8750]])
    """
    scale, zero_point = _broadcast(record, values)
    weight = (values.float() - zero_point) * scale
    return weight if zeros is None else weight.masked_fill(zeros, 0)


def has_zero(record: GridRecord) -> bool:
    """Return whether zero itself lies on a grid, for every output.

    Examples
    --------
    >>> has_zero(GridRecord(Affine(), torch.tensor(0.5), torch.tensor(2.25)))
    False
    """
    low, high = limits(record)
    zero_point = record.zero_point
    return bool(((zero_point == torch.round(zero_point)) & (zero_point >= low) & (zero_point <= high)).all())


def limits(record: GridRecord) -> tuple[int, int]:
    """Return the smallest and the largest integer of a grid.

    Examples
    --------
    >>> limits(GridRecord(Affine(bits=4), torch.tensor(0.5), torch.tensor(2.25)))
    (0, 15)
    """
    if isinstance(record.format, Int8):
        return -127, 127
    if isinstance(record.format, FixedPoint):
        return FIXED_POINT_LIMITS
    low = -(2 ** (record.format.bits - 1)) if record.format.signed else 0
    return low, low + 2**record.format.bits - 1


FIXED_POINT_LIMITS = (-(2**31) + 128, 2**31 - 128)
"""The integers of a fixed-point grid fit into int32, and these ends into float32."""


def _broadcast(record: GridRecord, like: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, shaped to multiply with a tensor [out, ...]."""
    shape = (-1, *(1,) * (like.ndim - 1)) if record.scale.ndim else ()
    return record.scale.to(like.device).reshape(shape), record.zero_point.to(like.device).reshape(shape)


def _dtype(record: GridRecord, q: Tensor) -> torch.dtype:
    if isinstance(record.format, Int8):
        return torch.int8
    if isinstance(record.format, Affine):
        if record.format.signed:
            return torch.int8 if record.format.bits <= 8 else torch.int16
        return torch.uint8 if record.format.bits <= 8 else torch.uint16
    largest = float(q.abs().max()) if q.numel() else 0.0
    return torch.int8 if largest <= 127 else torch.int16 if largest <= 32767 else torch.int32
