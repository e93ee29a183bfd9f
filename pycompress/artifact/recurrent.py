"""Packed LSTM and GRU layers in files: the names, dtypes and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..cells import PackedCell, PackedGRUCell, PackedLSTMCell, PackedRNNCell, pack_pair
from ..formats import Int8
from ..kernels.reference import GATES
from ..recurrent import PackedGRU, PackedLSTM, PackedRecurrentLayer, pack_part
from .container import ArtifactError
from .kinds import RecurrentRecord
from .places import fits
from .schema import LayerRecord

if TYPE_CHECKING:
    from .contents import Stored

_GATES = {**GATES, "rnn": 1}
_CELLS = {
    "lstm": (nn.LSTMCell, PackedLSTMCell),
    "gru": (nn.GRUCell, PackedGRUCell),
    "rnn": (nn.RNNCell, PackedRNNCell),
}


def record_of(path: str, layer: PackedRecurrentLayer | PackedCell) -> RecurrentRecord:
    """Return what a file says of a packed recurrent layer beside its tensors.

    Raises
    ------
    ArtifactError
        When the parts of the layer differ in what they have, which no file can say.

    Examples
    --------
    >>> from pycompress.recurrent import packed_of
    >>> record = record_of("", packed_of(nn.GRU(2, 3, bias=False)))
    >>> record.cell, record.layers, record.bias, record.step
    ('gru', 1, False, False)
    """
    if isinstance(layer, PackedCell):
        record = RecurrentRecord(layer.cell, 1, bias=layer.bias, step=True)  # type: ignore[arg-type]
    else:
        numbers = (layer.num_layers, layer.bidirectional, layer.batch_first)
        record = RecurrentRecord(layer.packed[0].cell, *numbers, layer.bias, layer.proj_size > 0)
    names = {name for _, part in parts(record) for name in part.values()}
    if found := sorted(layer.canonical_tensors().keys() ^ names):
        raise ArtifactError(f"packed layer {path!r:.99} must have the same tensors in all of its parts, got {found}")
    return record


def parts(record: RecurrentRecord) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the layer of each part, and the names of its tensors by those of ``kernels.pack_lstm``.

    Examples
    --------
    >>> [(layer, names["weight_hh"]) for layer, names in parts(RecurrentRecord("gru", 2))]
    [(0, 'weight_hh_l0'), (1, 'weight_hh_l1')]
    """
    names = ["weight_ih", "weight_hh", "scale_ih", "scale_hh"]
    names += ["bias_ih", "bias_hh"] if record.bias else []
    names += ["weight_hr", "scale_hr"] if record.projection else []
    for layer in range(record.layers):
        for way in ("", "_reverse") if record.bidirectional else ("",):
            yield layer, {name: name if record.step else f"{name}_l{layer}{way}" for name in names}


def full_names(path: str, record: RecurrentRecord) -> dict[str, str]:
    """Return the names of the layer's tensors in the file by those in the layer.

    Examples
    --------
    >>> list(full_names("rnn", RecurrentRecord("gru", 1)).values())[:2]
    ['rnn.weight_ih_l0', 'rnn.weight_hh_l0']
    """
    prefix = f"{path}." if path else ""
    return {name: prefix + name for _, part in parts(record) for name in part.values()}


def check(path: str, layer: LayerRecord, record: RecurrentRecord, tensors: dict[str, Stored]) -> None:
    """Raise an ArtifactError unless the tensors of a packed recurrent layer are there and fit each other."""
    where = f"packed recurrent layer {path!r:.99}"
    assert layer.packed is not None
    plain = record.cell == "rnn"
    if plain and layer.packed.activation not in ("tanh", "relu"):
        raise ArtifactError(f"{where} must have the activation 'tanh' or 'relu'")
    others = layer.packed.convolution or layer.packed.embedding or (layer.packed.activation and not plain)
    if not isinstance(layer.packed.format, Int8) or others:
        raise ArtifactError(f"{where} must be Int8, without an activation and another kind")
    if layer.input_scale is not None or layer.groups != 1:
        raise ArtifactError(f"{where} must not have an input_scale or groups")
    prefix, gates = f"{path}." if path else "", _GATES[record.cell]
    sizes: tuple[int, int, int] | None = None
    for number, names in parts(record):  # stops at the first that is missing, however many layers a file may claim
        found = {}
        for part, name in names.items():
            stored = tensors.get(prefix + name)
            if stored is None:
                raise ArtifactError(f"{where} must have a tensor {name}")
            if stored.record is not None and stored.record.grid is not None:
                raise ArtifactError(f"{where} must not have a grid: its scales are tensors of their own")
            if stored.dtype != ("I8" if part.startswith("weight") else "F32"):
                raise ArtifactError(f"{where} must have weights I8, scales and biases F32, got {name} {stored.dtype}")
            found[part] = stored.shape
        if sizes is None:
            sizes = _sizes(where, found, gates)
        inputs, hidden, out = sizes
        width = inputs if number == 0 else out * (2 if record.bidirectional else 1)
        for part, shape in found.items():
            rows = out if part.endswith("_hr") else gates * hidden
            columns = {"weight_ih": width, "weight_hh": out, "weight_hr": hidden}
            expected = (rows, columns[part]) if part in columns else (rows,)
            if shape != expected:
                raise ArtifactError(f"{where} must have {names[part]} of shape {expected}, got {shape}")


def _sizes(where: str, found: dict[str, tuple[int, ...]], gates: int) -> tuple[int, int, int]:
    """Inputs, hidden and out of the first part."""
    first, last = found["weight_ih"], found.get("weight_hr", found["weight_hh"])
    if len(first) != 2 or len(last) != 2 or first[0] % gates or not first[0] or not last[0]:
        raise ArtifactError(f"{where} must have weights of {gates} * hidden rows, got {first} and {last}")
    hidden = first[0] // gates
    return first[1], hidden, last[0] if "weight_hr" in found else hidden


def faults(
    path: str, module: nn.Module, record: RecurrentRecord, activation: str | None, tensors: dict[str, Stored]
) -> list[str]:
    """Compare a packed recurrent layer with its place in a model."""
    lstm = record.cell == "lstm"
    if record.step:
        return _step_faults(path, module, record, activation, tensors)
    if not isinstance(module, (nn.LSTM, PackedLSTM) if lstm else (nn.GRU, PackedGRU)):
        kind = type(module).__name__
        return [f"{path}, a packed {record.cell.upper()} in the file and {kind} in the model"]
    prefix = f"{path}." if path else ""
    rows, inputs = tensors[f"{prefix}weight_ih_l0"].shape
    projected = tensors[f"{prefix}weight_hr_l0"].shape[0] if record.projection else 0
    sizes = (inputs, rows // _GATES[record.cell], projected)
    found = (record.layers, record.bidirectional, record.batch_first, record.bias, *sizes)
    names = ("num_layers", "bidirectional", "batch_first", "bias", "input_size", "hidden_size", "proj_size")
    built = tuple(getattr(module, name) for name in names)
    told = f"{path}, {names} {found} in the file and {built} in the model"
    return [] if fits(found, built, slice(4, 7)) else [told]


def _step_faults(
    path: str, module: nn.Module, record: RecurrentRecord, activation: str | None, tensors: dict[str, Stored]
) -> list[str]:
    if not isinstance(module, _CELLS[record.cell]):
        kind = type(module).__name__
        return [f"{path}, a packed {record.cell.upper()}Cell in the file and {kind} in the model"]
    rows, inputs = tensors[f"{path}.weight_ih" if path else "weight_ih"].shape
    found = (record.bias, inputs, rows // _GATES[record.cell], activation)
    names = ("bias", "input_size", "hidden_size", "nonlinearity")
    built = tuple(getattr(module, name, None) for name in names)
    told = f"{path}, {names} {found} in the file and {built} in the model"
    return [] if fits(found, built, slice(1, 3)) else [told]


def build(
    path: str, record: RecurrentRecord, activation: str | None, tensors: dict[str, Tensor]
) -> PackedLSTM | PackedGRU | PackedCell:
    """Pack the layer from its tensors, by their names in the layer.

    Raises
    ------
    ArtifactError
        When a tensor has values that no packed layer has.
    """
    packed = []
    try:
        for _, names in parts(record):
            own = {part: tensors[name] for part, name in names.items()}
            if any(bool((value == -128).any()) for part, value in own.items() if part.startswith("weight")):
                raise ValueError("weights must be integers from -127 to 127, got -128")
            if record.cell == "rnn":
                return PackedRNNCell(pack_pair(own), str(activation))
            packed.append(pack_part(record.cell, own))
        if record.step:
            return (PackedLSTMCell if record.cell == "lstm" else PackedGRUCell)(packed[0])
        kind = PackedLSTM if record.cell == "lstm" else PackedGRU
        return kind(packed, record.bidirectional, record.batch_first)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"packed layer {path!r:.99}: {error!s:.300}") from error
