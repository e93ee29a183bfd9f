"""The models of drop_in.py: what people call quantize_dynamic on, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

STEPS = 32
WORDS = 5000


class Case(NamedTuple):
    """How a model is made, and its inputs for a batch."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class Recurrent(nn.Module):
    """A recurrent layer and a head on every step."""

    def __init__(self, layer: nn.LSTM | nn.GRU, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear((layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Tag the steps of x [batch, steps, features]."""
        return self.head(self.layer(x)[0])  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Cells that carry their states from step to step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTMCell(size, size), nn.GRUCell(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Feed outputs back for a few steps."""
        state, h, found = None, None, []
        for _ in range(8):
            state = self.first(x, state)
            h = self.second(state[0], h)
            x = self.head(h).tanh()
            found.append(x)
        return torch.stack(found, 1)


class Tagger(nn.Module):
    """Words of sentences of different lengths: an embedding, a packed sequence through an LSTM, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 128)
        self.lstm = nn.LSTM(128, 192, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(384, 256), nn.ReLU(), nn.Linear(256, 20))

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Tag words [batch, steps]."""
        packed = pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(y)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention as people write it themselves."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to what lies before."""
        parts = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A block of a language model."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size), Attention(size, heads)
        self.norm2, self.mlp = nn.LayerNorm(size), mlp(size, 4 * size, size, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [batch, steps, size] with what the block adds."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def convolutional() -> nn.Sequential:
    """A small network of convolutions, with linear layers behind them."""
    first = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(32 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, 10))


def encoder_layer(size: int, hidden: int, **options: Any) -> nn.TransformerEncoderLayer:
    """An encoder layer of torch."""
    return nn.TransformerEncoderLayer(size, 8, hidden, **options)


def encoder() -> nn.TransformerEncoder:
    """Encoder layers whose fused path torch takes."""
    layer = encoder_layer(256, 1024, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def _sentences(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(WORDS, (batch, STEPS)), torch.linspace(STEPS, STEPS // 2, batch).long()


def _rows(size: int) -> Callable[[int], tuple[Tensor]]:
    return lambda batch: (torch.randn(batch, size),)


def _sequences(size: int, first: bool = True) -> Callable[[int], tuple[Tensor]]:
    return lambda batch: (torch.randn(batch, STEPS, size) if first else torch.randn(STEPS, batch, size),)


MODELS = {
    "MLP 64-64-64-10": Case(lambda: mlp(64, 64, 64, 10), _rows(64)),
    "MLP 784-300-100-10": Case(lambda: mlp(784, 300, 100, 10), _rows(784)),
    "MLP 512-2048-2048-512, GELU": Case(lambda: mlp(512, 2048, 2048, 512, activation=nn.GELU), _rows(512)),
    "LSTM 128-256": Case(lambda: Recurrent(nn.LSTM(128, 256, batch_first=True), 40), _sequences(128)),
    "LSTM 64-128, 2 layers, both ways": Case(
        lambda: Recurrent(nn.LSTM(64, 128, 2, batch_first=True, bidirectional=True), 40), _sequences(64)
    ),
    "LSTM 128-256, projected to 64": Case(
        lambda: Recurrent(nn.LSTM(128, 256, batch_first=True, proj_size=64), 40), _sequences(128)
    ),
    "GRU 64-128, 2 layers, both ways": Case(
        lambda: Recurrent(nn.GRU(64, 128, 2, batch_first=True, bidirectional=True), 40), _sequences(64)
    ),
    "LSTMCell and GRUCell 256": Case(lambda: Decoder(256), _rows(256)),
    "encoder layer 256-1024, steps first": Case(lambda: encoder_layer(256, 1024), _sequences(256, False)),
    "3 encoder layers 256-1024, fused": Case(encoder, _sequences(256)),
    "embedding, LSTM, MLP on sentences": Case(Tagger, _sentences),
    "GPT block 256": Case(lambda: Block(256, 8), _sequences(256)),
    "CNN and MLP": Case(convolutional, lambda batch: (torch.randn(batch, 1, 28, 28),)),
}
