"""Scores that need the weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.arrays import integer
from ..selection import check_weights
from .running import Score, wide


def magnitude(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Score a weight by its L1 norm, ``|w|`` (Han et al. 2015).

    Parameters
    ----------
    model : Module
    layers : dict of name to module
        The layers to score.

    Returns
    -------
    dict of name to [shape of weight] float32 (float64 for float64 weights)

    Raises
    ------
    ValueError
        When a layer's weight is not a finite float parameter.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -4.0]])
    >>> magnitude(layer, {"": layer})
    {'': tensor([[3., 4.]])}
    """
    return {name: wide(weight).abs() for name, weight in check_weights(layers).items()}


def l2(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Score a weight by its squared L2 norm, ``w^2``.

    Single weights rank as with :func:`magnitude`; the sum over a row or channel ranks as its L2 norm.

    Parameters and errors are those of :func:`magnitude`.

    Returns
    -------
    dict of name to [shape of weight] float64

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -4.0]])
    >>> l2(layer, {"": layer})[""].tolist()
    [[9.0, 16.0]]
    """
    return {name: weight.detach().double().square() for name, weight in check_weights(layers).items()}


def lamp(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Score a weight by its square over the sum of squares of all weights of its layer that are not smaller.

    ``s(u) = w_u^2 / sum over v with |w_v| >= |w_u| of w_v^2``: layer-adaptive magnitude pruning (Lee et al. 2021), for
    ``across_layers=True``. The largest weight of every layer scores 1, so no layer is pruned away. Equal weights count
    in the order of their index.

    Parameters and errors are those of :func:`magnitude`.

    Returns
    -------
    dict of name to [shape of weight] float32

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[1.0, -2.0]])
    >>> lamp(layer, {"": layer})[""].tolist()
    [[0.20000000298023224, 1.0]]
    """
    scores = {}
    for name, weight in check_weights(layers).items():
        squares, order = weight.detach().double().square().flatten().sort(stable=True)
        not_smaller = squares.flip(0).cumsum(0).flip(0)
        share = squares / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
        scores[name] = torch.empty_like(squares).index_copy_(0, order, share).float().view(weight.shape)
    return scores


def random(seed: int = 0) -> Score:
    """Make a score of independent uniform random numbers: the baseline that every other score has to beat.

    Parameters
    ----------
    seed : int
        The same seed gives the same scores.

    Returns
    -------
    Score

    Raises
    ------
    TypeError, ValueError
        When seed is no int of 0 to 2^63 - 1.

    Examples
    --------
    >>> layer = nn.Linear(4, 1)
    >>> score = random(seed=3)
    >>> bool((score(layer, {"": layer})[""] == score(layer, {"": layer})[""]).all())
    True
    """
    seed = integer(seed, "seed", 0, 2**63 - 1)

    def score(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(weight.shape, generator=generator).to(weight.device)
            for name, weight in check_weights(layers).items()
        }

    return score
