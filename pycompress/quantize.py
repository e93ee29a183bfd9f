"""Quantization: round weights to a grid, in place, and record the grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import data as data_module
from . import grids, kernels, masks
from .data import Data
from .formats import Affine, FixedPoint, Grid, Int8
from .grids import GridRecord
from .kernels.packed import int8_scale
from .kernels.reference import ZERO_ROW
from .scores.running import check_reached, undisturbed, watched_inputs
from .selection import LAYERS, Pattern, check_weights, count_bad, listed, owners, select

_BATCH_SIZE = 256


@dataclass(frozen=True)
class LayerQuantization:
    """What became of one layer.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weight.
    error : float
        Norm of the change of the weight, as a fraction of the weight's norm.
    input_scale : float or None
        Fixed scale of the layer's inputs, from calibration.

    Examples
    --------
    >>> quantize_(nn.Linear(8, 4), Int8()).layers[0].error < 0.01
    True
    """

    name: str
    shape: tuple[int, ...]
    error: float
    input_scale: float | None


@dataclass(frozen=True)
class QuantizeSummary:
    """What :func:`quantize_` did, layer by layer; printed, it is a table.

    Attributes
    ----------
    format : Int8, Affine or FixedPoint
    layers : tuple of LayerQuantization

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0, 0.5]])
    >>> print(quantize_(model, FixedPoint(bits=1)))
    0  (1, 2)  FixedPoint(bits=1)  weight changed by 0.00%
    """

    format: Grid
    layers: tuple[LayerQuantization, ...]

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        shape_width = max(len(str(layer.shape)) for layer in self.layers)
        return "\n".join(
            f"{layer.name:<{width}}  {layer.shape!s:<{shape_width}}  {self.format}  weight changed by {layer.error:.2%}"
            for layer in self.layers
        )


def quantize_(
    model: nn.Module,
    format: Grid,
    calibration: Data | None = None,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> QuantizeSummary:
    """Round the weights of Linear, Conv1d and Conv2d layers to a grid, in place, and record the grid on each layer.

    ``w' = (q - zero_point) * scale`` with the integers q of ``pc.Int8`` (symmetric, ``scale = max|w[o]| / 127`` for
    each output), ``pc.Affine`` or ``pc.FixedPoint`` (Jacob et al. 2018). The layers stay dense and trainable; training
    moves weights off the grid again, and what reads the grid then takes them as plain floats. ``pc.pack`` and
    ``pc.save`` use exactly these integers.

    Weights that are exactly zero, as pruned ones are, stay zero, also where an affine grid has no zero. A weight that
    several layers share is rounded once. A layer that lies on a grid of this format already keeps its integers. Weights
    of 16-bit floats become the nearest of their own values, as long as these keep the integers apart.

    Parameters
    ----------
    model : Module
    format : Int8, Affine or FixedPoint
    calibration : Data, optional
        For Int8: a pair ``(inputs, targets)``, a Dataset or batches. The model runs on it in eval mode, before anything
        is rounded; each layer then gets a fixed input scale, the largest magnitude of its inputs / 127, instead of one
        found per row at run time. A layer whose inputs were all zero gets none.
    include, exclude : list of str or module types, optional
        Name patterns such as ``"encoder.*"``, or types, of the layers to quantize; all of them by default.

    Returns
    -------
    QuantizeSummary
        Name, shape, relative change of the weight and input scale of each layer.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, no layer matches, weights or calibration inputs hold NaN or infinity, the
        calibration does not reach a layer, or the weights do not fit the grid (all such layers are named). The model is
        unchanged then.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> summary = quantize_(model, Int8())
    >>> [layer.name for layer in summary.layers], len(model[0].weight.unique()) <= 4 * 255
    (['0', '2'], True)
    """
    if not isinstance(format, (Int8, Affine, FixedPoint)):
        raise TypeError(f"format must be Int8(), Affine() or FixedPoint(), got {format!r}")
    if calibration is not None and not isinstance(format, Int8):
        raise ValueError(f"calibration must be None with {format}: only Int8 layers quantize their inputs")
    layers = select(model, include, exclude)
    weights = check_weights(layers)
    sharing = {
        name: [module for module, attribute in owners(model, weight) if attribute == "weight"]
        for name, weight in weights.items()
    }
    rounded = _round(layers, weights, format)
    input_scales = {} if calibration is None else _calibrate(model, sharing, calibration)
    summary = []
    for name, weight in weights.items():
        record, value = rounded[name]
        change = _norm(value - weight.detach()) / (_norm(weight.detach()) or 1.0)
        weight.data.copy_(value)
        for module in sharing[name]:
            grids.set_grid(module, dataclasses.replace(record, input_scale=input_scales.get(module)))
        summary.append(LayerQuantization(name, tuple(weight.shape), change, input_scales.get(layers[name])))
    return QuantizeSummary(format, tuple(summary))


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _round(
    layers: dict[str, nn.Module], weights: dict[str, nn.Parameter], format: Grid
) -> dict[str, tuple[GridRecord, Tensor]]:
    """Return the grid and the rounded weight, in its own dtype, of each layer; all layers that do not fit are named."""
    results: dict[str, tuple[GridRecord, Tensor]] = {}
    faults = {}
    for name, weight in weights.items():
        mask = masks.mask_of(layers[name])
        wide = weight.detach().float()
        wide = wide if mask is None else wide.masked_fill(~mask, 0)
        known = grids.grid_of(layers[name])
        if known is not None and known.format == format and grids.integers(wide.to(weight.dtype), known) is not None:
            results[name] = known, wide.to(weight.dtype)
            continue
        try:
            record = _grid(wide, format)
        except ValueError as error:
            faults[name] = str(error)
            continue
        rounded = grids.weight_from(grids.nearest(wide, record), record, wide == 0).to(weight.dtype)
        if grids.integers(rounded, record) is None:
            faults[name] = f"{weight.dtype} weights from {float(wide.min()):g} to {float(wide.max()):g}"
        results[name] = record, rounded
    if faults:
        raise ValueError(f"weights must fit the grid of {format}, got {listed(faults)}")
    return results


def _grid(weight: Tensor, format: Grid) -> GridRecord:
    """Return the grid of a float32 weight."""
    if count_bad(weight):
        raise ValueError("values beyond float32")
    if isinstance(format, Int8):
        rows = weight.reshape(weight.shape[0], -1).cpu().numpy()
        scale = torch.from_numpy(int8_scale(rows))
        return GridRecord(format, scale, torch.zeros_like(scale))
    if isinstance(format, Affine):
        axis = 0 if format.per_channel else None
        found = kernels.quantize(weight.cpu(), format.bits, scheme="affine", signed=format.signed, axis=axis)
        return GridRecord(format, found.scale, found.zero_point)
    largest = float(weight.abs().max()) * 2.0**format.bits if weight.numel() else 0.0
    if largest > grids.FIXED_POINT_LIMITS[1]:
        raise ValueError(f"a weight of magnitude {largest / 2.0**format.bits:g}, whose integer needs more than 32 bits")
    return GridRecord(format, torch.tensor(2.0**-format.bits), torch.tensor(0.0))


def _calibrate(model: nn.Module, sharing: dict[str, list[nn.Module]], calibration: Data) -> dict[nn.Module, float]:
    """Return the input scale of every layer: the largest magnitude of its inputs / 127, in fp32."""
    data_module.check(calibration, "calibration")
    wanted = {module for modules in sharing.values() for module in modules if isinstance(module, LAYERS)}
    layers = {name: module for name, module in model.named_modules() if module in wanted}
    largest: dict[str, float] = {}

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        found = float(x.detach().abs().amax()) if x.numel() else 0.0
        before = largest.get(name, 0.0)
        largest[name] = found if found > before or found != found else before

    with undisturbed(model), torch.no_grad(), watched_inputs(layers, see):
        for inputs, _ in data_module.batches(calibration, _BATCH_SIZE, name="calibration"):
            data_module.forward(model, inputs, "calibration inputs")
    check_reached(layers, largest, "calibration")
    bad = {name: f"largest magnitude {value}" for name, value in largest.items() if not np.isfinite(np.float32(value))}
    if bad:
        raise ValueError(f"calibration must give finite inputs of every layer, got {listed(bad)}")
    return {
        layers[name]: float(np.float32(value) / np.float32(127)) for name, value in largest.items() if value >= ZERO_ROW
    }
