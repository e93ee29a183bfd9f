"""Train an LSTM on spoken vowels, then in one call: remove half of its hidden units, distill, run it in int8.

    python examples/vowels_lstm.py [--json] [--data FOLDER]

JapaneseVowels (UCI; 270 utterances to train on, 370 to test): 12 coefficients for each of 7 to 29 moments, nine
speakers to tell apart. FOLDER holds JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts; by default those inside
`pip install --no-deps aeon==1.6.0` are read (nothing of it is imported).
"""

from pathlib import Path

import torch
from common import arguments, folder_of, leave, reloaded, show, side_by_side, torch_dynamic, verdict
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import pycompress as pc
from pycompress.artifact import stored_bytes

MARGIN = 0.03


class Speaker(nn.Module):
    """Two layers of LSTM over padded series [items, longest, 12] with their lengths; the last state decides."""

    def __init__(self, hidden=128):
        super().__init__()
        self.lstm = nn.LSTM(12, hidden, num_layers=2, batch_first=True)
        self.speaker = nn.Linear(hidden, 9)

    def forward(self, series, lengths):
        """Return logits [items, 9]."""
        packed = pack_padded_sequence(series, lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.speaker(hidden[-1])


def read(path):
    """Read a .ts file: ((series, lengths), speakers)."""
    if not path.exists():
        leave(f"--data must hold {path.name}, got {path.parent}")
    series, speakers = [], []
    for line in path.read_text().split("@data", 1)[1].split():
        *channels, speaker = line.split(":")
        series.append(torch.tensor([[float(value) for value in channel.split(",")] for channel in channels]).T)
        speakers.append(int(speaker) - 1)
    lengths = torch.tensor([len(item) for item in series])
    return (pad_sequence(series, batch_first=True), lengths), torch.tensor(speakers)


def main():
    """Train, compress, compare, save, load and time."""
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the two .ts files")
    parser.add_argument("--epochs", type=int, default=60, help="of training, and of distillation (default 60)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.data or folder_of("aeon", "aeon==1.6.0") / "datasets" / "data" / "JapaneseVowels"
    train, test = (read(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))

    training = {"epochs": options.epochs, "batch_size": 32, "lr": 3e-3, "clip_norm": 1.0}
    torch.manual_seed(0)
    model = Speaker()
    pc.fit_(model, train, schedule=pc.cosine(warmup=1), **training)
    model.eval()

    result = pc.compress(
        model, train, test, simplify=0.5, quantize=pc.Int8(), schedule=pc.cosine(), margin=MARGIN, **training
    )
    small = result.model
    again, size = reloaded(small, Speaker)
    with torch.inference_mode():
        equal = torch.equal(again(*test[0]), small(*test[0]))
    models = {"ours, half the units, int8": small, "torch fp32": model, "torch int8": torch_dynamic(model)}
    times = {
        batch: side_by_side(models, (test[0][0][:batch, : max(test[0][1][:batch])], test[0][1][:batch]))
        for batch in (1, 32)
    }
    found = {
        "verdicts": {"accuracy": verdict(result.verdict)},
        "bytes": size,
        "parameters": "{1:,} of {0:,}".format(*result.summary.parameters),
        "reload equal": equal,
        "times": times,
    }
    results = {"threads": options.threads, "original bytes": stored_bytes(model), "models": {"LSTM": found}}
    show(results, options.json)


if __name__ == "__main__":
    main()
