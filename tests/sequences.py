"""Small networks with recurrent layers, attention and transposed convolutions, as people write them.

SEQUENCES: name -> (class, function that makes inputs, {attribute that shrinks: its size}). See architectures.py.
"""

import torch
from architectures import Head, conv_bn
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def ids(*shape):
    return lambda: (torch.randint(0, 11, shape),)


def floats(*shape):
    return lambda: (torch.randn(shape, dtype=torch.float64),)


def lengths():
    return torch.randn(4, 6, 5, dtype=torch.float64), torch.tensor([6, 2, 5, 3])


class Vowels(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x, n):
        packed = pack_padded_sequence(x, n.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.fc(h[-1])


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.fc, self.head = nn.Linear(16, 6), nn.Linear(16, 3)

    def forward(self, x, n):
        packed = nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.lstm(packed)
        out, _ = pad_packed_sequence(out, batch_first=True)
        return self.head(torch.cat((h[-2], h[-1]), dim=1)) + self.fc(out).relu().mean((1, 2))[:, None]


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(5, 12, 2, proj_size=8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[-1])


class AllStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.fc = nn.GRU(5, 8, num_layers=3), nn.Linear(24, 3)

    def forward(self, x):
        _, h = self.gru(x)
        return self.fc(h.transpose(0, 1).flatten(1))


class Residual(nn.Module):
    """The last layer's outputs are added to inputs, so that no layer of the stack can lose units; the first one can."""

    def __init__(self):
        super().__init__()
        self.first, self.stack, self.fc = nn.GRU(8, 12, batch_first=True), nn.GRU(12, 8, 2), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(x + self.stack(self.first(x)[0])[0])


class Speller(nn.Module):
    """Letters to sounds, step by step: each step takes the last one's choice."""

    def __init__(self):
        super().__init__()
        self.letters, self.encoder = nn.Embedding(11, 6), nn.GRU(6, 8, batch_first=True)
        self.sounds, self.decoder, self.fc = nn.Embedding(9, 6), nn.GRUCell(6, 8), nn.Linear(8, 9)

    @torch.no_grad()
    def forward(self, x, n, steps=3):
        out, _ = self.encoder(self.letters(x))
        h = out[torch.arange(len(x)), n - 1]
        d, found = torch.full((len(x),), 2), []
        for _ in range(steps):
            h = self.decoder(self.sounds(d), h)
            y = self.fc(h)
            d = y.argmax(1)
            found.append(y)
        return torch.stack(found, 1)


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.second, self.fc = nn.LSTMCell(5, 8), nn.LSTMCell(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        first = second = None
        outputs = []
        for t in range(x.size(1)):
            first = self.cell(x[:, t], first)
            second = self.second(first[0], second)
            outputs.append(second[0])
        return self.fc(torch.stack(outputs, dim=1))


class CRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv_bn(1, 4), nn.ReLU(), nn.MaxPool2d(2), conv_bn(4, 8), nn.ReLU())
        self.rnn, self.fc = nn.LSTM(8 * 4, 6, bidirectional=True, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.rnn(self.features(x).permute(0, 3, 1, 2).flatten(2))[0]).log_softmax(-1)


class Translator(nn.Module):
    """An encoder and a decoder that looks at all of its states (Luong)."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(11, 6), nn.Embedding(11, 6)
        self.encoder, self.decoder = nn.LSTM(6, 8, 2, batch_first=True), nn.LSTM(6, 8, 2, batch_first=True)
        self.mix, self.fc = nn.Linear(16, 10), nn.Linear(10, 11)

    def forward(self, x, y):
        memory, state = self.encoder(self.source(x))
        out, _ = self.decoder(self.target(y), state)
        weights = torch.softmax(out @ memory.transpose(1, 2), -1)
        return self.fc(torch.tanh(self.mix(torch.cat([out, torch.bmm(weights, memory)], -1))))


class Elman(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.cell, self.fc = nn.RNN(5, 8, nonlinearity="relu"), nn.RNNCell(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = None
        for y in self.rnn(x)[0]:
            h = self.cell(y, h)
        return self.fc(h)


class TextCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0)
        self.convs, self.fc = nn.ModuleList(nn.Conv1d(8, 6, k) for k in (2, 3)), nn.Linear(12, 3)

    def forward(self, x):
        x = self.table(x).transpose(1, 2)
        return self.fc(torch.cat([F.relu(conv(x)).max(dim=2)[0] for conv in self.convs], 1))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.fc = nn.EmbeddingBag(11, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.hidden(self.table(x)).relu())


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Linear(5, 12), nn.MultiheadAttention(12, 4, batch_first=True, dropout=0.1)
        self.cross = nn.MultiheadAttention(12, 3, kdim=5, vdim=5, bias=False, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        y = self.embed(x)
        z, _ = self.attend(y, y, y)
        return self.fc(z + self.cross(z, x, x, need_weights=False)[0])


class TorchEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.position = nn.Embedding(11, 8), nn.Embedding(6, 8)
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x):
        y = self.table(x) + self.position(torch.arange(x.shape[1]))
        return self.fc(self.encoder(y, src_key_padding_mask=x == 0).mean(1))


class EncoderLayers(nn.Module):
    def __init__(self):
        super().__init__()
        options = {"batch_first": True, "norm_first": True, "activation": "gelu"}
        self.embed = nn.Linear(5, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 4, 12, **options) for _ in range(2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 4, 12), 2, nn.LayerNorm(8))

    def forward(self, x, memory):
        x = self.table(x).transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=x.dtype)
        return self.fc(self.decoder(x, memory, tgt_mask=mask))


class WholeTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target, self.fc = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    def forward(self, x, y):
        return self.fc(self.transformer(self.source(x), self.target(y)))


class OwnAttention(nn.Module):
    """As BERT in transformers: the number of heads follows."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(12, 5)
        self.size, self.fc = 3, nn.Linear(5, 2)

    def split(self, x):
        return x.view(*x.shape[:-1], -1, self.size).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1)
        return self.fc(x + self.o(y))


class OneHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.qk, self.v, self.fc = nn.Linear(5, 16), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        q, k = self.qk(x).chunk(2, -1)
        weights = torch.matmul(q, k.transpose(-2, -1)) / 8**0.5
        weights = weights.masked_fill(torch.ones(4, 4).triu(1) == 1, float("-inf")).softmax(dim=-1)
        return self.fc(weights @ self.v(x))


class TransposedUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.mid = conv_bn(2, 4), conv_bn(4, 8), conv_bn(8, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.join, self.last = conv_bn(16, 6), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.deep, self.out = nn.ConvTranspose2d(4, 8, 1, groups=4), nn.Conv2d(12, 1, 1)

    def forward(self, x):
        a = F.relu(self.one(x))
        b = F.relu(self.two(F.max_pool2d(a, 2)))
        c = self.up(F.relu(self.mid(F.max_pool2d(b, 2))))
        d = self.last(F.relu(self.join(torch.cat([b, c], 1))))
        return self.out(torch.cat([a, self.deep(d).tanh()], 1))


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv1d(2, 8, 4, 2, 1), nn.InstanceNorm1d(8, affine=True), nn.LeakyReLU(0.2))
        self.up = nn.Sequential(nn.Conv1d(8, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(6, 4, 4, 2, 1), nn.ELU())
        self.last = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        return self.last(self.up(self.down(x)))


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv1d(2, 6, 1), nn.Conv1d(5, 2, 1)
        self.filters, self.gates, self.residuals, self.skips = (
            nn.ModuleList(nn.Conv1d(i, o, k, dilation=2**n if k > 1 else 1) for n in range(2))
            for i, o, k in ((6, 8, 2), (6, 8, 2), (8, 6, 1), (8, 5, 1))
        )

    def forward(self, x):
        x, skip = self.stem(x), 0
        for n in range(2):
            y = F.pad(x, (2**n, 0))
            y = torch.tanh(self.filters[n](y)) * torch.sigmoid(self.gates[n](y))
            x, skip = x + self.residuals[n](y), skip + self.skips[n](y)
        return self.out(F.relu(skip))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(2, 6, 4, stride=4), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.fc((x + self.channels(self.norm(x))).mean(1))


class Captioner(nn.Module):
    """A convolutional network whose features start an LSTM."""

    def __init__(self):
        super().__init__()
        self.features, self.table = nn.Sequential(conv_bn(2, 6), nn.ReLU(), Head(6, 8)), nn.Embedding(11, 6)
        self.lstm, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 11)

    def forward(self, image, words):
        h = torch.tanh(self.features(image))[None]
        return self.fc(self.lstm(self.table(words), (h, h))[0])


SEQUENCES = {
    "vowels": (Vowels, lengths, {"lstm.hidden_size": 12}),
    "both ways": (BothWays, lengths, {"lstm.hidden_size": 8, "fc.out_features": 0}),
    "projected": (Projected, floats(6, 3, 5), {"lstm.hidden_size": 12, "lstm.proj_size": 8}),
    "all states": (AllStates, floats(6, 3, 5), {"gru.hidden_size": 8}),
    "residual stack": (Residual, floats(2, 3, 8), {"first.hidden_size": 12, "stack.hidden_size": 0}),
    "speller": (
        Speller, lambda: (torch.randint(0, 11, (4, 6)), torch.tensor([6, 2, 5, 3])),
        {"encoder.hidden_size": 8, "decoder.hidden_size": 8, "letters.embedding_dim": 6, "sounds.embedding_dim": 6,
         "fc.out_features": 0},
    ),
    "steps": (Steps, floats(2, 3, 5), {"cell.hidden_size": 8, "second.hidden_size": 6}),
    "crnn": (
        CRNN, floats(2, 1, 8, 8),
        {"features.0.0.out_channels": 4, "features.3.0.out_channels": 8, "rnn.hidden_size": 6},
    ),
    "translator": (
        Translator, lambda: (torch.randint(0, 11, (2, 5)), torch.randint(0, 11, (2, 4))),
        {"encoder.hidden_size": 8, "decoder.hidden_size": 8, "mix.out_features": 10, "source.embedding_dim": 6},
    ),
    "elman": (Elman, floats(4, 3, 5), {"rnn.hidden_size": 8, "cell.hidden_size": 6}),
    "text cnn": (TextCNN, ids(3, 7), {"table.embedding_dim": 8, "convs.0.out_channels": 6, "convs.1.out_channels": 6}),
    "bag": (Bag, ids(3, 7), {"table.embedding_dim": 8, "hidden.out_features": 6}),
    "attending": (Attending, floats(2, 4, 5), {"attend.num_heads": 4, "cross.num_heads": 3, "embed.out_features": 0}),
    "torch encoder": (
        TorchEncoder, ids(3, 6),
        {"encoder.layers.0.self_attn.num_heads": 4, "encoder.layers.1.linear1.out_features": 16,
         "table.embedding_dim": 0},
    ),
    "encoder layers": (
        EncoderLayers, floats(2, 4, 5), {"layers.0.self_attn.num_heads": 4, "layers.1.linear1.out_features": 12}
    ),
    "language model": (
        LanguageModel, lambda: (torch.randint(0, 11, (2, 6)), torch.randn(5, 2, 8, dtype=torch.float64)),
        {"decoder.layers.1.self_attn.num_heads": 4, "decoder.layers.0.multihead_attn.num_heads": 4,
         "decoder.layers.0.linear1.out_features": 12},
    ),
    "transformer": (
        WholeTransformer, lambda: (*floats(2, 4, 5)(), *floats(2, 3, 5)()),
        {"transformer.encoder.layers.0.self_attn.num_heads": 2,
         "transformer.decoder.layers.0.linear1.out_features": 12},
    ),
    "own attention": (OwnAttention, floats(2, 4, 5), {"q.out_features": 12, "v.out_features": 12, "o.in_features": 12}),
    "one head": (OneHead, floats(2, 4, 5), {"qk.out_features": 16, "v.out_features": 6}),
    "transposed u-net": (
        TransposedUNet, floats(2, 2, 8, 8),
        {"one.0.out_channels": 4, "mid.0.out_channels": 12, "up.out_channels": 8,
        },
    ),
    "autoencoder": (
        AutoEncoder, floats(3, 2, 8), {"down.0.out_channels": 8, "up.0.out_channels": 6, "up.2.out_channels": 4}
    ),
    "wavenet": (
        WaveNet, floats(2, 2, 8), {"stem.out_channels": 0, "filters.0.out_channels": 8, "skips.1.out_channels": 5}
    ),
    "mixer": (
        Mixer, floats(2, 2, 8, 8),
        {"embed.out_channels": 0, "tokens.0.out_features": 8, "channels.0.out_features": 12},
    ),
    "captioner": (
        Captioner, lambda: (*floats(2, 2, 6, 6)(), torch.randint(0, 11, (2, 4))),
        {"features.0.0.out_channels": 6, "lstm.hidden_size": 8, "table.embedding_dim": 6},
    ),
}  # fmt: skip
