"""What the metadata of an artifact says of packed layers of each kind: records, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from .container import ArtifactError


@dataclass(frozen=True)
class ConvRecord:
    """A packed convolution: a number or a pair (before, after) for each spatial dimension, and what images are."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    channels_last: bool = False
    output_scale: float | None = None
    dtype: str = "F32"


@dataclass(frozen=True)
class RecurrentRecord:
    """What a packed LSTM or GRU is beside its tensors; with ``step`` it is an LSTMCell, GRUCell or RNNCell."""

    cell: Literal["lstm", "gru", "rnn"]
    layers: int
    bidirectional: bool = False
    batch_first: bool = False
    bias: bool = False
    projection: bool = False
    step: bool = False


@dataclass(frozen=True)
class EmbeddingRecord:
    """What a packed embedding is beside its tensors; with a ``mode`` it is an EmbeddingBag."""

    mode: Literal["sum", "mean", "max"] | None = None
    padding_idx: int | None = None
    include_last_offset: bool = False
    dtype: str = "F32"


@dataclass(frozen=True)
class AttentionRecord:
    """What packed attention is beside its tensors; ``apart``: q, k and v have weights of their own."""

    heads: int
    batch_first: bool = False
    apart: bool = False
    bias: bool = False


def read_recurrent(value: object, where: str) -> RecurrentRecord:
    """Check and parse the record of a packed LSTM or GRU.

    Examples
    --------
    >>> read_recurrent({"cell": "gru", "layers": 2}, "it").layers
    2
    """
    record = read_object(value, where, {f.name for f in fields(RecurrentRecord)}, {"cell", "layers"})
    cell, layers = record.pop("cell"), record.pop("layers")
    if cell not in ("lstm", "gru", "rnn"):
        raise ArtifactError(f"{where}.cell must be 'lstm', 'gru' or 'rnn', got {cell!r:.99}")
    if type(layers) is not int or not 1 <= layers < 2**31:
        raise ArtifactError(f"{where}.layers must be a positive integer, got {layers!r:.99}")
    for name, flag in record.items():
        if not isinstance(flag, bool):
            raise ArtifactError(f"{where}.{name} must be true or false, got {flag!r:.99}")
    if record.get("step") and (
        layers != 1 or any(record.get(n) for n in ("bidirectional", "batch_first", "projection"))
    ):
        raise ArtifactError(f"{where} must be one layer in one direction, without a projection, with step")
    if cell == "rnn" and not record.get("step"):
        raise ArtifactError(f"{where}.step must be true for 'rnn'")
    if cell == "gru" and record.get("projection"):
        raise ArtifactError(f"{where}.projection must be false for a GRU")
    return RecurrentRecord(cell, layers, **record)


def read_attention(value: object, where: str) -> AttentionRecord:
    """Check and parse the record of packed attention.

    Examples
    --------
    >>> read_attention({"heads": 2}, "it")
    AttentionRecord(heads=2, batch_first=False, apart=False, bias=False)
    """
    record = read_object(value, where, {f.name for f in fields(AttentionRecord)}, {"heads"})
    heads = record.pop("heads")
    if type(heads) is not int or not 1 <= heads < 2**31:
        raise ArtifactError(f"{where}.heads must be a positive integer, got {heads!r:.99}")
    for name, flag in record.items():
        if not isinstance(flag, bool):
            raise ArtifactError(f"{where}.{name} must be true or false, got {flag!r:.99}")
    return AttentionRecord(heads, **record)


def read_embedding(value: object, where: str) -> EmbeddingRecord:
    """Check and parse the record of a packed embedding.

    Examples
    --------
    >>> read_embedding({"mode": "sum"}, "it")
    EmbeddingRecord(mode='sum', padding_idx=None, include_last_offset=False, dtype='F32')
    """
    record = read_object(value, where, {f.name for f in fields(EmbeddingRecord)})
    mode, padding, last = record.get("mode"), record.get("padding_idx"), record.get("include_last_offset", False)
    if "mode" in record and mode not in ("sum", "mean", "max"):
        raise ArtifactError(f"{where}.mode must be 'sum', 'mean' or 'max', got {mode!r:.99}")
    if "padding_idx" in record and (type(padding) is not int or not 0 <= padding < 2**63):
        raise ArtifactError(f"{where}.padding_idx must be an integer of 0 or more, got {padding!r:.99}")
    if not isinstance(last, bool):
        raise ArtifactError(f"{where}.include_last_offset must be true or false, got {last!r:.99}")
    if last and mode is None:
        raise ArtifactError(f"{where} must have a mode with include_last_offset")
    return EmbeddingRecord(mode, padding, last, _dtype(record, where))


def read_convolution(value: object, where: str) -> ConvRecord:
    """Check and parse the record of a packed convolution.

    Examples
    --------
    >>> read_convolution({"stride": [1], "padding": [[0, 1]], "dilation": [1]}, "it")
    ConvRecord(stride=(1,), padding=((0, 1),), dilation=(1,), channels_last=False, output_scale=None, dtype='F32')
    """
    names = {f.name for f in fields(ConvRecord)}
    record = read_object(value, where, names, {"stride", "padding", "dilation"})
    stride, padding, dilation = record["stride"], record["padding"], record["dilation"]
    if not isinstance(padding, list) or not all(_integers(pair, 0) and len(pair) == 2 for pair in padding):
        raise ArtifactError(f"{where}.padding must be a list of pairs of integers of 0 or more, got {padding!r:.99}")
    for name, numbers in (("stride", stride), ("dilation", dilation)):
        if not _integers(numbers, 1):
            raise ArtifactError(f"{where}.{name} must be a list of positive integers, got {numbers!r:.99}")
    if not len(stride) == len(dilation) == len(padding) or len(stride) not in (1, 2):
        raise ArtifactError(f"{where} must have one or two spatial dimensions, got {value!r:.99}")
    last, scale = record.get("channels_last", False), record.get("output_scale")
    if not isinstance(last, bool):
        raise ArtifactError(f"{where}.channels_last must be true or false, got {last!r:.99}")
    if "output_scale" in record:
        scale = read_number(scale, f"{where}.output_scale")
        if not last:
            raise ArtifactError(f"{where} must have channels_last with an output_scale")
    pads = tuple((before, after) for before, after in padding)
    dtype = _dtype(record, where)
    if dtype != "F32" and len(stride) == 1:
        raise ArtifactError(f"{where}.dtype must be 'F32' in one spatial dimension, got {dtype!r}")
    return ConvRecord(tuple(stride), pads, tuple(dilation), last, scale, dtype)


def _dtype(record: dict[str, Any], where: str) -> str:
    found = record.get("dtype", "F32")
    if found not in ("F32", "F16", "BF16"):
        raise ArtifactError(f"{where}.dtype must be 'F32', 'F16' or 'BF16', got {found!r:.99}")
    return str(found)


def _integers(value: object, low: int) -> bool:
    return isinstance(value, list) and all(type(n) is int and low <= n < 2**31 for n in value)


def read_number(value: object, where: str) -> float:
    """Return a finite number of JSON.

    Examples
    --------
    >>> read_number(0.5, "it")
    0.5
    """
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is int and abs(value) < 2**63:
        return value
    raise ArtifactError(f"{where} must be a finite number, got {value!r:.99}")


def read_object(
    value: object, where: str, known: set[str] | None = None, required: set[str] | None = None
) -> dict[str, Any]:
    """Return an object of JSON whose keys are known, and none of the required ones missing.

    Examples
    --------
    >>> read_object({"a": 1}, "it", {"a", "b"}, {"a"})
    {'a': 1}
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} must be a JSON object, got {value!r:.99}")
    unknown = set(value) - (known if known is not None else set(value))
    if unknown or (required or set()) - set(value):
        raise ArtifactError(
            f"{where} must have the keys {sorted(required or [])} and may have {sorted(known or [])}, got "
            f"{sorted(value)!r:.99}"
        )
    return value


def read_numbers(value: object, where: str) -> dict[str, int]:
    """Check and parse the numbers of a layer.

    Examples
    --------
    >>> read_numbers({"heads": 3}, "it")
    {'heads': 3}
    """
    found = read_object(value, where)
    for name, number in found.items():
        if type(number) is not int or not 1 <= number < 2**31 or not name.isidentifier() or name.startswith("__"):
            raise ArtifactError(f"{where} must be positive integers by name, got {name!r:.99}: {number!r:.99}")
    return dict(found)
