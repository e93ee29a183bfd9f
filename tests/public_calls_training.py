"""What the arguments of the functions that train and judge models are; public_calls.py has the other functions."""

from typing import Any

import numpy as np
import torch
from public_calls import (
    BATCH,
    DATA,
    ENTROPY,
    FRACTION,
    INSIDE_ONE,
    LAYER_CHOICE,
    LOSS,
    NAN,
    POSITIVE,
    SCORE,
    SEED,
    SEED_OF_ANY_SIZE,
    small,
)
from torch import nn
from wrong_values import (
    CLASSES,
    INPUTS,
    Choice,
    Flag,
    Function,
    Inputs,
    Items,
    Model,
    Number,
    model,
)

import pycompress as pc


def pipeline(train: Any, seed: int) -> tuple[nn.Module, nn.Module]:
    return small(), small()


def not_models(train: Any, seed: int) -> tuple[nn.Module, str]:
    return small(), "compressed"


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
}

NONE_IS_LEGAL = {
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
