"""What the steps that move scale between layers share: their summary, which modules may change, and the writing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from ..masks import has_no_other_hooks
from ..selection import LAYERS, count_bad

NORMS = (nn.LayerNorm, nn.RMSNorm)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A module whose outputs were divided by factors, and the layers whose weights were multiplied by them.

    Attributes
    ----------
    source : str
        Name of the normalization or layer in front.
    layers : tuple of str
        The layers that take its outputs.
    factors : [channels] float64

    Examples
    --------
    >>> import torch
    >>> from pycompress import equalize_
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> place = equalize_(model, torch.zeros(1, 2)).places[0]
    >>> place.source, place.layers, place.factors.shape
    ('0', ('2',), torch.Size([4]))
    """

    source: str
    layers: tuple[str, ...]
    factors: Tensor


@dataclass(frozen=True)
class RescaleSummary:
    """What :func:`smooth_` and :func:`equalize_` did; printed, it is a table.

    Attributes
    ----------
    places : tuple of Rescaled

    Examples
    --------
    >>> print(RescaleSummary((Rescaled("norm", ("q", "k"), Tensor([0.5, 3.0])),)))
    norm -> q, k  factors from 0.5 to 3
    """

    places: tuple[Rescaled, ...]

    def __str__(self) -> str:
        ways = [f"{place.source} -> {', '.join(place.layers)}" for place in self.places]
        width = max(map(len, ways))
        return "\n".join(
            f"{way:<{width}}  factors from {float(place.factors.min()):.3g} to {float(place.factors.max()):.3g}"
            for way, place in zip(ways, self.places, strict=True)
        )


class Fit:
    """Says whether a module's parameters are its own, and its forward the one that is known.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> Fit(nn.Sequential(layer))(layer)
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.places = Counter(
            parameter
            for module in model.modules()
            for parameter in module._parameters.values()
            if parameter is not None
        )

    def __call__(self, module: nn.Module) -> bool:
        """Say it."""
        known = any(
            type(module).forward is kind.forward for kind in (*LAYERS, *NORMS, *BATCH_NORMS, nn.MultiheadAttention)
        )
        own = module._parameters.get(taking(module)) is not None and (
            "bias" in module._parameters or not hasattr(module, "bias")
        )
        alone = all(self.places[parameter] == 1 for parameter in module._parameters.values() if parameter is not None)
        return known and own and alone and has_no_other_hooks(module)


def taking(layer: nn.Module) -> str:
    """Return the name of the weight that a layer's inputs are multiplied with.

    Examples
    --------
    >>> taking(nn.MultiheadAttention(2, 1))
    'in_proj_weight'
    """
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


def write(changed: dict[nn.Parameter, Tensor], names: dict[nn.Module, str]) -> None:
    """Give parameters new values, all or none.

    Examples
    --------
    >>> layer = nn.Linear(1, 1)
    >>> write({layer.bias: Tensor([2.0])}, {layer: ""})
    >>> layer.bias.item()
    2.0
    """
    rounded = {parameter: value.to(parameter.dtype) for parameter, value in changed.items()}
    bad = {parameter for parameter, value in rounded.items() if count_bad(value)}
    if bad:
        owners = [name for module, name in names.items() if not bad.isdisjoint(module._parameters.values())]
        raise ValueError(f"model must have weights and biases that stay finite when they are rescaled, got {owners}")
    for parameter, value in rounded.items():
        parameter.data.copy_(value)
