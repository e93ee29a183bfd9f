"""Torch modules that run LSTM and GRU on packed int8 weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import grids, kernels, sequences
from .formats import Int8
from .kernels import PackedRecurrent
from .layers import LayerDecision, PackedLayer, arrays_like

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PackedRecurrentLayer(PackedLayer):
    """What PackedLSTM and PackedGRU have in common.

    Attributes
    ----------
    input_size, hidden_size, num_layers, proj_size : int
    bias, batch_first, bidirectional : bool
        As those of nn.LSTM.

    Examples
    --------
    >>> issubclass(PackedLSTM, PackedRecurrentLayer)
    True
    """

    packed: tuple[PackedRecurrent, ...]
    cell: str

    def __init__(
        self,
        packed: Sequence[PackedRecurrent],
        bidirectional: bool = False,
        batch_first: bool = False,
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, (tuple, list)) or not all(isinstance(part, PackedRecurrent) for part in packed):
            raise TypeError(f"packed must be a sequence of PackedRecurrent, got {packed!r:.99}")
        for name, value in (("bidirectional", bidirectional), ("batch_first", batch_first)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
        sequences.check_parts(packed, bidirectional)
        if any(part.cell != self.cell for part in packed):
            raise ValueError(f"packed must hold weights of pack_{self.cell}, got {packed!r:.99}")
        super().__init__(tuple(packed), decision)
        self.bidirectional, self.batch_first = bidirectional, batch_first

    @property
    def format(self) -> Int8:
        """How the weights are stored."""
        return self.packed[0].format

    @property
    def kernel(self) -> str:
        """The kernel that runs."""
        return self.packed[0].kernel

    @property
    def input_size(self) -> int:
        """Size of the last dimension of the input."""
        return self.packed[0].input_size

    @property
    def hidden_size(self) -> int:
        """Size of the cell's state."""
        return self.packed[0].hidden_size

    @property
    def proj_size(self) -> int:
        """Size of the projected output, 0 without a projection."""
        return self.packed[0].out_size if self.packed[0].has_projection else 0

    @property
    def num_layers(self) -> int:
        """Layers, each with one or two directions."""
        return len(self.packed) // self._directions

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""
        return self.packed[0].has_bias

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def sizes(self) -> str:
        """Inputs and outputs, for messages."""
        return f"{self.input_size} -> {self._directions * self.packed[0].out_size}"

    def flatten_parameters(self) -> None:
        """Do nothing: nn.LSTM has this method, and models call it."""

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}, "
            f"batch_first={self.batch_first}, format={self.format}, kernel={self.kernel!r}"
        )

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        tensors = {}
        for index, part in enumerate(self.packed):
            for name, array in part.canonical().items():
                tensors[name + self._suffix(index)] = torch.from_numpy(array.copy())
            if part.input_scale is not None:
                tensors["input_scale" + self._suffix(index)] = torch.tensor(part.input_scale, dtype=torch.float32)
        return tensors

    def repacked(self, tensors: dict[str, Any]) -> tuple[PackedRecurrent, ...]:
        """Pack tensors that stand for the canonical ones."""
        found = arrays_like(self.canonical_tensors(), tensors)
        parts = []
        for index in range(len(self.packed)):
            suffix = self._suffix(index)
            own = {name.removesuffix(suffix): array for name, array in found.items() if _suffix_of(name) == suffix}
            parts.append(pack_part(self.cell, own))
        return tuple(parts)

    def _suffix(self, index: int) -> str:
        layer, direction = divmod(index, self._directions)
        return f"_l{layer}" + ("_reverse" if direction else "")

    def _run(self, x: object, states: Sequence[object]) -> tuple[Any, list[Tensor]]:
        self._check_input(x.data if isinstance(x, PackedSequence) else x)
        for state in states:
            self._check_input(state, "state")
        run = sequences.traced if torch.compiler.is_compiling() else sequences.run
        inputs = cast("Tensor | PackedSequence", x), cast(Sequence[Tensor], states)
        return run(self.packed, self.bidirectional, self.batch_first, *inputs)


class PackedLSTM(PackedRecurrentLayer):
    """An LSTM of one or more layers on packed int8 weights, for inference only; called as nn.LSTM is.

    Takes batched, unbatched and packed sequences of float32, float16 and bfloat16. ``state_dict``, pickles and copies
    hold the integers, which are packed again for the CPU that loads them.

    Parameters
    ----------
    packed : sequence of PackedRecurrent
        From :func:`pycompress.kernels.pack_lstm`; layer by layer, forward before backward.
    bidirectional, batch_first : bool
        As those of nn.LSTM.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, or the sizes do not fit each other.

    Notes
    -----
    ``state_dict`` holds for layer k ``weight_ih_lk`` and ``weight_hh_lk`` int8 in torch's order of gates,
    ``scale_ih_lk`` and ``scale_hh_lk`` float32 and, where they exist, ``bias_ih_lk``, ``bias_hh_lk``, ``weight_hr_lk``,
    ``scale_hr_lk`` and ``input_scale_lk``; with ``_reverse`` behind those of the backward direction.

    Examples
    --------
    >>> layer = packed_of(nn.LSTM(3, 4, num_layers=2))
    >>> y, (h, c) = layer(torch.zeros(5, 1, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 1, 4]), torch.Size([2, 1, 4]))
    """

    cell = "lstm"

    def forward(
        self, x: Tensor | PackedSequence, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run a sequence x [steps, batch, input_size]; returns the output and (h, c) as nn.LSTM does.

        Raises
        ------
        TypeError, ValueError
            When x or the state does not fit, or requires grad while grad mode is on.
        """
        if state is not None and not (isinstance(state, tuple) and len(state) == 2):
            raise TypeError(f"state must be a tuple (h, c), got {type(state).__name__}")
        y, finals = self._run(x, () if state is None else state)
        return y, (finals[0], finals[1])


class PackedGRU(PackedRecurrentLayer):
    """A GRU of one or more layers on packed int8 weights, for inference only; called as nn.GRU is.

    Takes batched, unbatched and packed sequences of float32, float16 and bfloat16. ``state_dict`` is that of
    :class:`PackedLSTM`, without projections.

    Parameters
    ----------
    packed : sequence of PackedRecurrent
        From :func:`pycompress.kernels.pack_gru`; layer by layer, forward before backward.
    bidirectional, batch_first : bool
        As those of nn.GRU.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type, or the sizes do not fit each other.

    Examples
    --------
    >>> layer = packed_of(nn.GRU(3, 4, bidirectional=True))
    >>> y, h = layer(torch.zeros(5, 1, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 1, 8]), torch.Size([2, 1, 4]))
    """

    cell = "gru"

    def forward(self, x: Tensor | PackedSequence, state: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run a sequence x [steps, batch, input_size]; returns the output and h as nn.GRU does.

        Raises
        ------
        TypeError, ValueError
            When x or the state does not fit, or requires grad while grad mode is on.
        """
        y, finals = self._run(x, () if state is None else (state,))
        return y, finals[0]


def pack_part(cell: str, own: dict[str, Any]) -> PackedRecurrent:
    """Pack one layer in one direction from its canonical arrays, by the names of :func:`kernels.pack_lstm`."""
    scale = None if own.get("input_scale") is None else float(own.pop("input_scale"))
    function = kernels.pack_lstm if cell == "lstm" else kernels.pack_gru
    return function(**own, input_scale=scale)


def own_numbers(layer: nn.Module, name: str, stem: str) -> dict[str, Tensor]:
    """Return a parameter by its name for packing, and the scale where it is a weight on a recorded Int8 grid.

    Examples
    --------
    >>> list(own_numbers(nn.GRU(2, 1), "bias_ih_l0", "bias_ih"))
    ['bias_ih']
    """
    on_grid = grids.int8_of(layer, name)
    if on_grid is None:
        return {stem: cast(Tensor, layer._parameters[name]).detach()}
    return {stem: on_grid[0], stem.replace("weight", "scale"): on_grid[1]}


def _suffix_of(name: str) -> str:
    return "_l" + name.rpartition("_l")[2]


def obstacle(layer: nn.RNNBase) -> str:
    """Return why no packed layer can stand in for this one, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.GRU(2, 1)), obstacle(nn.GRU(2, 1).double())
    ('', 'its weights are float64')
    """
    kind = nn.LSTM if isinstance(layer, nn.LSTM) else nn.GRU if isinstance(layer, nn.GRU) else None
    if kind is None:
        return f"{type(layer).__name__} has no kernel"
    if type(layer).forward is not kind.forward or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    names = [name for group in layer._all_weights for name in group]
    if any(layer._parameters.get(name) is None for name in names):
        return "its weights are computed by a parametrization, which must be removed first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which must be removed first"
    dtypes = {layer._parameters[name].dtype for name in names}  # type: ignore[union-attr]
    if not dtypes <= set(_DTYPES):
        return "its weights are " + ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return ""


def packed_of(layer: nn.LSTM | nn.GRU, decision: LayerDecision | None = None) -> PackedLSTM | PackedGRU:
    """Return the packed int8 layer of an nn.LSTM or nn.GRU; dropout between layers, which eval mode skips, is dropped.

    Weights on recorded Int8 grids keep exactly their integers.

    Parameters
    ----------
    layer : nn.LSTM or nn.GRU
    decision : LayerDecision, optional

    Returns
    -------
    PackedLSTM or PackedGRU
        In eval mode.

    Raises
    ------
    TypeError, ValueError
        When it is no such layer, or there is an :func:`obstacle`.

    Examples
    --------
    >>> packed_of(nn.LSTM(2, 3, batch_first=True)).batch_first
    True
    """
    if not isinstance(layer, (nn.LSTM, nn.GRU)):
        raise TypeError(f"layer must be an nn.LSTM or nn.GRU, got {type(layer).__name__}")
    if fault := obstacle(layer):
        raise ValueError(f"layer must be one that can be packed: {fault}")
    kind = PackedLSTM if isinstance(layer, nn.LSTM) else PackedGRU
    parts = []
    for group in layer._all_weights:
        own: dict[str, Tensor] = {}
        for name in group:
            own |= own_numbers(layer, name, name.rpartition("_l")[0])
        parts.append(pack_part(kind.cell, own))
    return kind(parts, layer.bidirectional, layer.batch_first, decision).eval()
