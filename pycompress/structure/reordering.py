"""Channel permutation: outputs that can be pruned together are put side by side, so that blocks cost less accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .. import scores
from ..calls import copy_of, forward
from ..data import Tree
from ..kernels.arrays import integer
from ..selection import Pattern, WeightOf, select
from .cutting import move_, parts_of
from .following import follow
from .groups import Family, families, mark_modules
from .labels import Coupling
from .operations import LOSERS
from .removal import fractions_of, same_outputs
from .tracing import losing_layers, trace

_ROUNDS = 50  # at most; a dozen are usual
_ENOUGH = 5e-4  # of the sum: what a round has to add


def permute_channels(
    model: nn.Module,
    example_inputs: Tree,
    block: tuple[int, int],
    sparsity: float,
    score: scores.Score = scores.magnitude,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
) -> nn.Module:
    """Return a copy of a model that computes the same, in which pruning by blocks keeps more of the score.

    The outputs of a layer (neurons, channels, hidden units, heads) are put into another order, with their biases, what
    normalizes them, and the inputs of all layers that they enter: the function stays, up to the rounding of sums in
    another order. Of all orders one is sought in which the blocks that ``prune_(pattern=Blocks(*block))`` would keep
    hold the largest sum of scores: ``max over order, mask of sum over blocks b of mask[b] * sum of scores in b``, with
    a fraction ``1 - sparsity`` of the blocks of each layer in the mask. Steps in turns: the best mask for an order is
    the largest blocks; for a mask, pairs of outputs change places as long as that raises the sum, the best ones first.
    Neither step lowers it: it ends in a local optimum. Layers are permuted one after the other, the first first, with
    the inputs as they then lie.

    Outputs that have to stay where they are (those that the model gives out, or that meet what keeps its order, as a
    residual stream does) stay; see :func:`pycompress.simplify`, which follows them in the same way.

    Parameters
    ----------
    model : nn.Module
        Not changed. Masks and quantization grids stay with their weights.
    example_inputs : tensor, or tuple or dict of tensors
        Inputs that the model accepts; the result is run on them, to see that it computes the same.
    block : (int, int)
        Outputs x inputs, as in :class:`pycompress.Blocks`.
    sparsity : float
        Fraction of the blocks that will be pruned, above 0 and below 1.
    score : function
        ``score(model, layers) -> dict[str, Tensor]`` with a tensor like each weight, called once for each set of layers
        that is permuted together. Higher = keep.
    include, exclude : list of name patterns or module types, optional
        Which layers are permuted.

    Returns
    -------
    nn.Module

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or range, no layer can be permuted, or the model computes something else with
        its channels in another order (``exclude`` is the way out).

    References
    ----------
    Pool, J. and Yu, C. (2021). Channel Permutations for N:M Sparsity. NeurIPS.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> model[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> permute_channels(model, torch.zeros(1, 2), (2, 1), sparsity=0.5)[0].weight.tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    selected = select(model, include, exclude, LOSERS)
    if not callable(score):
        raise TypeError(f"score must be a function of (model, layers), got {type(score).__name__}")
    height, width = _checked(block, sparsity)
    traced = trace(model, example_inputs)
    candidates = losing_layers(traced)
    fractions = fractions_of(model, candidates, selected, 0.5)
    coupling, _ = follow(traced)
    mark_modules(model, traced, coupling)
    ends = set(coupling.layers(coupling.outputs)) - set(candidates)
    found = families(model, coupling, fractions, ends, False, include is not None)
    result = copy_of(model)
    for family in found:
        per_group = height // _rows_of_a_set(coupling, family)
        if per_group > 1:
            result = _permuted(result, coupling, family, (per_group, width), sparsity, score)
    before, after = _outputs(model, example_inputs), _outputs(result, example_inputs)
    if not same_outputs(before, after):
        names = ", ".join(dict.fromkeys(name for family in found for name in _layers(coupling, family)))
        raise ValueError(
            f"model must compute the same with the channels of {names} in another order (exclude=[...] leaves layers as"
            " they are), got other outputs"
        )
    return result


def _permuted(
    model: nn.Module,
    coupling: Coupling,
    family: Family,
    block: tuple[int, int],
    sparsity: float,
    score: scores.Score,
) -> nn.Module:
    """Return the model with a family in its best order, or the model itself where that is none."""
    height, width = block
    values = _block_scores(model, coupling, family, width, score)
    found = copy_of(model)
    _reorder_(found, coupling, family, _order(values, height, sparsity))
    # A layer that feeds itself, as an LSTM does, has its inputs in another order now too.
    after = _block_scores(found, coupling, family, width, score)
    as_is = torch.arange(len(family.sets))
    return (
        found
        if _best_mask(after, as_is, height, sparsity)[1] > _best_mask(values, as_is, height, sparsity)[1]
        else model
    )


def _checked(block: object, sparsity: object) -> tuple[int, int]:
    if not isinstance(block, tuple) or len(block) != 2:
        raise TypeError(f"block must be a tuple (height, width), got {block!r}")
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"sparsity must be a number, got {type(sparsity).__name__}")
    if not (math.isfinite(sparsity) and 0 < sparsity < 1):
        raise ValueError(f"sparsity must be above 0 and below 1, got {sparsity}")
    return integer(block[0], "block", 1), integer(block[1], "block", 1)


def _outputs(model: nn.Module, example_inputs: Tree) -> object:
    with torch.no_grad():
        return forward(copy_of(model).eval(), example_inputs, "example_inputs")


def _keys(coupling: Coupling) -> list[str]:
    """Return the key of each unit."""
    return [key for key, units in coupling.outputs.items() for _ in range(units.numel())]


def _layers(coupling: Coupling, family: Family) -> list[str]:
    keys = _keys(coupling)
    return coupling.layers(dict.fromkeys(keys[unit] for unit in family.sets[0].tolist()))


def _rows_of_a_set(coupling: Coupling, family: Family) -> int:
    """Return how many outputs of one layer go together, as those of a head do."""
    keys = _keys(coupling)
    own = [keys[unit] for unit in family.sets[0].tolist()]
    return max(own.count(key) for key in set(own))


def _block_scores(
    model: nn.Module, coupling: Coupling, family: Family, width: int, score: scores.Score
) -> list[Tensor]:
    """Return for each layer of a family the scores of its sets by blocks of inputs, [sets, blocks] float64."""
    none = torch.zeros(coupling.count, dtype=torch.bool)
    owner = torch.full((coupling.count,), -1)
    for index, members in enumerate(family.sets):
        owner[members] = index
    layers: dict[str, nn.Module] = {}
    places: dict[str, Tensor] = {}
    for name in _layers(coupling, family):
        module = model.get_submodule(name)
        for part in parts_of(name, module, coupling, none)[0]:
            weight = WeightOf(module, part.parameter) if part.parameter in module._parameters else None
            sets = owner[part.units]
            if part.dim != 0 or weight is None or cast(Tensor, weight.weight).ndim < 2 or bool((sets < 0).all()):
                continue
            key = name if part.parameter == "weight" else f"{name}.{part.parameter}"
            layers[key], places[key] = module if part.parameter == "weight" else weight, sets
    given = score(model, dict(layers))
    found = []
    for name, sets in places.items():
        values = given.get(name) if isinstance(given, dict) else None
        if not isinstance(values, Tensor) or values.ndim < 2 or values.shape[0] != sets.numel():
            raise ValueError(f"score must return a tensor like each weight, got {type(values).__name__} for {name}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"score must return finite tensors, got NaN or infinity for {name}")
        matrix = values.detach().to("cpu", torch.float64).flatten(1)
        matrix = nn.functional.pad(matrix, (0, -matrix.shape[1] % width))
        sums = torch.zeros(len(family.sets), matrix.shape[1] // width, dtype=torch.float64)
        own = sets >= 0
        found.append(sums.index_add_(0, sets[own], matrix.reshape(len(sets), -1, width).sum(2)[own]))
    return found


def _best_mask(values: list[Tensor], order: Tensor, height: int, sparsity: float) -> tuple[Tensor, float]:
    """Return which blocks pruning keeps with sets in some order, [groups, blocks of all layers], and their score."""
    group = torch.arange(order.numel()) // height
    sizes = torch.bincount(group).double()[:, None]
    masks, kept = [], 0.0
    for matrix in values:
        sums = torch.zeros(len(sizes), matrix.shape[1], dtype=torch.float64).index_add_(0, group, matrix[order])
        keep = sums.numel() - round(sparsity * sums.numel())
        mask = torch.zeros(sums.numel(), dtype=torch.bool)
        mask[(sums / sizes).flatten().argsort(descending=True, stable=True)[:keep]] = True
        masks.append(mask.view_as(sums))
        kept += float(sums[masks[-1]].sum())
    return torch.cat(masks, 1), kept


def _order(values: list[Tensor], height: int, sparsity: float) -> Tensor:
    """Return which set comes to each place, so that blocks of ``height`` sets keep most."""
    every = torch.cat(values, 1)
    count = every.shape[0]
    group = torch.arange(count) // height  # of each place
    best, most = torch.arange(count), -1.0
    for order in (torch.arange(count), _similar_first(values, height, sparsity)):
        previous = -1.0
        order = order.clone()
        for _ in range(_ROUNDS):
            mask, kept = _best_mask(values, order, height, sparsity)
            if kept > most:
                best, most = order.clone(), kept
            if kept <= previous * (1 + _ENOUGH):
                break
            previous = kept
            order = _swapped(every @ mask.double().T, order, group)
    return best[(group * count + best).argsort()]  # inside a group as they were


def _swapped(gain: Tensor, order: Tensor, group: Tensor) -> Tensor:
    """Let sets change places, two by two, until no swap raises the sum of gain[set, group of its place]."""
    count = order.numel()
    for _ in range(count):
        there = gain[order][:, group]  # of the set at each place, were it at another
        here = there.diagonal()
        raised = there + there.T - here[:, None] - here
        best, partner = raised.max(1)
        least = 1e-9 * float(here.sum())
        pairs = torch.stack([torch.arange(count), partner], 1)[
            best.argsort(descending=True)[: int((best > least).sum())]
        ]
        taken: set[int] = set()
        for a, b in pairs.tolist():
            if a not in taken and b not in taken:
                taken.update((a, b))
                order[[a, b]] = order[[b, a]]
        if not taken:
            break
    return order


def _similar_first(values: list[Tensor], height: int, sparsity: float) -> Tensor:
    """Return an order that starts each group with the largest set left, and fills it with those most like it."""
    parts = []
    for matrix in values:
        keep = max(1, round((1 - sparsity) * matrix.shape[1]))
        parts.append(torch.zeros_like(matrix).scatter_(1, matrix.topk(keep, 1).indices, 1.0))
    every = torch.cat(values, 1)
    wanted = torch.cat(parts, 1)  # what each set would keep alone
    order: list[int] = []
    left = torch.ones(every.shape[0], dtype=torch.bool)
    total = every.sum(1)
    while bool(left.any()):
        first = int(total.masked_fill(~left, -torch.inf).argmax())
        left[first] = False
        likeness = (every @ wanted[first]).masked_fill(~left, -torch.inf)
        others = likeness.topk(min(height - 1, int(left.sum()))).indices
        left[others] = False
        order += [first, *others.tolist()]
    return torch.tensor(order)


def _reorder_(model: nn.Module, coupling: Coupling, family: Family, order: Tensor) -> None:
    """Put the sets of a family into another order, wherever their units are."""
    source = torch.arange(coupling.count)
    for place, index in enumerate(order.tolist()):
        source[family.sets[place]] = family.sets[index]

    def index_of(units: Tensor) -> Tensor | None:
        if bool((source[units] == units).all() | (units < 0).all()):
            return None
        seen: dict[int, list[int]] = {}
        for position, unit in enumerate(units.tolist()):
            seen.setdefault(unit, []).append(position)
        wanted = [unit if unit < 0 else int(source[unit]) for unit in units.tolist()]
        taken = dict.fromkeys(seen, 0)
        index = []
        for unit in wanted:  # a unit that has several positions behind a flattening keeps their order
            index.append(seen[unit][taken[unit]])
            taken[unit] += 1
        return torch.tensor(index)

    move_(model, coupling, index_of)
