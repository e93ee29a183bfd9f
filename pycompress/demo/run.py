"""The demo: train two small models on real digits, compress them, and find out what that cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact import load, save
from ..formats import Int8
from ..pipeline import Compressed, compress
from ..progress import track
from ..report import ModelResult
from ..schedules import cosine
from ..training import fit_
from ..validation import compare_membership, cross_validate, validate
from . import models
from .data import Digits, digits, external_split

MARGIN = 0.015
FOLDS = 5


@dataclass(frozen=True)
class Recipe:
    """How a model of the demo is made, trained and compressed."""

    name: str
    make: Callable[[], nn.Module]
    train: dict[str, Any]
    compress: dict[str, Any]


RECIPES = (
    Recipe(
        "MLP 64-512-512-10",
        models.mlp,
        {"epochs": 20, "lr": 2e-3, "batch_size": 64, "schedule": cosine(warmup=1)},
        {
            "simplify": 0.5,
            "sparsity": 0.85,
            "rounds": 2,
            "epochs": 5,
            "batch_size": 32,
            "lr": 5e-3,
            "temperature": 2.0,
            "schedule": cosine(),
            "quantize": Int8(),
        },
    ),
    Recipe(
        "CNN conv16-conv32-64-10",
        models.cnn,
        {"epochs": 20, "lr": 8e-3, "batch_size": 64, "schedule": cosine(warmup=2)},
        {
            "simplify": 0.25,
            "sparsity": 0.7,
            "epochs": 7,
            "lr": 8e-3,
            "temperature": 2.0,
            "schedule": cosine(),
            "quantize": Int8(),
        },
    ),
)


@dataclass(frozen=True)
class Report:
    """The results of all models, and the seconds that they took."""

    seconds: float
    models: tuple[ModelResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dicts, for JSON."""
        return {"seconds": round(self.seconds, 2), "models": [model.to_dict() for model in self.models]}


def make_and_compress(recipe: Recipe, train: Digits, seed: int) -> tuple[nn.Module, Compressed]:
    """Train a recipe's model from nothing and compress it, on the same data.

    Parameters
    ----------
    recipe : Recipe
    train : images [n, 1, 8, 8] float32 and labels [n] int64
    seed : int

    Returns
    -------
    the trained model, the compressed one
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.make()
    fit_(model, train, seed=seed, progress=False, **recipe.train)
    return model.eval(), compress(model, train, None, seed=seed, progress=False, **recipe.compress)


def run(out: Path | None = None, *, seed: int = 0, progress: bool = True) -> Report:
    """Run the demo.

    Parameters
    ----------
    out : Path, optional
        Folder to save the compressed models in; a temporary one by default.
    seed : int
    progress : bool
        Whether to show progress on stderr.

    Returns
    -------
    Report
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, _one_thread():
        folder = Path(temporary) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a folder that cannot be written is found now, not after the work
            pass
        results = tuple(_run_one(recipe, folder, seed, progress) for recipe in track(RECIPES, "demo", progress))
    return Report(time.perf_counter() - start, results)


def _run_one(recipe: Recipe, folder: Path, seed: int, progress: bool) -> ModelResult:
    def pipeline(train: Any, seed: int) -> tuple[nn.Module, nn.Module]:
        original, result = make_and_compress(recipe, train, seed)
        return original, result.model

    folds = cross_validate(pipeline, digits(), FOLDS, margin=MARGIN, seed=seed, progress=progress).verdict
    (images, labels), external = external_split()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    members, others = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    train = images[members], labels[members]
    original, result = make_and_compress(recipe, train, seed)
    final = validate(original, result.model, external, margin=MARGIN, seed=seed, progress=False)
    membership = compare_membership(original, result.model, train, (images[others], labels[others]))
    path = folder / f"{recipe.name.split()[0].lower()}.safetensors"
    save(result.model, path)
    with torch.no_grad():
        equal = torch.equal(load(path, into=recipe.make)(images), result.model(images))
    assert final.cost is not None
    return ModelResult(recipe.name, folds, final.cost, membership, equal, external=final)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train and time with one thread: such small models gain nothing from two, and lose much beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
