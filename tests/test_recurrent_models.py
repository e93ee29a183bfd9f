"""LSTM and GRU layers of models: packed where that is faster or forced, and by quantize_dynamic."""

import pytest
import torch
from test_recurrent import KINDS, layer_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pycompress as pc
from pycompress.formats import Int8, Sparse
from pycompress.recurrent import PackedGRU, PackedLSTM


class Tagger(nn.Module):
    """Two recurrent layers whose outputs, states and packed sequences go the ways they go in real models."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(6, 9, num_layers=2, bidirectional=True, batch_first=True)
        self.decoder = nn.GRU(18, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.encoder(x)
        y, _ = self.decoder(y, h[:1, :, :7].contiguous())
        y = y if lengths is None else pad_packed_sequence(y, batch_first=True)[0]
        return self.head(y)


INPUTS = [torch.randn(3, 5, 6), (torch.randn(3, 5, 6), torch.tensor([2, 5, 4]))]


@pytest.mark.parametrize("inputs", INPUTS, ids=["tensor", "packed sequence"])
@torch.no_grad()
def test_pack_replaces_recurrent_layers(inputs):
    model = Tagger().eval()
    packed = pc.pack(model, inputs, Int8(), force=True)
    assert isinstance(packed.encoder, PackedLSTM) and isinstance(packed.decoder, PackedGRU)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    assert torch.allclose(packed(*arguments), model(*arguments), atol=0.05)
    found = {d.name: (d.kind, d.format, d.kernel, d.rows, d.reason) for d in pc.explain(packed)}
    rows = 15 if len(arguments) == 1 else 11
    kernel = packed.encoder.kernel
    assert found["encoder"] == ("LSTM", Int8(), kernel, rows, "forced, not measured")
    assert found["decoder"] == ("GRU", Int8(), kernel, rows, "forced, not measured")
    assert isinstance(model.encoder, nn.LSTM)


@torch.no_grad()
def test_pack_keeps_what_is_not_faster_or_cannot_be_replaced():
    model = Tagger().eval()
    seconds = iter(range(10**9))
    slow = pc.pack(model, INPUTS[0], Int8(), _clock=lambda: next(seconds))  # each block takes the same time
    assert isinstance(slow.encoder, nn.LSTM) and "Int8 not faster" in str(pc.explain(slow))
    reasons = {d.name: d.reason for d in pc.explain(pc.pack(model, INPUTS[0]))}
    assert reasons["encoder"] == "packed with Int8() alone"
    reasons = {d.name: d.reason for d in pc.explain(pc.pack(model, INPUTS[0], Sparse(), force=True))}
    assert reasons["decoder"] == "Sparse has no recurrent kernel"

    class Named(Tagger):
        def forward(self, x):
            return self.head(self.decoder(input=self.encoder(x)[0])[0])

    named = pc.pack(Named(), INPUTS[0], Int8(), force=True)
    assert isinstance(named.decoder, nn.GRU) and isinstance(named.encoder, PackedLSTM)
    assert {d.name: d.reason for d in pc.explain(named)}["decoder"] == "it is called with keywords"


@torch.no_grad()
def test_a_measured_recurrent_layer_is_faster():
    model = nn.Sequential(nn.LSTM(64, 256)).eval()
    seconds = iter(i * 1e-3 for i in range(10**9))
    slow = [0.0]

    def clock():
        return next(seconds) + slow[0]

    forward = nn.LSTM.forward

    def slower(self, *arguments):
        slow[0] += 1e-2
        return forward(self, *arguments)

    nn.LSTM.forward = slower
    try:
        packed = pc.pack(model, torch.randn(4, 1, 64), Int8(), _clock=clock)
    finally:
        nn.LSTM.forward = forward
    assert isinstance(packed[0], PackedLSTM)
    [decision] = pc.explain(packed)
    assert decision.reason == "faster" and decision.speedup > 1 and decision.rows == 4


@pytest.mark.parametrize("spec", [None, {nn.LSTM, nn.GRU, nn.Linear}, {"encoder", "decoder", "head"}, {Tagger}])
@torch.no_grad()
def test_quantize_dynamic_replaces_recurrent_layers(spec):
    model = Tagger().eval()
    packed = pc.quantize_dynamic(model, spec)
    assert isinstance(packed.encoder, PackedLSTM) and isinstance(packed.decoder, PackedGRU)
    assert torch.allclose(packed(*INPUTS[1]), model(*INPUTS[1]), atol=0.05)
    assert {d.reason for d in pc.explain(packed)} == {"asked for by quantize_dynamic"}
    alone = pc.quantize_dynamic(nn.GRU(3, 4))
    assert isinstance(alone, PackedGRU)
    with pytest.raises(ValueError, match="inplace must be False"):
        pc.quantize_dynamic(nn.GRU(3, 4), inplace=True)
    only = pc.quantize_dynamic(model, {nn.GRU})
    assert isinstance(only.encoder, nn.LSTM) and isinstance(only.decoder, PackedGRU)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_quantize_dynamic_is_as_exact_as_torchs(kind):
    from torch.ao.quantization import quantize_dynamic as torchs

    model, x = nn.Sequential(layer_of(kind, 40, 64)), torch.randn(12, 4, 40)
    exact = model(x)[0]
    error = (pc.quantize_dynamic(model)(x)[0] - exact).abs().max()
    assert error <= 1.2 * (torchs(model, {KINDS[kind]})(x)[0] - exact).abs().max()
