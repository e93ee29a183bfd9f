"""Every public name: hints, a docstring with an example, and wrong arguments that are refused by name.

The wrong values come from the kind of each argument (wrong_values.py, public_calls.py, public_calls_training.py). A new
public name without a line in CALLS fails the tests, and so does a new argument. pycompress.kernels has
test_kernel_inputs.py.
"""

import functools
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import public_calls
import public_calls_training
import pytest
import torch
from public_calls import ALSO, DATA, ENTROPY
from torch import nn
from wrong_values import INPUTS, model, refusal, shown, state, wrong_values

import pycompress as pc

CALLS = public_calls.CALLS | public_calls_training.CALLS
NONE_IS_LEGAL = public_calls.NONE_IS_LEGAL | public_calls_training.NONE_IS_LEGAL
PUBLIC = [name for name in pc.__all__ if name not in ("__version__", "kernels", "observers", "scores")]
PUBLIC += [f"scores.{name}" for name in pc.scores.__all__]
PUBLIC += [f"observers.{name}" for name in pc.observers.__all__]
CASES = [name for name in PUBLIC if CALLS.get(name, (None,))[0]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def public(name: str) -> Any:
    return functools.reduce(getattr, name.split("."), pc)


def called(name: str) -> Any:
    """The function to call: a score that is made from data is used at once."""
    function = public(name)
    made_from_data = ("taylor", "snip", "fisher", "wanda", "ablation", "activation", "bn_scale")
    if name.removeprefix("scores.") not in made_from_data:
        return function
    layer = 0 if name == "scores.bn_scale" else 4  # in front of the batch norm

    def use(**arguments: Any) -> Any:
        made = model()
        before = state(made)
        try:
            return function(**arguments)(made, {str(layer): made[layer]})
        finally:
            assert state(made) == before, "the scored model was changed"

    return use


def parameters(name: str) -> set[str]:
    """The names of a function's arguments; those that compress passes on are its own too."""
    found = inspect.signature(public(name)).parameters
    names = {key for key, value in found.items() if value.kind is not value.VAR_KEYWORD and key[0] != "_"}
    if name == "compress":
        names |= set(inspect.signature(pc.distill_).parameters) - {"student", "data"}
    return names


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_every_public_name_has_a_kind(name):
    assert name in CALLS, f"{name} is public: add it to CALLS"
    valid, kinds = CALLS[name]
    if name in ("scores.Loss", "scores.Score"):
        return
    assert set(kinds) == parameters(name), "CALLS must give the kind of each argument"
    assert valid is None or set(valid()) == set(kinds), "CALLS must give a valid value of each argument"


@pytest.mark.parametrize("name", CASES)
def test_valid_arguments_are_accepted(name):
    called(name)(**CALLS[name][0]())


@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments_are_refused_by_name_and_change_nothing(name):
    make, kinds = CALLS[name]
    valid, complaints = make(), []
    for argument, kind in kinds.items():
        for wrong in with_none(wrong_values(kind), argument not in NONE_IS_LEGAL.get(name, ())):
            complaint = refusal(called(name), valid | {argument: wrong}, (argument, *ALSO.get(argument, ())))
            if complaint:
                complaints.append(f"{name}({argument}={shown(wrong)}): {complaint}")
                valid = make()  # a model in it may have changed
    if complaints:
        raise AssertionError("\n".join(complaints))


def with_none(values: Iterator[Any], wrong: bool) -> list[Any]:
    """The values and None, or without None where that is legal; all of nothing where nothing is wrong."""
    found = [value for value in values if value is not None]
    return [*found, None] if found and wrong else found


@pytest.mark.skipif(sys.flags.optimize > 0, reason="runs this file itself")
def test_wrong_arguments_are_refused_under_python_optimized():
    code = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "refused_by_name", __file__]
    done = subprocess.run(code, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and f"{len(CASES)} passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prune_", {"threshold": 0.1}, "exactly one of sparsity and threshold must be given"),
        ("prune_", {"sparsity": None}, "exactly one of sparsity and threshold must be given"),
        ("prune_", {"include": [], "exclude": None}, "include and exclude must leave a layer"),
        ("prune_", {"include": ["4"], "exclude": [nn.Linear]}, "include and exclude must leave a layer"),
        ("quantize_", {"format": pc.Affine()}, "observer must come with calibration data and Int8"),
        ("quantize_", {"calibration": None}, "observer must come with calibration data and Int8"),
        ("quantize_", {"calibration": None, "observer": pc.observers.MinMax()}, "bias_correction must come with"),
        ("quantize_", {"format": pc.Affine(), "bias_correction": False, "max_error": None}, "calibration must be None"),
        (
            "quantize_",
            {"calibration": None, "observer": pc.observers.MinMax(), "bias_correction": False},
            "max_error must",
        ),
        ("quantize_", {"max_error": 1e-9}, "max_error must leave a layer to round"),
        ("smooth_", {"exclude": ["2"]}, "model must have a LayerNorm or RMSNorm"),
        ("smooth_", {"model": model()}, "model must have a LayerNorm or RMSNorm"),
        ("equalize_", {"model": model()}, "model must have two Linear or two convolution layers"),
        ("fit_", {"validation_fraction": 0.0}, "patience must come with a validation_fraction"),
        ("fit_", {"schedule": pc.cosine(warmup=1)}, "warmup must be less than the 1 epochs"),
        ("fit_", {"model": model().requires_grad_(False)}, "model must have parameters that require grad"),
        ("distill_", {"teacher": nn.Linear(4, 2)}, "student must return a tensor of the teacher's shape"),
        ("reestimate_batch_norm_", {"model": nn.Linear(4, 3)}, "model must have batch-norm layers"),
        ("validate", {"compressed": nn.Linear(4, 2)}, "models must have outputs of one shape for data"),
        ("validate", {"original": nn.Linear(5, 3)}, r"data inputs must fit the model, got \(4, 4\) float32"),
        ("cross_validate", {"data": (INPUTS, INPUTS), "groups": None}, "stratify must be False or None"),
        ("compress", dict.fromkeys(("sparsity", "quantize", "simplify")), "one of sparsity, quantize and simplify"),
        ("compress", {"quantize": None}, "calibration must come with quantize"),
        ("compress", {"quantize": pc.Affine()}, "observer must come with calibration data and Int8"),
        ("compress", {"max_error": 1e-9}, "max_error must leave a layer to round"),
        ("compress", {"train": None}, "teacher must come with a training step"),
        ("compress", {"train": None, "teacher": None}, "temperature must come with a training step"),
        ("compress", {"sparsity": None, "simplify": None}, "teacher must come with a training step"),
        ("compress", {"score": pc.scores.ablation(DATA, ENTROPY)}, r"score must .* shape \(6,\) for a weight of"),
        ("load", {"into": nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))}, r"missing .*1\.weight"),
    ],
)
def test_refused_combinations(name, change, message):
    arguments = CALLS[name][0]() | change
    models = [value for value in arguments.values() if isinstance(value, nn.Module)]
    before = [state(made) for made in models]
    with pytest.raises((TypeError, ValueError), match=message):
        called(name)(**arguments)
    assert [state(made) for made in models] == before


@pytest.mark.parametrize(
    "verb", ["prune_", "quantize_", "smooth_", "equalize_", "pack", "compress", "fit_", "simplify"]
)
def test_all_offending_layers_are_named(verb):
    made = model()
    for layer in (0, 4):
        made[layer].weight.data[0, 1] = np.nan
    before = state(made)
    arguments = CALLS[verb][0]() | {"model": made, "include": None, "exclude": None}
    arguments = {name: value for name, value in arguments.items() if name in CALLS[verb][1]}
    with pytest.raises(ValueError, match=r"\b0\b.*\b4\b"):
        called(verb)(**arguments)
    assert state(made) == before


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("scores.Loss", "scores.Score")])
def test_public_names_have_hints_and_a_docstring_with_an_example(name):
    value = public(name)
    assert ">>> " in (inspect.getdoc(value) or ""), f"{name} needs an example in its docstring"
    function = value.__init__ if inspect.isclass(value) else value
    if inspect.isclass(value) and function is object.__init__:
        return
    hints = typing.get_type_hints(function, vars(sys.modules[value.__module__]))
    wanted = set(inspect.signature(value).parameters) | {"return"}
    assert wanted <= set(hints), f"{name} needs hints for {wanted - set(hints)}"
