"""What the arguments of public functions are: valid ones, and the kind of each; more in public_calls_training.py."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from wrong_values import (
    CLASSES,
    INPUTS,
    Anything,
    Choice,
    File,
    Flag,
    Function,
    Inputs,
    Items,
    Layers,
    Model,
    Number,
    Patterns,
    model,
)

import pycompress as pc

DATA = INPUTS, CLASSES
NAN = (np.nan, np.inf, -np.inf)
ENTROPY = nn.functional.cross_entropy


def small() -> nn.Module:
    """The student of `model`: same inputs and outputs."""
    with torch.random.fork_rng():
        return nn.Sequential(nn.Linear(4, 3))


def blocked() -> nn.Module:
    """A model with a block that can be taken out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        return nn.Sequential(nn.Linear(4, 6), block, nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def normed() -> nn.Module:
    """A model with a normalization in front of a layer, and layers that follow each other, all pruned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    pc.prune_(made, sparsity=0.25)
    made[1].eval()
    return made


FOLDER = tempfile.TemporaryDirectory()


def saved() -> Path:
    """A file that holds `small`."""
    path = Path(FOLDER.name, "small")
    if not path.exists():
        pc.save(small(), path)
    return path


# Parts of calls that many functions share.
LAYER_CHOICE = {"include": Patterns(), "exclude": Patterns()}
BATCH = Number((0, -1, -(2**70)), integer=True)
SEED = Number((-1, -(2**70), 2**70), integer=True)
SEED_OF_ANY_SIZE = Number((-1, -(2**70)), integer=True)
FRACTION = Number((-0.1, 1.0, 1.5, *NAN))
POSITIVE = Number((0, 0.0, -1.0, *NAN))
INSIDE_ONE = Number((0, 0.0, 1.0, -0.5, 95, *NAN))
LOSS = Function((lambda outputs, targets: "loss", lambda outputs, targets: outputs, lambda outputs, targets: None))
SCORE = Function(
    (
        lambda model, layers: None,
        lambda model, layers: {},
        lambda model, layers: dict.fromkeys(layers, "score"),
        lambda model, layers: {name: torch.ones(2) for name in layers},
        lambda model, layers: {name: layer.weight * np.nan for name, layer in layers.items()},
        lambda model, layers: {name: layer.weight + np.inf for name, layer in layers.items()},
    )
)
# name: (a function that makes valid arguments, the kind of each argument)
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Int8": (dict, {}),
    "BFloat16": (dict, {}),
    "Float32": (dict, {}),
    "Unstructured": (dict, {}),
    "Blocks": (lambda: {"height": 16, "width": 4}, {"height": BATCH, "width": BATCH}),
    "Rows": (lambda: {"count": 2}, {"count": BATCH}),
    "Columns": (lambda: {"count": 2}, {"count": BATCH}),
    "NM": (
        lambda: {"n": 2, "m": 4},
        {"n": Number((0, 4, 5, -1, 2**70), integer=True), "m": Number((1, 0, -4, 33, 2**70), integer=True)},
    ),
    "LeaveOneOut": (dict, {}),
    "Int4": (
        lambda: {"group": 64, "zero_point": False, "scales": "int", "activations": "int8"},
        {
            "group": Number((0, 16, 33, 96, 256, -32, 2**70), integer=True),
            "zero_point": Flag(),
            "scales": Choice(("int8", "float32", "", 7)),
            "activations": Choice(("int4", "", 7)),
        },
    ),
    "Binary": (lambda: {"activations": "binary"}, {"activations": Choice(("float32", "", 7))}),
    "Codebook": (
        lambda: {"bits": 2, "group": 32},
        {
            "bits": Number((0, 1, 3, 8, -2, 2**70), integer=True),
            "group": Number((0, 16, 33, 96, 256, -32, 2**70), integer=True),
        },
    ),
    "Sparse": (
        lambda: {"block": (1, 1), "values": pc.Float32()},
        {"block": Choice(((2, 2), (0, 0), (1,), [1, 1], (1.5, 1))), "values": Choice((pc.Int4(), pc.Float32))},
    ),
    "Affine": (
        lambda: {"bits": 8, "signed": False, "per_channel": True},
        {"bits": Number((1, 17, 0, -8, 2**70), integer=True), "signed": Flag(), "per_channel": Flag()},
    ),
    "FixedPoint": (lambda: {"bits": 8}, {"bits": Number((-1, 16, 2**70), integer=True)}),
    "Compressed": (None, dict.fromkeys(("model", "verdict", "summary"), Anything())),
    "Verdict": (None, {field.name: Anything() for field in dataclasses.fields(pc.Verdict)}),
    "save": (
        lambda: {"model": model(), "path": saved().with_name("new")},
        {"model": Model(weights=False, layers=False), "path": File()},
    ),
    "load": (
        lambda: {"path": saved(), "into": small()},
        {"path": File(), "into": Choice((nn.Linear(2, 2), model(), lambda: 3, lambda: None))},
    ),
    "finalize_": (lambda: {"model": model()}, {"model": Model(weights=False, layers=False)}),
    "explain": (lambda: {"model": model()}, {"model": Model(weights=False, layers=False)}),
    "prune_": (
        lambda: {
            "model": model(),
            "sparsity": 0.5,
            "threshold": None,
            "score": pc.scores.magnitude,
            "pattern": pc.Unstructured(),
            "across_layers": True,
            "include": ["*"],
            "exclude": ["0"],
        },
        {
            "model": Model(),
            "sparsity": FRACTION,
            "threshold": Number((-0.1, *NAN)),
            "score": SCORE,
            "pattern": Choice((pc.Sparse(), pc.Unstructured, (16, 4))),
            "across_layers": Flag(),
            **LAYER_CHOICE,
        },
    ),
    "quantize_": (
        lambda: {
            "model": model(),
            "format": pc.Int8(),
            "calibration": DATA,
            "include": ["*"],
            "exclude": ["0"],
            "observer": pc.observers.Percentile(99.9),
            "bias_correction": True,
            "max_error": 10.0,
        },
        {
            "model": Model(),
            "format": Choice((pc.Int8, pc.Sparse(), pc.Float32(), "Int8")),
            "calibration": Items(),
            "observer": Choice((pc.observers.MinMax, pc.Int8(), "MinMax", max)),
            "bias_correction": Flag(),
            "max_error": POSITIVE,
            **LAYER_CHOICE,
        },
    ),
    "smooth_": (
        lambda: {"model": normed(), "data": DATA, "alpha": 0.5, "include": ["*"], "exclude": ["0"]},
        {"model": Model(), "data": Items(), "alpha": Number((-0.1, 1.1, *NAN)), **LAYER_CHOICE},
    ),
    "equalize_": (
        lambda: {"model": normed(), "example_inputs": INPUTS, "include": ["*"], "exclude": ["0"]},
        {"model": Model(), "example_inputs": Inputs(), **LAYER_CHOICE},
    ),
    "observers.MinMax": (dict, {}),
    "observers.MSE": (dict, {}),
    "observers.Entropy": (dict, {}),
    "observers.MovingAverage": (lambda: {"momentum": 0.9}, {"momentum": FRACTION}),
    "observers.Percentile": (lambda: {"percent": 99.9}, {"percent": Number((0, 0.0, -1, 100.5, *NAN))}),
    "simplify": (
        lambda: {
            "model": blocked(),
            "example_inputs": INPUTS,
            "fraction": 0.5,
            "score": pc.scores.magnitude,
            "include": ["*"],
            "exclude": ["4"],
            "blocks": {"1": 1},
            "data": DATA,
            "loss": ENTROPY,
            "progress": False,
        },
        {
            "model": Model(),
            "example_inputs": Inputs(),
            "fraction": Number((-0.1, 1.0, *NAN, {"0": 1.5}, {"0": "half"}, {"9": 0.5}, {4: 0.5}, {"4": 0.5})),
            "score": SCORE,
            **LAYER_CHOICE,
            "blocks": Number((-1, 9, {"1": 0}, {"1": 1.5}, {"1": 2}, {"9": 1}, {4: 1}), integer=True),
            "data": Items(),
            "loss": LOSS,
            "progress": Flag(),
        },
    ),
    "permute_channels": (
        lambda: {
            "model": blocked(),
            "example_inputs": INPUTS,
            "block": (2, 1),
            "sparsity": 0.5,
            "score": pc.scores.magnitude,
            "include": ["*"],
            "exclude": ["4"],
        },
        {
            "model": Model(),
            "example_inputs": Inputs(),
            "block": Choice(((0, 1), (1,), [2, 2], (2.0, 1))),
            "sparsity": Number((0.0, 1.0, -0.1, *NAN)),
            "score": SCORE,
            **LAYER_CHOICE,
        },
    ),
    "pack": (
        lambda: {"model": model(), "example_inputs": INPUTS, "format": pc.Int8(), "force": True},
        {
            "model": Model(),
            "example_inputs": Inputs(),
            "format": Choice((pc.Int8, pc.Affine(), pc.Float32(), "Int8")),
            "force": Flag(),
        },
    ),
    "profile": (
        lambda: {
            "model": model(),
            "example_inputs": INPUTS,
            "gains": True,
            "sparsity": 0.5,
            "seconds": 0.01,
            "progress": False,
        },
        {
            "model": Model(layers=False),
            "example_inputs": Inputs(),
            "gains": Flag(),
            "sparsity": FRACTION,
            "seconds": POSITIVE,
            "progress": Flag(),
        },
    ),
    "quantize_dynamic": (
        lambda: {
            "model": model(),
            "qconfig_spec": {"0"},
            "dtype": torch.qint8,
            "mapping": None,
            "inplace": True,
            "example_inputs": INPUTS,
        },
        {
            "model": Model(),
            "qconfig_spec": Choice(({"9"}, {nn.ReLU}, {3}, ["0"], {"0": 3, 4: 4}, {"2"}, set(), {nn.Linear: None})),
            "dtype": Choice((torch.float32, torch.qint32, torch.int8, "qint8", np.int8)),
            "mapping": Anything(),  # anything but None raises NotImplementedError
            "inplace": Flag(),
            "example_inputs": Inputs(),
        },
    ),
    "scores.magnitude": (
        lambda: {"model": model(), "layers": {"4": model()[4]}},
        {"model": Anything(), "layers": Layers()},
    ),
    "scores.l2": (lambda: {"model": model(), "layers": {"4": model()[4]}}, {"model": Anything(), "layers": Layers()}),
    "scores.lamp": (lambda: {"model": model(), "layers": {"4": model()[4]}}, {"model": Anything(), "layers": Layers()}),
    "scores.random": (lambda: {"seed": 0}, {"seed": SEED}),
    "scores.bn_scale": (lambda: {"example_inputs": INPUTS}, {"example_inputs": Inputs()}),
    "scores.Loss": (None, {}),
    "scores.Score": (None, {}),
}
MEASURED = {"data": (DATA, Items()), "loss": (ENTROPY, LOSS), "batch_size": (4, BATCH), "progress": (False, Flag())}
for name, names in {
    "taylor": ("data", "loss", "batch_size"),
    "snip": ("data", "loss", "batch_size"),
    "fisher": ("data", "loss", "progress"),
    "wanda": ("data", "batch_size"),
    "ablation": ("data", "loss", "batch_size", "progress"),
    "activation": ("data", "batch_size"),
}.items():
    values = {argument: MEASURED[argument][0] for argument in names}
    CALLS[f"scores.{name}"] = values.copy, {argument: MEASURED[argument][1] for argument in names}

NONE_IS_LEGAL = {
    "prune_": ("sparsity", "threshold", "include", "exclude"),
    "quantize_": ("calibration", "max_error", "include", "exclude"),
    "smooth_": ("include", "exclude"),
    "equalize_": ("include", "exclude"),
    "simplify": ("score", "include", "exclude"),
    "permute_channels": ("include", "exclude"),
    "pack": ("format",),
    "profile": ("sparsity",),
    "quantize_dynamic": ("qconfig_spec", "example_inputs"),
}

# What else a message may call an argument.
ALSO = {
    "model": ("layers", "weights"),
    "layers": ("weights",),
    "into": ("file", "model"),
    "path": ("file",),
    "data": ("targets",),
}
