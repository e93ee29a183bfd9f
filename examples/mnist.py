"""Compress LeNet-300-100 and LeNet-5 on MNIST, and compare them with the originals on the 10 000 test images.

    python examples/mnist.py --data DIR [--json]

DIR holds the four idx files of MNIST, gzipped or not. Needs `pip install 'pycompress-nn[torch]'`.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pycompress as pc
from pycompress import report

MARGIN = 0.003


def lenet_300_100():
    """LeNet-300-100 (266 610 parameters)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5():
    """LeNet-5 as Caffe has it (431 080 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def read_idx(folder, name):
    """Read an idx file, gzipped or not, as an array."""
    for path, reader in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
        if path.exists():
            with reader(path, "rb") as file:
                content = file.read()
            break
    else:
        raise FileNotFoundError(f"--data must hold {name} or {name}.gz, got {folder}")
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be an idx file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def read_mnist(folder, part):
    """Read images [n, 1, 28, 28], normalized, and labels [n]."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte").astype(np.float32)[:, None] / 255
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte").astype(np.int64)
    return torch.from_numpy((images - 0.1307) / 0.3081), torch.from_numpy(labels)


def trained(make, train, epochs):
    """Make and train an original."""
    torch.manual_seed(0)
    model = make()
    pc.fit_(model, train, epochs=epochs, batch_size=128, schedule=pc.cosine())
    return model


def compressed(name, make, model, train, test, **options):
    """Compress, validate, save and load one model."""
    result = pc.compress(
        model,
        train,
        test,
        score=pc.scores.lamp,
        rounds=2,
        batch_size=128,
        schedule=pc.cosine(),
        quantize=pc.Int8(),
        margin=MARGIN,
        **options,
    )
    membership = pc.compare_membership(model, result.model, (train[0][:10000], train[1][:10000]), test)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.safetensors"
        pc.save(result.model, path)
        equal = torch.equal(pc.load(path, into=make)(test[0]), result.model(test[0]))
    return report.ModelResult(name, result.verdict, result.verdict.cost, membership, equal)


def main():
    """Run both models and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the idx files of MNIST")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    start = time.perf_counter()
    try:
        train, test = read_mnist(options.data, "train"), read_mnist(options.data, "t10k")
    except (OSError, ValueError) as error:
        sys.exit(f"mnist.py: {error}")
    # The compression spends no more epochs than the training did. LeNet-5 teaches LeNet-300-100: from its own answers
    # alone the pruned one learns to err in 1.6 to 1.7 %.
    small, large = trained(lenet_300_100, train, 24), trained(lenet_5, train, 8)
    models = [
        compressed(
            "LeNet-300-100", lenet_300_100, small, train, test, sparsity=0.951, teacher=large, epochs=12, lr=2e-3
        ),
        compressed("LeNet-5", lenet_5, large, train, test, sparsity=0.95, epochs=4, lr=1e-3),
    ]
    found = {"seconds": round(time.perf_counter() - start, 1), "models": [model.to_dict() for model in models]}
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        report.show(report.models_table(found["models"], "10 000 test images"))
        report.show([f"{found['seconds']:.0f} s, {torch.get_num_threads()} threads"])


if __name__ == "__main__":
    main()
