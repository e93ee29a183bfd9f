"""Can an outsider tell from a model's losses which items it was trained on?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..calls import applied
from ..data import Data
from .arguments import check_between
from .bootstrap import Floats, Interval, checked_values
from .metrics import PerItem, log_likelihood, neg_mse, per_item_of
from .predictions import predict_each
from .statistics import normal_quantile, plausible_end, unseen_share


@dataclass(frozen=True)
class MembershipResult:
    """How well a loss threshold tells members from non-members.

    Attributes
    ----------
    auc : float
        Probability that a member has a smaller loss than a non-member: 0.5 is chance, 1 is full disclosure.
    interval : (float, float)
        Of the AUC.
    advantage : float
        TPR - FPR of the attack that says "member" where the loss is not above the members' mean (Yeom et al. 2018).
    tpr_at_1_percent : float or None
        Largest share of members found while at most 1 % of non-members are taken for members (Carlini et al. 2022).
        None with fewer than 100 non-members.
    tpr_at_0_1_percent : float or None
        Likewise at 0.1 %; None with fewer than 1000 non-members.
    members, non_members : int

    Examples
    --------
    >>> MembershipResult(0.5, (0.4, 0.6), 0.0, None, None, members=50, non_members=50).to_dict()["auc"]
    0.5
    """

    auc: float
    interval: Interval
    advantage: float
    tpr_at_1_percent: float | None
    tpr_at_0_1_percent: float | None
    members: int
    non_members: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


@dataclass(frozen=True)
class MembershipComparison:
    """The attack on a model before and after compression, with the same items.

    Attributes
    ----------
    original, compressed : MembershipResult
    difference : float
        AUC of compressed - original: above 0, the compressed model gives more away.
    interval : (float, float)
        Of the difference, paired.

    Examples
    --------
    >>> result = MembershipResult(0.5, (0.4, 0.6), 0.0, None, None, members=50, non_members=50)
    >>> MembershipComparison(result, result, 0.0, (-0.1, 0.1)).difference
    0.0
    """

    original: MembershipResult
    compressed: MembershipResult
    difference: float
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        return {
            "original": self.original.to_dict(),
            "compressed": self.compressed.to_dict(),
            "difference": self.difference,
            "interval": list(self.interval),
        }


def membership_inference(
    model: nn.Module,
    members: Data,
    non_members: Data,
    *,
    score: PerItem | None = None,
    batch_size: int = 256,
    confidence: float = 0.95,
) -> MembershipResult:
    """Attack a model with a loss threshold: items with a small loss are taken for training items.

    The AUC is the Mann-Whitney statistic of the losses (Yeom et al. 2018, CSF: loss threshold), with the interval of
    :func:`auc_interval`. The attack is the simplest one; a model that resists it may fall to a stronger one.

    Parameters
    ----------
    model : torch.nn.Module
    members : pair, Dataset or batches
        Items that the model was trained on, without augmentation.
    non_members : pair, Dataset or batches
        Items from the same source that it was not trained on.
    score : callable, optional
        ``score(outputs, targets)`` -> [items], higher = more likely a member. Default: minus the cross-entropy for
        class indices, minus the squared error for floating targets.
    batch_size : int
    confidence : float
        Of the interval.

    Returns
    -------
    MembershipResult

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, there are fewer than 2 items on a side, or losses are not finite.

    Examples
    --------
    >>> import torch
    >>> memorized, unseen = torch.eye(3) * 9, torch.zeros(3, 3)
    >>> membership_inference(nn.Identity(), (memorized, torch.arange(3)), (unseen, torch.arange(3))).auc
    1.0
    """
    check_between(confidence, "confidence", 0, 1)
    [(inside, outside)] = _scores({"model": model}, members, non_members, score, batch_size)
    return _result(inside, outside, confidence)


def compare_membership(
    original: nn.Module,
    compressed: nn.Module,
    members: Data,
    non_members: Data,
    *,
    score: PerItem | None = None,
    batch_size: int = 256,
    confidence: float = 0.95,
) -> MembershipComparison:
    """Attack a model before and after compression, on the same items.

    The interval of the difference takes into account that both AUCs come from the same items (DeLong et al. 1988,
    Biometrics 44:837). Where the two models rank all items alike, it is +- the largest plausible share of items that
    they would not.

    Parameters
    ----------
    original, compressed : torch.nn.Module
    members, non_members, score, batch_size, confidence
        As in :func:`membership_inference`; members: items that either model was trained on.

    Returns
    -------
    MembershipComparison

    Raises
    ------
    TypeError, ValueError
        As :func:`membership_inference`.

    Examples
    --------
    >>> import torch
    >>> memorized, unseen = (torch.eye(3) * 9, torch.arange(3)), (torch.zeros(3, 3), torch.arange(3))
    >>> compare_membership(nn.Identity(), nn.Threshold(99.0, 0.0), memorized, unseen).difference
    -0.5
    """
    check_between(confidence, "confidence", 0, 1)
    models = {"original": original, "compressed": compressed}
    before, after = _scores(models, members, non_members, score, batch_size)
    differences = [new - old for new, old in zip(_placements(*after), _placements(*before), strict=True)]
    difference = float(differences[0].mean())
    z = normal_quantile(confidence)
    half = z * math.sqrt(sum(float(part.var(ddof=1)) / part.size for part in differences))
    if half == 0:
        half = sum(unseen_share(part.size, confidence) for part in differences)
    return MembershipComparison(
        _result(*before, confidence),
        _result(*after, confidence),
        difference,
        (max(difference - half, -1.0), min(difference + half, 1.0)),
    )


def auc_interval(positives: ArrayLike, negatives: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Area under the ROC curve of scores, with its interval.

    ``AUC = P(positive > negative) + P(equal) / 2``. The interval is that of DeLong (1988) on the logit scale; where
    its variance is zero (no overlap, or all scores equal) that of Newcombe (2006, Stat. Med. 25:559, method 5).

    Parameters
    ----------
    positives, negatives : [items] float64
        Scores; at least 2 on each side.
    confidence : float

    Returns
    -------
    (auc, low, high) : floats in [0, 1]

    Raises
    ------
    ValueError
        When scores are not finite or there are fewer than 2 on a side.

    Examples
    --------
    >>> auc, low, high = auc_interval([3.0, 4.0, 5.0], [1.0, 2.0, 2.5])
    >>> f"{auc:.2f} {low:.2f} {high:.2f}"
    '1.00 0.50 1.00'
    """
    inside, outside = checked_values(positives, "positives"), checked_values(negatives, "negatives")
    z = normal_quantile(confidence)
    placements = _placements(inside, outside)
    auc = float(placements[0].mean())
    variance = sum(float(part.var(ddof=1)) / part.size for part in placements)
    if variance > 0 and 0 < auc < 1:
        middle, half = math.log(auc / (1 - auc)), z * math.sqrt(variance) / (auc * (1 - auc))
        return auc, _expit(middle - half), _expit(middle + half)
    size = inside.size * outside.size
    extra = (inside.size + outside.size) / 2 - 1

    def is_plausible(area: float) -> bool:
        spread = 1 + extra * (1 - area) / (2 - area) + extra * area / (1 + area)
        return (auc - area) ** 2 <= z * z * area * (1 - area) / size * spread

    return auc, plausible_end(is_plausible, auc, 0.0), plausible_end(is_plausible, auc, 1.0)


def _scores(
    models: dict[str, nn.Module], members: Data, non_members: Data, score: PerItem | None, batch_size: int
) -> list[tuple[Floats, Floats]]:
    """Return for each model the scores of members and of non-members."""
    if score is not None and not callable(score):
        raise TypeError(f"score must be a function of (outputs, targets), got {type(score).__name__}")
    sides: list[dict[str, Floats]] = []
    for name, items in (("members", members), ("non_members", non_members)):
        outputs, targets = predict_each(models, items, batch_size, name=name)
        function = _default_score(targets, name) if score is None else score
        sides.append({key: _item_scores(function, rows, targets, name) for key, rows in outputs.items()})
    return [(sides[0][key], sides[1][key]) for key in models]


def _default_score(targets: Any, name: str) -> PerItem:
    if not isinstance(targets, Tensor):
        raise TypeError(f"score must be given when {name} has targets that are no single tensor, got None")
    per_item = per_item_of(neg_mse if targets.is_floating_point() else log_likelihood)
    assert per_item is not None
    return per_item


def _item_scores(score: PerItem, outputs: Tensor, targets: Any, name: str) -> Floats:
    scores: Any = applied(score, "score", outputs, targets, name)
    values = checked_values(scores.numpy(force=True) if isinstance(scores, Tensor) else scores, f"score of {name}")
    if values.size != len(outputs):
        raise ValueError(f"score of {name} must be one number for each of {len(outputs)} items, got {values.size}")
    return values


def _result(inside: Floats, outside: Floats, confidence: float) -> MembershipResult:
    auc, low, high = auc_interval(inside, outside, confidence)
    threshold = inside.mean() - 1e-9 * np.abs(inside).max()  # losses that differ by rounding only are equal
    return MembershipResult(
        auc=auc,
        interval=(low, high),
        advantage=float((inside >= threshold).mean() - (outside >= threshold).mean()),
        tpr_at_1_percent=_tpr(inside, outside, 0.01),
        tpr_at_0_1_percent=_tpr(inside, outside, 0.001),
        members=inside.size,
        non_members=outside.size,
    )


def _tpr(inside: Floats, outside: Floats, fpr: float) -> float | None:
    allowed = math.floor(outside.size * fpr + 1e-9)
    if allowed < 1:
        return None
    threshold = np.partition(outside, outside.size - allowed - 1)[outside.size - allowed - 1]
    return float((inside > threshold).mean())


def _placements(inside: Floats, outside: Floats) -> tuple[Floats, Floats]:
    """Share of the other side that each score wins against, ties half: [members], and 1 - that: [non-members]."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))
    wins = (ranks[: inside.size] - rankdata(inside)) / outside.size
    losses = 1 - (ranks[inside.size :] - rankdata(outside)) / inside.size
    return np.asarray(wins, np.float64), np.asarray(losses, np.float64)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
