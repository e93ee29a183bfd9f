"""One call that says whether a compressed model may take the place of its original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numpy.typing import ArrayLike
from torch import nn

from ..calls import check_model
from ..data import Data, check, first_inputs
from ..kernels.arrays import flag
from ..progress import track
from .arguments import check_integer
from .cost import measure_cost, measure_latency
from .fidelity import layer_errors
from .metrics import Metric, accuracy
from .predictions import evaluating, predict_each
from .verdict import Verdict, check_margin, check_options, compare_outputs

_LAYER_ITEMS = 256


def validate(
    original: nn.Module,
    compressed: nn.Module,
    data: Data,
    *,
    metric: Metric = accuracy,
    margin: float = 0.01,
    external: dict[str, Data] | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int | None = None,
    batch_size: int = 256,
    latency: bool = True,
    batch_sizes: Sequence[int] = (1, 32),
    seed: int = 0,
    progress: bool = True,
) -> Verdict:
    """Compare two models on the same items, and what they cost.

    Parameters
    ----------
    original, compressed : torch.nn.Module
        Any two models with outputs of the same shape. They are not changed.
    data : pair, Dataset or batches
        Items that neither model was trained or tuned on. Read once for the comparison.
    metric : callable
        ``metric(outputs, targets) -> float``, higher is better; see :mod:`pycompress.validation.metrics`.
    margin : float
        The largest loss of the metric that is accepted: positive, and below 1 for metrics that are fractions (0.01 is
        one point of accuracy).
    external : dict of str to data, optional
        Further data sets; each gets a verdict of its own.
    groups : [items], optional
        Label of the group of each item of ``data`` (patient, author): items of a group are not independent.
    confidence : float
        Of the intervals.
    resamples : int, optional
        Of the bootstrap; default 10 000 where the metric has ``per_item``, else 1 000.
    batch_size : int
        For data that is not in batches.
    latency : bool
        Whether to measure latency, about 2 s.
    batch_sizes : sequence of int
        For latency.
    seed : int
        Of the bootstrap.
    progress : bool
        Whether to show progress.

    Returns
    -------
    Verdict

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, there are fewer than 2 items, outputs of the two models have
        different shapes, or one of them holds NaN.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(2, 2)
    >>> data = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 2
    >>> verdict = validate(model, model, data, margin=0.01, latency=False)
    >>> verdict.decision, verdict.agreement
    ('non-inferior', 1.0)
    """
    models = {"original": original, "compressed": compressed}
    for name, model in models.items():
        check_model(model, name)
    check_margin(margin, metric)
    check_options(confidence, resamples, batch_size, seed)
    flag(latency, "latency")
    check(data, "data")
    others = {} if external is None else external
    if not isinstance(others, dict):
        raise TypeError(f"external must be a dict of names to data, got {type(external).__name__}")
    for name, items in others.items():
        if not isinstance(name, str):
            raise TypeError(f"external must have names as keys, got {name!r}")
        check(items, f"external[{name!r}]")
    if not isinstance(batch_sizes, Sequence) or isinstance(batch_sizes, (str, bytes)):
        raise TypeError(f"batch_sizes must be a sequence of ints, got {type(batch_sizes).__name__}")
    if not batch_sizes:
        raise ValueError(f"batch_sizes must not be empty, got {batch_sizes!r}")
    for size in batch_sizes:
        check_integer(size, "batch_sizes", 1)

    def compare(items: Data, name: str, groups: ArrayLike | None) -> Verdict:
        outputs, targets = predict_each(models, items, batch_size, name=name)
        verdict = compare_outputs(
            outputs["original"],
            outputs["compressed"],
            targets,
            metric=metric,
            margin=margin,
            groups=groups,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            name=name,
        )
        steps.advance()
        return verdict

    with track(len(others) + 3, "validating", progress) as steps:
        cost = measure_cost(original, compressed)
        verdict = compare(data, "data", groups)
        verdicts = {name: compare(items, f"external[{name!r}]", None) for name, items in others.items()}
        with evaluating():
            inputs = first_inputs(data, _LAYER_ITEMS)
        fidelity = layer_errors(original, compressed, inputs)
        steps.advance()
        if latency:
            cost = replace(cost, latency=measure_latency(original, compressed, inputs, batch_sizes=batch_sizes))
        steps.advance()
    return replace(verdict, cost=cost, fidelity=fidelity, external=verdicts)
