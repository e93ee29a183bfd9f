"""What the arguments of each public function are: valid ones, and the kind of each (wrong_values.py)."""

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


def pipeline(train: Any, seed: int) -> tuple[nn.Module, nn.Module]:
    return small(), small()


def not_models(train: Any, seed: int) -> tuple[nn.Module, str]:
    return small(), "compressed"


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
METRIC = Function(
    (
        lambda outputs, targets: None,
        lambda outputs, targets: "good",
        lambda outputs, targets: np.nan,
        lambda outputs, targets: outputs,
    )
)
TRAINING = {
    "lr": POSITIVE,
    "optimizer": Function((lambda parameters, lr: "optimizer",)),
    "batch_size": BATCH,
    "schedule": Function((lambda optimizer, epochs: "schedule",)),
    "clip_norm": POSITIVE,
    "validation_fraction": FRACTION,
    "patience": Number((0, -1), integer=True),
    "seed": SEED,
    "progress": Flag(),
}
TRAINED = {"lr": 0.01, "optimizer": torch.optim.Adam, "batch_size": 4, "schedule": pc.cosine(), "clip_norm": 1.0}
TRAINED |= {"validation_fraction": 0.25, "patience": 2, "seed": 0, "progress": False}
COMPARED = {"metric": METRIC, "margin": Number((0, -0.1, 1.0, 2.0, *NAN)), "confidence": INSIDE_ONE}
COMPARED |= {"resamples": BATCH, "batch_size": BATCH, "seed": SEED_OF_ANY_SIZE, "progress": Flag(), "latency": Flag()}
GROUPS = Choice((np.zeros(5), "groups", np.zeros((12, 2)), np.full(12, np.nan)))

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
    "fit_": (
        lambda: {"model": model(), "data": DATA, "epochs": 1, "loss": ENTROPY, **TRAINED},
        {"model": Model(layers=False), "data": Items(fits=True), "epochs": BATCH, "loss": LOSS, **TRAINING},
    ),
    "distill_": (
        lambda: {
            "student": small(),
            "teacher": model(),
            "data": DATA,
            "epochs": 1,
            "temperature": 4.0,
            "alpha": 0.9,
            **TRAINED,
        },
        {
            "student": Model(layers=False),
            "teacher": Model(layers=False),
            "data": Items(fits=True),
            "epochs": BATCH,
            "temperature": POSITIVE,
            "alpha": Number((-0.1, 1.1, *NAN)),
            **TRAINING,
        },
    ),
    "reestimate_batch_norm_": (
        lambda: {"model": model(), "data": DATA, "batch_size": 4, "seed": 0},
        {"model": Model(), "data": Items(), "batch_size": Number((1, 0, -1), integer=True), "seed": SEED},
    ),
    "step_schedule": (
        lambda: {"every": 2, "factor": 0.5},
        {"every": BATCH, "factor": Number((0, -0.5, 1.5, *NAN))},
    ),
    "cosine": (
        lambda: {"warmup": 0, "final": 0.1},
        {"warmup": Number((-1,), integer=True), "final": Number((-0.1, 1.1, *NAN))},
    ),
    "plateau": (
        lambda: {"patience": 1, "factor": 0.5},
        {"patience": Number((-1,), integer=True), "factor": Number((0, -0.5, 1.0, *NAN))},
    ),
    "validate": (
        lambda: {
            "original": model(),
            "compressed": small(),
            "data": DATA,
            "metric": pc.validation.metrics.accuracy,
            "margin": 0.1,
            "external": {"other": DATA},
            "groups": np.arange(12) // 2,
            "confidence": 0.9,
            "resamples": 20,
            "batch_size": 4,
            "latency": False,
            "batch_sizes": (1, 2),
            "seed": 0,
            "progress": False,
        },
        {
            "original": Model(layers=False),
            "compressed": Model(layers=False),
            "data": Items(fits=True),
            "external": Choice(({"a": None}, {"a": (INPUTS, CLASSES[:3])}, {3: DATA}, {"a": iter([DATA])}, [DATA])),
            "groups": GROUPS,
            "batch_sizes": Choice(((0,), (1, -1), ("1",), (1.5,), (True,), 32, None, (n for n in (1, 2)))),
            **COMPARED,
        },
    ),
    "cross_validate": (
        lambda: {
            "pipeline": pipeline,
            "data": DATA,
            "folds": 2,
            "stratify": True,
            "groups": np.arange(12) // 2,
            "metric": pc.validation.metrics.accuracy,
            "margin": 0.1,
            "confidence": 0.9,
            "resamples": 20,
            "batch_size": 4,
            "latency": False,
            "seed": 0,
            "progress": False,
        },
        {
            "pipeline": Function((lambda train, seed: None, not_models, lambda train, seed: small())),
            "data": Items(finite=False, runs=False),
            "folds": Number((0, 1, -1, 7, 13, 2**70), integer=True),
            "stratify": Flag(),
            "groups": GROUPS,
            **COMPARED,
        },
    ),
    "membership_inference": (
        lambda: {
            "model": model(),
            "members": DATA,
            "non_members": DATA,
            "score": None,
            "batch_size": 4,
            "confidence": 0.9,
        },
        {
            "model": Model(layers=False),
            "members": Items(fits=True),
            "non_members": Items(fits=True),
            "score": Function((lambda outputs, targets: None, lambda outputs, targets: outputs)),
            "batch_size": BATCH,
            "confidence": INSIDE_ONE,
        },
    ),
    "compare_membership": (
        lambda: {
            "original": model(),
            "compressed": small(),
            "members": DATA,
            "non_members": DATA,
            "score": None,
            "batch_size": 4,
            "confidence": 0.9,
        },
        {
            "original": Model(layers=False),
            "compressed": Model(layers=False),
            "members": Items(fits=True),
            "non_members": Items(fits=True),
            "score": Function((lambda outputs, targets: None, lambda outputs, targets: outputs)),
            "batch_size": BATCH,
            "confidence": INSIDE_ONE,
        },
    ),
    "compress": (
        lambda: {
            "model": model(),
            "train": DATA,
            "test": DATA,
            "sparsity": 0.5,
            "quantize": pc.Int8(),
            "calibration": DATA,
            "observer": pc.observers.Percentile(99.9),
            "bias_correction": True,
            "max_error": 10.0,
            "simplify": 0.5,
            "score": pc.scores.magnitude,
            "pattern": pc.Blocks(2, 2),
            "rounds": 2,
            "epochs": 1,
            "teacher": model(),
            "example_inputs": INPUTS,
            "metric": pc.validation.metrics.accuracy,
            "margin": 0.1,
            "include": ["*"],
            "exclude": ["4"],
            "temperature": 4.0,
            "alpha": 0.9,
            **TRAINED,
        },
        {
            "model": Model(),
            "train": Items(fits=True),
            "test": Items(fits=True),
            "sparsity": FRACTION,
            "quantize": Choice((pc.Int8, pc.Sparse(), "Int8")),
            "calibration": Items(),
            "observer": Choice((pc.observers.MinMax, pc.Int8(), "MinMax", max)),
            "bias_correction": Flag(),
            "max_error": POSITIVE,
            "simplify": Number((-0.1, 1.0, *NAN, {"0": 1.5}, {"9": 0.5}, {"4": 0.5})),
            "score": SCORE,
            "pattern": Choice((pc.Sparse(), pc.Blocks, (16, 4))),
            "rounds": BATCH,
            "epochs": BATCH,
            "teacher": Model(layers=False),
            "example_inputs": Inputs(),
            "metric": METRIC,
            "margin": Number((0, -0.1, 1.0, *NAN)),
            **LAYER_CHOICE,
            "temperature": POSITIVE,
            "alpha": Number((-0.1, 1.1, *NAN)),
            **TRAINING,
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
    "fit_": ("schedule", "clip_norm", "patience"),
    "distill_": ("schedule", "clip_norm", "patience"),
    "validate": ("external", "groups", "resamples"),
    "cross_validate": ("stratify", "groups", "resamples"),
    "membership_inference": ("score",),
    "compare_membership": ("score",),
    "compress": (
        *("test", "sparsity", "quantize", "simplify", "teacher", "example_inputs", "include", "exclude"),
        *("calibration", "max_error"),
        *("schedule", "clip_norm", "patience"),
    ),
}

# What else a message may call an argument.
ALSO = {
    "model": ("layers", "weights"),
    "layers": ("weights",),
    "into": ("file", "model"),
    "path": ("file",),
    "data": ("targets",),
}
