"""Single steps of LSTM, GRU and plain recurrent layers on packed int8 weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from . import kernels, sequences, torch_ops
from .formats import Int8
from .kernels import PackedRecurrent, PackedWeight
from .layers import LayerDecision, PackedLayer, arrays_like
from .recurrent import own_numbers, pack_part

CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
"""The layers that this module packs."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class PackedCell(PackedLayer):
    """What PackedLSTMCell, PackedGRUCell and PackedRNNCell have in common.

    Attributes
    ----------
    input_size, hidden_size : int
    bias : bool
        As those of nn.LSTMCell.

    Examples
    --------
    >>> issubclass(PackedGRUCell, PackedCell)
    True
    """

    packed: Any
    cell: str

    def __init__(self, packed: PackedRecurrent, decision: LayerDecision | None = None) -> None:
        if not isinstance(packed, PackedRecurrent):
            raise TypeError(f"packed must be a PackedRecurrent, got {type(packed).__name__}")
        if packed.cell != self.cell or packed.has_projection:
            raise ValueError(f"packed must be weights of pack_{self.cell} without a projection, got {packed!r}")
        super().__init__(packed, decision)

    @property
    def input_size(self) -> int:
        """Size of the last dimension of the input."""
        return int(self.packed.input_size)

    @property
    def hidden_size(self) -> int:
        """Size of the state."""
        return int(self.packed.hidden_size)

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""
        return bool(self.packed.has_bias)

    @property
    def sizes(self) -> str:
        """Inputs and outputs, for messages."""
        return f"{self.input_size} -> {self.hidden_size}"

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}, format={self.format}, kernel={self.kernel!r}"

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.packed.canonical().items()}
        if self.packed.input_scale is not None:
            tensors["input_scale"] = torch.tensor(self.packed.input_scale, dtype=torch.float32)
        return tensors

    def repacked(self, tensors: dict[str, Any]) -> PackedRecurrent:
        """Pack tensors that stand for the canonical ones."""
        return pack_part(self.cell, arrays_like(self.canonical_tensors(), tensors))

    def _step(self, input: Tensor, states: list[Tensor]) -> list[Tensor]:
        """Run one step; returns h, and c of an LSTM, in the input's dtype."""
        self._check(input, states)
        compiling = torch.compiler.is_compiling()
        if not compiling and (finals := sequences.step(self.packed, input, states)) is not None:
            return finals
        rows = input if input.ndim == 2 else input[None]
        given = [state[None] if input.ndim == 2 else state[None, None] for state in states]
        run = sequences.traced if compiling else sequences.run
        _, finals = run([self.packed], False, False, rows[None], given)
        return [final[0] if input.ndim == 2 else final[0, 0] for final in finals]

    def _check(self, input: Tensor, states: list[Tensor]) -> None:
        self._check_input(input, "input")
        if input.ndim not in (1, 2):
            raise ValueError(f"input must be 1-D or 2-D, got {kernels.arrays.describe(input)}")
        if input.dtype not in _DTYPES:
            raise TypeError(f"input must be float32, float16 or bfloat16, got {kernels.arrays.describe(input)}")
        if input.shape[-1] != self.input_size:
            raise ValueError(f"input must have {self.input_size} features, got {kernels.arrays.describe(input)}")
        expected = (*input.shape[:-1], self.hidden_size)
        for state in states:
            self._check_input(state, "hx")
            if state.shape != expected:
                raise ValueError(f"hx must have shape {tuple(expected)}, got {kernels.arrays.describe(state)}")
            if state.dtype not in _DTYPES:
                raise TypeError(f"hx must be float32, float16 or bfloat16, got {kernels.arrays.describe(state)}")


class PackedLSTMCell(PackedCell):
    """One step of an LSTM on packed int8 weights, for inference only; called as nn.LSTMCell is.

    The numbers are those of :func:`pycompress.kernels.lstm` over one step; the state is float32 inside the step, and
    has the dtype of the input outside of it. ``state_dict``, pickles and copies hold ``weight_ih`` and ``weight_hh``
    int8 in torch's order of gates, ``scale_ih`` and ``scale_hh`` float32 and, where they exist, ``bias_ih`` and
    ``bias_hh``.

    Parameters
    ----------
    packed : PackedRecurrent
        From :func:`pycompress.kernels.pack_lstm`, without a projection.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> h, c = packed_cell(nn.LSTMCell(3, 4))(torch.zeros(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    cell = "lstm"

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step on input [batch, input_size] or [input_size]; returns (h, c) as nn.LSTMCell does.

        Raises
        ------
        TypeError, ValueError
            When input or the state does not fit, or requires grad while grad mode is on.
        """
        if hx is not None and not (isinstance(hx, (tuple, list)) and len(hx) == 2):
            raise TypeError(f"hx must be a tuple (h, c), got {type(hx).__name__}")
        h, c = self._step(input, [] if hx is None else list(hx))
        return h, c


class PackedGRUCell(PackedCell):
    """One step of a GRU on packed int8 weights, for inference only; called as nn.GRUCell is.

    The numbers are those of :func:`pycompress.kernels.gru` over one step; else it is like :class:`PackedLSTMCell`.

    Parameters
    ----------
    packed : PackedRecurrent
        From :func:`pycompress.kernels.pack_gru`.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> packed_cell(nn.GRUCell(3, 4))(torch.zeros(3)).shape
    torch.Size([4])
    """

    cell = "gru"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step on input [batch, input_size] or [input_size]; returns h as nn.GRUCell does.

        Raises
        ------
        TypeError, ValueError
            When input or the state does not fit, or requires grad while grad mode is on.
        """
        return self._step(input, [] if hx is None else [hx])[0]


class PackedRNNCell(PackedCell):
    """One step of a plain recurrent layer on packed int8 weights, for inference only; called as nn.RNNCell is.

    ``h' = nonlinearity((x w_ih^T + b_ih) + (h w_hh^T + b_hh))``, each product as :func:`pycompress.kernels.linear`
    computes it (Elman 1990). Else it is like :class:`PackedLSTMCell`.

    Parameters
    ----------
    packed : (PackedWeight, PackedWeight)
        From :func:`pycompress.kernels.pack` with Int8: of the input [hidden_size, input_size] and of the state
        [hidden_size, hidden_size], both with a bias or none.
    nonlinearity : "tanh" or "relu"
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> packed_cell(nn.RNNCell(3, 4))(torch.zeros(3)).shape
    torch.Size([4])
    """

    packed: tuple[PackedWeight, PackedWeight]
    cell = "rnn"

    def __init__(
        self,
        packed: tuple[PackedWeight, PackedWeight],
        nonlinearity: str = "tanh",
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, (tuple, list)) or not all(isinstance(part, PackedWeight) for part in packed):
            raise TypeError(f"packed must be two PackedWeights, got {packed!r:.99}")
        if any(not isinstance(part.format, Int8) or part.input_scale is not None for part in packed):
            raise ValueError(f"packed must be of format Int8 without input scales, got {packed!r:.99}")
        fit = len(packed) == 2 and packed[1].shape == (packed[0].shape[0],) * 2
        if not fit or (packed[0].bias is None) != (packed[1].bias is None):
            raise ValueError(f"packed must be weights of the input and of the state that fit, got {packed!r:.99}")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        PackedLayer.__init__(self, tuple(packed), decision)
        self.nonlinearity = nonlinearity

    @property
    def format(self) -> Int8:
        """How the weights are stored."""
        return cast(Int8, self.packed[0].format)

    @property
    def kernel(self) -> str:
        """The kernel that runs."""
        return self.packed[0].kernel

    @property
    def input_size(self) -> int:
        """Size of the last dimension of the input."""
        return self.packed[0].shape[1]

    @property
    def hidden_size(self) -> int:
        """Size of the state."""
        return self.packed[0].shape[0]

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""
        return self.packed[0].bias is not None

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        tensors = {}
        for side, part in zip(("ih", "hh"), self.packed, strict=True):
            tensors[f"weight_{side}"] = torch.from_numpy(part.canonical_weight())
            tensors[f"scale_{side}"] = torch.tensor(part.scale)
            if part.bias is not None:
                tensors[f"bias_{side}"] = torch.tensor(part.bias)
        return tensors

    def repacked(self, tensors: dict[str, Any]) -> Any:
        """Pack tensors that stand for the canonical ones."""
        return pack_pair(arrays_like(self.canonical_tensors(), tensors))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step on input [batch, input_size] or [input_size]; returns h as nn.RNNCell does.

        Raises
        ------
        TypeError, ValueError
            When input or the state does not fit, or requires grad while grad mode is on.
        """
        self._check(input, [] if hx is None else [hx])
        h = input.new_zeros((*input.shape[:-1], self.hidden_size)) if hx is None else hx.to(input.dtype)
        y = _linear(input, self.packed[0]) + _linear(h, self.packed[1])
        return y.relu() if self.nonlinearity == "relu" else y.tanh()


def _linear(x: Tensor, packed: PackedWeight) -> Tensor:
    if torch.compiler.is_compiling():
        return torch_ops.traced_linear(x, packed, None)
    return cast(Tensor, kernels.linear(x, packed))


def pack_pair(own: dict[str, Any]) -> tuple[PackedWeight, PackedWeight]:
    """Pack the weights of a plain recurrent cell, by their names in ``state_dict``."""
    names = ("weight", "bias", "scale")
    ih, hh = ([own.get(f"{name}_{side}") for name in names] for side in ("ih", "hh"))
    return kernels.pack(ih[0], Int8(), *ih[1:]), kernels.pack(hh[0], Int8(), *hh[1:])


def obstacle(layer: nn.Module) -> str:
    """Return why no packed layer can stand in for this cell, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.GRUCell(2, 1)), obstacle(nn.GRUCell(2, 1).double())
    ('', 'its weights are float64')
    """
    kind = next(kind for kind in CELLS if isinstance(layer, kind))
    if type(layer).forward is not kind.forward or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    weights = [layer._parameters.get(name) for name in ("weight_ih", "weight_hh")]
    if any(weight is None for weight in weights):
        return "its weights are computed by a parametrization, which must be removed first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which must be removed first"
    dtypes = {parameter.dtype for parameter in layer._parameters.values() if parameter is not None}
    if not dtypes <= set(_DTYPES):
        return "its weights are " + ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return ""


def packed_cell(layer: nn.LSTMCell | nn.GRUCell | nn.RNNCell, decision: LayerDecision | None = None) -> PackedCell:
    """Return the packed int8 layer of an nn.LSTMCell, nn.GRUCell or nn.RNNCell; weights on Int8 grids keep
    their integers.

    Parameters
    ----------
    layer : nn.LSTMCell, nn.GRUCell or nn.RNNCell
    decision : LayerDecision, optional

    Returns
    -------
    PackedLSTMCell, PackedGRUCell or PackedRNNCell
        In eval mode.

    Raises
    ------
    TypeError, ValueError
        When it is no such layer, or there is an :func:`obstacle`.

    Examples
    --------
    >>> packed_cell(nn.LSTMCell(2, 3)).hidden_size
    3
    """
    if not isinstance(layer, CELLS):
        raise TypeError(f"layer must be an nn.LSTMCell, nn.GRUCell or nn.RNNCell, got {type(layer).__name__}")
    if fault := obstacle(layer):
        raise ValueError(f"layer must be one that can be packed: {fault}")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    own: dict[str, Tensor] = {}
    for name in names:
        if layer._parameters[name] is not None:
            own |= own_numbers(layer, name, name)
    if isinstance(layer, nn.RNNCell):
        return cast(PackedCell, PackedRNNCell(pack_pair(own), layer.nonlinearity, decision).eval())
    kind = PackedLSTMCell if isinstance(layer, nn.LSTMCell) else PackedGRUCell
    return cast(PackedCell, kind(pack_part(kind.cell, own), decision).eval())
