"""Quantization: round weights to a grid, in place, and record the grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from . import grids, kernels, masks
from .calibration import calibrate, corrected
from .data import Data
from .formats import Affine, FixedPoint, Grid, Int8
from .grids import GridRecord
from .kernels.arrays import flag
from .kernels.packed import int8_scale
from .kernels.reference import ZERO_ROW
from .observers import MinMax, Observer
from .rounding import Rounded, output_errors
from .schedules import number
from .selection import LAYERS, Pattern, check_weights, count_bad, listed, owners, place_of, select_weights

_LARGEST = MinMax()


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
    bias_change : float or None
        Largest magnitude of what bias correction added; None where there was none, or no bias of the layer's own.
    output_error : float or None
        Norm of the change of the outputs on the calibration data, as a fraction of their norm; None without max_error.
    stays_float : bool
        Whether that was too much, so that the layer is as it was.

    Examples
    --------
    >>> quantize_(nn.Linear(8, 4), Int8()).layers[0].error < 0.01
    True
    """

    name: str
    shape: tuple[int, ...]
    error: float
    input_scale: float | None
    bias_change: float | None = None
    output_error: float | None = None
    stays_float: bool = False


@dataclass(frozen=True)
class QuantizeSummary:
    """What :func:`quantize_` did, layer by layer; printed, it is a table.

    Attributes
    ----------
    format : Int8, Affine or FixedPoint
    layers : tuple of LayerQuantization
    bias_correction : bool
        Whether biases were corrected, where layers have one.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> model[0].weight.data = torch.tensor([[1.0, 0.5]])
    >>> print(quantize_(model, FixedPoint(bits=1)))
    0  (1, 2)  FixedPoint(bits=1)  weight changed by 0.00%
    """

    format: Grid
    layers: tuple[LayerQuantization, ...]
    bias_correction: bool = False

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        shape_width = max(len(str(layer.shape)) for layer in self.layers)
        return "\n".join(
            f"{layer.name:<{width}}  {layer.shape!s:<{shape_width}}  {self._said(layer)}" for layer in self.layers
        )

    def _said(self, layer: LayerQuantization) -> str:
        error = "" if layer.output_error is None else f"outputs by {layer.output_error:.2%}"
        if layer.stays_float:
            return f"stays float: {self.format} would change its {error}"
        said = f"{self.format}  weight changed by {layer.error:.2%}" + (f", {error}" if error else "")
        return said + (self._bias(layer) if self.bias_correction else "")

    def _bias(self, layer: LayerQuantization) -> str:
        none = layer.bias_change is None
        return "  no bias of its own" if none else f"  bias moved by up to {layer.bias_change:.3g}"


def quantize_(
    model: nn.Module,
    format: Grid,
    calibration: Data | None = None,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    observer: Observer = _LARGEST,
    bias_correction: bool = False,
    max_error: float | None = None,
) -> QuantizeSummary:
    """Round the weights of a model to a grid, in place, and record the grid on each layer.

    These are the weights that :func:`pycompress.prune_` knows: of Linear, Conv1d and Conv2d layers, each of those that
    recurrent layers, their cells and nn.MultiheadAttention hold, and of embeddings where ``include`` asks for them.

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
        A pair ``(inputs, targets)``, a Dataset or batches. The model runs on it in eval mode, before anything is
        rounded. With Int8 each layer then gets a fixed input scale, t / 127 with the observer's t, instead of one found
        per row at run time. A layer for which t is zero, as where its inputs were, gets none, and neither do recurrent
        layers, attention and embeddings. With the other formats it serves bias correction alone.
    include, exclude : list of str or module types, optional
        Name patterns such as ``"encoder.*"``, or types, of the layers to quantize; all of them by default. A weight of
        a layer that holds several is matched by its own name and by its layer's.
    observer : MinMax, MovingAverage, Percentile, MSE or Entropy of ``pc.observers``
        Which magnitude t of the inputs becomes 127; by default the largest.
    bias_correction : bool
        Add to each bias ``E[(W - Wq) x]``, the mean over the calibration data (and a convolution's positions) of what
        rounding took from the layer's outputs, ``E[y] - E[yq]`` in Nagel et al. 2019 (arXiv:1906.04721, section 4.2).
        x are the inputs in the float model, not those behind layers already rounded: once every layer's mean output is
        corrected, each layer gets about the means of the float model, so that one pass serves all, in any order, also
        layers that are shared or run several times. What rounding the inputs themselves moves is not corrected.
        Layers without a bias, or that share one with a layer that is not quantized, are left out; the summary says so.
    max_error : float, optional
        Leave a layer as it is whose outputs would change by more than this fraction: ``norm(y - y') / norm(y)`` over
        the calibration data, y in the float model, y' with the rounded weight, the corrected bias and (Int8) inputs
        rounded with the fixed scale. The calibration data are read twice then. Recurrent layers, attention and
        embeddings are rounded whatever it is.

    Returns
    -------
    QuantizeSummary
        Name, shape, relative change of the weight, input scale, change of the bias and error of the outputs of each
        layer, and which ones stay float.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, no layer matches, weights or calibration inputs hold NaN or infinity, the
        calibration does not reach a layer, the weights do not fit the grid (all such layers are named), or there is no
        bias to correct, or max_error leaves no layer. The model is unchanged then.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> summary = quantize_(model, Int8())
    >>> [layer.name for layer in summary.layers], len(model[0].weight.unique()) <= 4 * 255
    (['0', '2'], True)
    """
    if not isinstance(format, (Int8, Affine, FixedPoint)):
        raise TypeError(f"format must be Int8(), Affine() or FixedPoint(), got {format!r}")
    if not isinstance(observer, Observer):
        raise TypeError(
            f"observer must be MinMax(), MovingAverage(), Percentile(), MSE() or Entropy(), got {observer!r}"
        )
    flag(bias_correction, "bias_correction")
    if max_error is not None:
        max_error = number(max_error, "max_error", 0, math.inf, low_open=True, high_open=True)
    measured = bias_correction or max_error is not None
    if calibration is not None and not isinstance(format, Int8) and not measured:
        raise ValueError(f"calibration must be None with {format}: only Int8 layers quantize their inputs")
    if observer != _LARGEST and (calibration is None or not isinstance(format, Int8)):
        raise ValueError(f"observer must come with calibration data and Int8, got {observer} with {format}")
    if bias_correction and calibration is None:
        raise ValueError("bias_correction must come with calibration data, got calibration=None")
    if max_error is not None and calibration is None:
        raise ValueError("max_error must come with calibration data, got calibration=None")
    layers = select_weights(model, include, exclude)
    weights = check_weights(layers)
    sharing = {name: owners(model, weight) for name, weight in weights.items()}
    rounded = _round(layers, weights, format)
    attending = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}  # it is never called
    wanted: dict[nn.Module, str] = {
        module: name
        for name, places in sharing.items()
        for module, attribute in places
        if isinstance(module, LAYERS) and attribute == "weight" and id(module) not in attending
    }
    changes = _changes(model, wanted, weights, rounded) if bias_correction else {}
    input_scales: dict[nn.Module, float] = {}
    errors: dict[str, float] = {}
    biases: dict[nn.Parameter, Tensor] = {}
    if calibration is not None:
        inside = {name: module for name, module in model.named_modules() if module in wanted}
        limits, drifts = calibrate(model, inside, calibration, observer, changes)
        biases = corrected(drifts, {cast(nn.Parameter, module.bias): wanted[module] for module in changes})
        if isinstance(format, Int8):
            input_scales = {
                module: float(np.float32(limit) / np.float32(127))
                for module, limit in limits.items()
                if limit >= ZERO_ROW
            }
        if max_error is not None:
            becomes = {
                module: Rounded(rounded[name][1], _bias_of(module, biases), input_scales.get(module))
                for module, name in wanted.items()
            }
            found = output_errors(model, inside, calibration, becomes)
            for module, name in wanted.items():
                errors[name] = max(found[module], errors.get(name, 0.0))
    stays = {name for name, error in errors.items() if max_error is not None and error > max_error}
    if len(stays) == len(weights):
        raise ValueError(f"max_error must leave a layer to round, got {max_error} with {_percents(errors)}")
    spoilt = {module.bias for module in changes if wanted[module] in stays}
    biases = {bias: new for bias, new in biases.items() if bias not in spoilt}
    summary = []
    for name, weight in weights.items():
        record, value = rounded[name]
        change = _norm(value - weight.detach()) / (_norm(weight.detach()) or 1.0)
        if name in stays:
            shape = tuple(weight.shape)
            summary.append(LayerQuantization(name, shape, change, None, None, errors[name], stays_float=True))
            continue
        weight.data.copy_(value)
        for module, attribute in sharing[name]:
            own_scale = input_scales.get(module) if attribute == "weight" else None
            grids.set_grid(module, dataclasses.replace(record, input_scale=own_scale), attribute)
        own = {cast(nn.Parameter, module.bias) for module, _ in sharing[name] if module in changes} & biases.keys()
        moved = max((_largest(biases[bias] - bias.detach()) for bias in own), default=None)
        layer = layers[name]
        error = errors.get(name)
        summary.append(LayerQuantization(name, tuple(weight.shape), change, input_scales.get(layer), moved, error))
    for bias, value in biases.items():
        bias.data.copy_(value)
    return QuantizeSummary(format, tuple(summary), bias_correction)


def _changes(
    model: nn.Module,
    wanted: Mapping[nn.Module, str],
    weights: Mapping[str, nn.Parameter],
    rounded: Mapping[str, tuple[GridRecord, Tensor]],
) -> dict[nn.Module, Tensor]:
    """Return ``W - Wq`` of every layer with a bias that only layers which are quantized hold."""
    shared: dict[str, Tensor] = {}
    found = {}
    for module, name in wanted.items():
        bias = module._parameters.get("bias")
        if bias is None or not all(owner in wanted and key == "bias" for owner, key in owners(model, bias)):
            continue
        if name not in shared:
            weight, value = weights[name].detach(), rounded[name][1]
            wide = torch.promote_types(weight.dtype, torch.float32)
            shared[name] = weight.to(wide) - value.to(wide)
        found[module] = shared[name]
    if not found:
        raise ValueError(f"bias_correction needs a layer with a bias of its own, got none in {list(weights)}")
    return found


def _bias_of(module: nn.Module, biases: Mapping[nn.Parameter, Tensor]) -> Tensor | None:
    bias = module._parameters.get("bias")
    return None if bias is None else biases.get(bias, bias.detach())


def _percents(errors: Mapping[str, float]) -> str:
    return listed({name: f"{error:.3g}" for name, error in errors.items()})


def _largest(x: Tensor) -> float:
    return float(x.abs().amax()) if x.numel() else 0.0


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _round(
    layers: dict[str, nn.Module], weights: dict[str, nn.Parameter], format: Grid
) -> dict[str, tuple[GridRecord, Tensor]]:
    """Return the grid and the rounded weight, in its own dtype, of each layer; all layers that do not fit are named."""
    results: dict[str, tuple[GridRecord, Tensor]] = {}
    faults = {}
    for name, weight in weights.items():
        place = place_of(layers[name])
        mask = masks.mask_of(*place)
        wide = weight.detach().float()
        wide = wide if mask is None else wide.masked_fill(~mask, 0)
        known = grids.grid_of(*place)
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
        rows = weight.flatten(1).cpu().numpy()
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
