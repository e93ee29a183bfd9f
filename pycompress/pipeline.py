"""One call from a trained model to a smaller, faster one with a verdict."""

from __future__ import annotations

import inspect
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import scores
from .artifact import stored_bytes
from .calls import check_model, copy_of, forward
from .data import Data, Tree, as_pair, batches, check, first_inputs, pick
from .distill import distill_
from .explaining import explain
from .formats import Grid
from .formats import Int8 as Int8
from .kernels.arrays import flag, integer
from .layers import LayerDecision
from .linears import can_be_packed, find_all
from .masks import finalize_
from .observers import MinMax, Observer
from .packing import pack
from .prune import PruneSummary, Structure, Unstructured, prune_
from .quantize import QuantizeSummary, quantize_
from .schedules import number
from .selection import Pattern
from .structure import simplify as simplify_model
from .validation import Verdict, validate
from .validation.metrics import Metric, accuracy
from .validation.predictions import predict_each
from .validation.verdict import check_margin, compare_outputs

_LARGEST = MinMax()
_ANY = Unstructured()


@dataclass(frozen=True)
class Summary:
    """What :func:`compress` did.

    Attributes
    ----------
    parameters : (int, int)
        Weights and biases of the original, and those that are left: removed channels and pruned weights don't count.
    bytes : (int, int)
        Size on disk of the original (plain safetensors) and of the compressed model.
    epochs : int
        Passes over the training data that the compression spent.
    pruning : PruneSummary or None
    quantization : QuantizeSummary or None
    layers : tuple of LayerDecision
        Format, kernel, times and reason of each layer.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    epochs: int
    pruning: PruneSummary | None
    quantization: QuantizeSummary | None
    layers: tuple[LayerDecision, ...]


@dataclass(frozen=True)
class Compressed:
    """The result of :func:`compress`.

    Attributes
    ----------
    model : nn.Module
        The compressed model, packed, in eval mode.
    verdict : Verdict or None
        Original against compressed on the test data; None without test data.
    summary : Summary

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> result = compress(model, None, None, sparsity=0.5, quantize=Int8(), example_inputs=torch.zeros(1, 16))
    >>> result.verdict, result.summary.pruning.sparsity, result.model.training
    (None, 0.5, False)
    """

    model: nn.Module
    verdict: Verdict | None
    summary: Summary


def compress(
    model: nn.Module,
    train: Data | None,
    test: Data | None,
    *,
    sparsity: float | None = None,
    quantize: Grid | None = None,
    calibration: Data | None = None,
    observer: Observer = _LARGEST,
    bias_correction: bool = False,
    max_error: float | None = None,
    simplify: float | Mapping[str, float] | None = None,
    score: scores.Score = scores.magnitude,
    pattern: Structure = _ANY,
    rounds: int = 1,
    epochs: int = 5,
    teacher: nn.Module | None = None,
    example_inputs: Tree | None = None,
    metric: Metric = accuracy,
    margin: float = 0.01,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    seed: int = 0,
    progress: bool = True,
    **training: Any,
) -> Compressed:
    """Make a copy of a trained model smaller and faster, and compare it with the original.

    In this order, each where asked for: the least important neurons and channels are removed (``simplify``), weights
    are pruned (``sparsity``) in ``rounds`` with rising sparsity ``s * (1 - (1 - i / rounds)^3)`` (Zhu and Gupta 2017),
    weights are rounded to a grid (``quantize``). After every removal and round the copy is trained on ``train`` to
    answer like the teacher (:func:`pycompress.distill_`). Then it is packed: a layer is replaced by one on a faster
    kernel only where that was measured faster (:func:`pycompress.pack`).

    Parameters
    ----------
    model : nn.Module
        The trained model; it is not changed.
    train : pair, Dataset or batches, or None
        Data to fine-tune on; None: no training step.
    test : pair, Dataset or batches, or None
        Data for the verdict, and for nothing else; None: no verdict.
    sparsity : float, optional
        Fraction of the weights to prune, 0 to below 1, over all layers together (:func:`pycompress.prune_`).
    quantize : Int8, Affine or FixedPoint, optional
        Grid of the weights (:func:`pycompress.quantize_`).
    calibration : pair, Dataset or batches, optional
        Data for ``quantize``: with Int8 every layer gets a fixed scale for its inputs (static int8) instead of one
        found at run time. Often a few hundred items of ``train``.
    observer, bias_correction, max_error
        How the calibration data are used, as in :func:`pycompress.quantize_`; with ``max_error``, layers whose outputs
        would change by more than this fraction stay float, as ``summary.quantization`` says.
    simplify : float or dict of layer name to float, optional
        Fraction of the neurons and channels to remove (:func:`pycompress.simplify`).
    score : score function
        What is least important, for pruning and removal; see ``pc.scores``.
    pattern : Unstructured, Blocks, Rows, Columns or NM
        Which weights are pruned together (:func:`pycompress.prune_`).
    rounds : int
        Rounds of pruning and training.
    epochs : int
        Passes over ``train`` after the removal, and in each round.
    teacher : nn.Module, optional
        What the copy learns to answer like; by default the original.
    example_inputs : inputs for the model, optional
        What layers are timed on; by default the first item of ``train`` or ``test``.
    metric, margin
        For the verdict (:func:`pycompress.validate`).
    include, exclude : list of name patterns or module types, optional
        Which layers to compress; all of them by default.
    seed : int
        Of training and bootstrap.
    progress : bool
        Whether to show progress on stderr.
    **training
        Other arguments of :func:`pycompress.distill_`: ``temperature``, ``alpha``, ``lr``, ``batch_size``,
        ``optimizer``, ``schedule``, ``clip_norm``, ``validation_fraction``, ``patience``.

    Returns
    -------
    Compressed
        ``model``, ``verdict`` and ``summary``.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, nothing is asked for, no layer matches, or data or weights hold NaN
        or infinity: before any training. The model is never changed.

    Examples
    --------
    >>> inputs = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    >>> targets = (inputs[:, 0] > 0).long()
    >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> result = compress(model, (inputs, targets), (inputs, targets), sparsity=0.9, epochs=1, margin=0.2)
    >>> result.summary.parameters
    (1218, 181)
    """
    rounds, epochs = integer(rounds, "rounds", 1), integer(epochs, "epochs", 1)
    seed = integer(seed, "seed", 0, 2**63 - 1)
    flag(progress, "progress")
    trains = train is not None and (simplify is not None or sparsity is not None)
    _check_options(sparsity, pattern, quantize, simplify, teacher, training, trains)
    rounding = _check_rounding(quantize, calibration, observer, bias_correction, max_error)
    check_model(model)
    check_margin(margin, metric)
    example_inputs = _check_data(model, {"train": train, "test": test, "calibration": calibration}, example_inputs)
    if test is not None:
        _check_verdict(model, test, metric, margin)
    _try_out(model, sparsity, quantize, None if simplify is None else score, pattern, include, exclude, rounding)
    teacher = model if teacher is None else teacher
    twin, spent = copy_of(model), 0

    def tune() -> None:
        nonlocal spent
        if train is not None:
            with _explained(student="a copy of model", data="train"):
                history = distill_(
                    twin, teacher, train, epochs=epochs, seed=(seed + spent) % 2**63, progress=progress, **training
                )
            spent += len(history.train_loss)

    pruning = quantization = None
    if simplify is not None:
        with _explained(fraction="simplify"):
            twin = simplify_model(twin, example_inputs, simplify, score, include, exclude)
        tune()
    if sparsity is not None:
        for i in range(1, rounds + 1):
            share = sparsity * (1 - (1 - i / rounds) ** 3)
            pruning = prune_(twin, sparsity=share, score=score, pattern=pattern, include=include, exclude=exclude)
            tune()
    if quantize is not None:
        with _explained(format="quantize"):
            quantization = quantize_(twin, quantize, include=include, exclude=exclude, **rounding)
    parameters = _count(model), _count(twin)
    if any(can_be_packed(module) for module in twin.modules()):
        twin = pack(twin, example_inputs)
    else:  # there are kernels for no other layer
        twin = finalize_(twin).eval().requires_grad_(False)
    sizes = stored_bytes(model), stored_bytes(twin)
    verdict = None
    if test is not None:
        with _explained(original="model", data="test"):
            verdict = validate(model, twin, test, metric=metric, margin=margin, seed=seed, progress=progress)
    layers = tuple(explain(twin))
    return Compressed(twin, verdict, Summary(parameters, sizes, spent, pruning, quantization, layers))


def _check_options(
    sparsity: float | None,
    pattern: Structure,
    quantize: Grid | None,
    simplify: float | Mapping[str, float] | None,
    teacher: nn.Module | None,
    training: dict[str, Any],
    trains: bool,
) -> None:
    """Refuse options that say nothing, or that nothing would use."""
    if sparsity is None and quantize is None and simplify is None:
        raise ValueError("one of sparsity, quantize and simplify must be given, got None for all of them")
    if not isinstance(pattern, Structure):
        raise TypeError(f"pattern must be Unstructured, Blocks, Rows, Columns or NM, got {pattern!r}")
    own = ("student", "teacher", "data", "epochs", "seed", "progress")
    options = [name for name in inspect.signature(distill_).parameters if name not in own]
    unknown = sorted(set(training) - set(options))
    if unknown:
        raise TypeError(f"{unknown[0]} is no argument of compress nor of distill_, which takes {', '.join(options)}")
    if teacher is not None:
        check_model(teacher, "teacher")
    unused = (["teacher"] if teacher is not None else []) + list(training)
    if unused and not trains:
        raise ValueError(
            f"{unused[0]} must come with a training step: with train, and with simplify or sparsity "
            "(quantize alone trains nothing)"
        )
    if sparsity is None and pattern != _ANY:
        raise ValueError(f"pattern must come with sparsity, got {pattern} and sparsity=None")


def _check_data(model: nn.Module, given: Mapping[str, Data | None], example_inputs: Tree | None) -> Tree:
    """Check the data and that the model takes their inputs; return the example inputs."""
    found = {}
    for name, data in given.items():
        if data is not None:
            check(data, name, finite=isinstance(data, list) or as_pair(data, name) is not None)
            found[f"{name} inputs"] = first_inputs(data, 1, name)
    if example_inputs is not None:
        found["example_inputs"] = example_inputs
    if not found:
        raise ValueError("example_inputs must be given where train, test and calibration are None, got None")
    probe = copy_of(model).eval()
    with torch.no_grad():
        for name, inputs in found.items():
            forward(probe, inputs, name)
    return next(iter(found.values())) if example_inputs is None else example_inputs


def _check_rounding(
    quantize: Grid | None, calibration: Data | None, observer: Observer, bias_correction: bool, max_error: float | None
) -> dict[str, Any]:
    """Refuse what nothing would use; return the arguments of quantize_, which says what the values must be."""
    used = {
        "calibration": calibration is not None,
        "observer": not isinstance(observer, Observer) or observer != _LARGEST,
        "bias_correction": bias_correction is not False,
        "max_error": max_error is not None,
    }
    if quantize is None and any(used.values()):
        raise ValueError(f"{next(name for name in used if used[name])} must come with quantize, got quantize=None")
    if max_error is not None:
        number(max_error, "max_error", 0, math.inf, low_open=True, high_open=True)
    rounding = {"observer": observer, "bias_correction": bias_correction, "max_error": max_error}
    return {"calibration": calibration, **rounding}


def _check_verdict(model: nn.Module, test: Data, metric: Metric, margin: float) -> None:
    """Refuse a metric or test data that no verdict can come from: the model is compared with itself."""
    with _explained(data="test"):
        outputs, targets = predict_each({"model": model}, test, name="test")
        compare_outputs(outputs["model"], outputs["model"], targets, metric=metric, margin=margin, resamples=1)


def _try_out(
    model: nn.Module,
    sparsity: float | None,
    quantize: Grid | None,
    score: scores.Score | None,
    pattern: Structure,
    include: Sequence[Pattern] | None,
    exclude: Sequence[Pattern] | None,
    rounding: Mapping[str, Any],
) -> None:
    """Refuse what cannot work before anything is trained: the later steps are tried on a copy of the model.

    The score is tried where training comes before pruning. Rounding is tried on the first item of the calibration data,
    which cannot tell how large the errors will be.
    """
    trial = copy_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when it is done in earnest
        if sparsity is not None:
            chosen = scores.magnitude if score is None else score
            prune_(trial, sparsity=sparsity, score=chosen, pattern=pattern, include=include, exclude=exclude)
        if quantize is not None:
            with _explained(format="quantize"):
                quantize_(trial, quantize, include=include, exclude=exclude, **_one_item(rounding))
    if any(can_be_packed(module) for module in trial.modules()):
        find_all(trial)


def _one_item(rounding: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with the first item of the calibration data, and any error allowed."""
    tried = dict(rounding)
    if tried["calibration"] is not None:
        inputs, targets = next(iter(batches(tried["calibration"], 1, name="calibration")))
        tried["calibration"] = pick(inputs, slice(1)), pick(targets, slice(1))
    if tried["max_error"] is not None:
        tried["max_error"] = sys.float_info.max
    return tried


@contextmanager
def _explained(**names: str) -> Iterator[None]:
    """Say in errors of a step, where they name its arguments, what these are here."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        known = [f"{own} is {here}" for own, here in names.items() if re.search(rf"\b{own}\b", str(error))]
        raise kind(f"{error} ({', '.join(known)})" if known else str(error)) from error


def _count(model: nn.Module) -> int:
    """Count the parameters that are not exactly zero."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())
