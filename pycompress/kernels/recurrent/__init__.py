"""LSTM and GRU: their weights packed once, and the calls of the backend over a sequence."""

from .packed import PackedRecurrent, pack_gru, pack_lstm
from .sequence import copy_state, gru, lstm, packed_starts, run_layer, uniform_starts

__all__ = [
    "PackedRecurrent",
    "copy_state",
    "gru",
    "lstm",
    "pack_gru",
    "pack_lstm",
    "packed_starts",
    "run_layer",
    "uniform_starts",
]
