"""What a profile holds, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import tables

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


@dataclass(frozen=True)
class Amount:
    """What something costs in one run of the model.

    Attributes
    ----------
    parameters, nonzero : int
        Numbers of weights and biases, and those that are not zero. Shared ones count once, those of packed layers as
        the dense layer has them.
    bytes : int
        In memory, as they are stored: parameters and buffers, or packed weights.
    operations : int or None
        Multiply-adds; None where they could not be counted.
    microseconds : float
        Median.

    Examples
    --------
    >>> Amount(6, 6, 24, 12, 1.5).operations
    12
    """

    parameters: int
    nonzero: int
    bytes: int
    operations: int | None
    microseconds: float


@dataclass(frozen=True)
class Gain:
    """What another format would save at one layer, measured with the layer alone.

    Attributes
    ----------
    format : str
        Such as ``"Int8()"``.
    sparsity : float or None
        Fraction of the weights that was set to zero for the trial, those of smallest magnitude.
    now_us, then_us : float
        Median microseconds of all calls in one run of the model, of the layer as it is and packed.
    speedup, low, high : float
        Median of the paired ratios now / then and its 95 % interval.
    now_bytes, then_bytes : int
        Of the layer's weights in memory.

    Examples
    --------
    >>> Gain("Int8()", None, 30.0, 10.0, 3.0, 2.9, 3.1, 4000, 1100).saved_us
    20.0
    """

    format: str
    sparsity: float | None
    now_us: float
    then_us: float
    speedup: float
    low: float
    high: float
    now_bytes: int
    then_bytes: int

    @property
    def saved_us(self) -> float:
        """Microseconds that it would save in one run of the model; negative where it is slower."""
        return self.now_us - self.then_us

    @property
    def saved_bytes(self) -> int:
        """Bytes of memory that it would save."""
        return self.now_bytes - self.then_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for JSON."""
        return {**asdict(self), "saved_us": self.saved_us, "saved_bytes": self.saved_bytes}


@dataclass(frozen=True)
class LayerProfile:
    """One module.

    Attributes
    ----------
    name, kind : str
        Name in the model, "" for the model itself, and type.
    format : str
        How its own weights are stored: a dtype, a packed format, or "".
    kernel : str or None
        The kernel that runs, of packed layers; None: torch's own.
    calls : int
        In one run of the model.
    sparsity : float
        Part of zeros among the weights of two or more dimensions, in it and in the modules inside it.
    activation_bytes : int
        Of the tensors that it returns in one run, but for those that share the memory of an input.
    own : Amount
        Without the modules inside it.
    total : Amount
        With them. Operations and times are those of everything that runs while it does, so that a module that stands
        at two places counts where it is called.
    gains : tuple of Gain
        What other formats would save here.
    note : str
        Why there is no gain, where the layer has weights.

    Examples
    --------
    >>> amount = Amount(9, 9, 36, 100, 2.0)
    >>> LayerProfile("fc", "Linear", "float32", None, 1, 0.0, 40, amount, amount).gflops
    0.1
    """

    name: str
    kind: str
    format: str
    kernel: str | None
    calls: int
    sparsity: float
    activation_bytes: int
    own: Amount
    total: Amount
    gains: tuple[Gain, ...] = ()
    note: str = ""

    @property
    def gflops(self) -> float | None:
        """Achieved 1e9 operations per second, a multiply-add being two, with all that runs inside."""
        if not self.total.operations or self.total.microseconds <= 0:
            return None
        return 2 * self.total.operations / self.total.microseconds / 1e3


@dataclass(frozen=True)
class Profile:
    """What :func:`pycompress.profile` found; printed, it is a tree.

    Attributes
    ----------
    layers : tuple of LayerProfile
        The model itself first, then all modules in the order of ``named_modules``.
    microseconds : float
        Median time of one run of the model as it is.
    watched_microseconds : float
        The same while every module is watched, which the times of the layers add up to. It is longer where modules are
        tiny, and where watching keeps the model from running several modules in one call.
    runs : int
        Of each of the two kinds, in turns.
    threads : int
    notes : tuple of str
        What could not be measured.

    Examples
    --------
    >>> amount = Amount(9, 9, 36, 100, 2.0)
    >>> layer = LayerProfile("", "Linear", "float32", None, 1, 0.0, 40, amount, amount)
    >>> print(str(Profile((layer,), 1.9, 2.0, 10, 1)).splitlines()[-1])
    1.9 us for one run, 2.0 us while every module is watched (medians of 10 runs each, 1 thread).
    """

    layers: tuple[LayerProfile, ...]
    microseconds: float
    watched_microseconds: float
    runs: int
    threads: int
    notes: tuple[str, ...] = ()

    def share(self, layer: LayerProfile) -> float:
        """Return a layer's own part of the time, from 0 to 1."""
        whole = sum(row.own.microseconds for row in self.layers)
        return layer.own.microseconds / whole if whole else 0.0

    @property
    def savings(self) -> dict[str, tuple[float, int]]:
        """Microseconds and bytes by format: the sums over the layers that would be faster."""
        found: dict[str, tuple[float, int]] = {}
        for layer in self.layers:
            for gain in layer.gains:
                if gain.low > 1:
                    us, count = found.get(title(gain), (0.0, 0))
                    found[title(gain)] = us + gain.saved_us, count + gain.saved_bytes
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        return {
            "microseconds": self.microseconds,
            "watched_microseconds": self.watched_microseconds,
            "runs": self.runs,
            "threads": self.threads,
            "savings": {name: {"us": us, "bytes": count} for name, (us, count) in self.savings.items()},
            "notes": list(self.notes),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "format": layer.format,
                    "kernel": layer.kernel,
                    "calls": layer.calls,
                    "sparsity": layer.sparsity,
                    "activation_bytes": layer.activation_bytes,
                    "own": asdict(layer.own),
                    "total": asdict(layer.total),
                    "share": self.share(layer),
                    "gflops": layer.gflops,
                    "gains": [gain.to_dict() for gain in layer.gains],
                    "note": layer.note,
                }
                for layer in self.layers
            ],
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        from .showing import laid_out

        return tables.text(laid_out(self, tables.width()))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from .showing import laid_out

        yield from laid_out(self, options.max_width)


def title(gain: Gain) -> str:
    """Return the name of a gain: its format, and the sparsity that it was tried at.

    Examples
    --------
    >>> title(Gain("Sparse()", 0.9, 30.0, 10.0, 3.0, 2.9, 3.1, 4000, 1100))
    'Sparse() at 90 %'
    """
    return gain.format if gain.sparsity is None else f"{gain.format} at {100 * gain.sparsity:g} %"
