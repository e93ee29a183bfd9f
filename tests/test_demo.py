"""The demo, with fewer folds and epochs: what it measures is what it says. `pycompress demo` is the full check."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress.demo import data, run

EPOCHS = {"train": 4, "compress": 2}


def shortened(recipe):
    options = {part: getattr(recipe, part) | {"epochs": epochs} for part, epochs in EPOCHS.items()}
    return dataclasses.replace(recipe, **options)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The report of one short demo, the folder it saved to, and how its parts were called."""
    folder, calls = tmp_path_factory.mktemp("demo"), []
    patch = pytest.MonkeyPatch()
    patch.setattr(run, "RECIPES", tuple(map(shortened, run.RECIPES)))
    patch.setattr(run, "FOLDS", 2)

    def record(name):
        function = getattr(run, name)

        def call(*arguments, **named):
            calls.append((name, arguments, named, torch.get_num_threads()))
            return function(*arguments, **named)

        patch.setattr(run, name, call)

    for name in ("make_and_compress", "cross_validate", "validate", "compare_membership"):
        record(name)
    try:
        report = run.run(folder, seed=1, progress=False)
    finally:
        patch.undo()
    return report, folder, calls


def called(demo, name):
    return [(arguments, named) for own, arguments, named, _ in demo[2] if own == name]


def test_two_models_are_measured(demo):
    found = demo[0].to_dict()
    assert [model["name"] for model in found["models"]] == [recipe.name for recipe in run.RECIPES]
    assert demo[0].seconds > 0
    for model in found["models"]:
        assert model["verdict"]["items"] == 1797, "each digit is held out once"
        assert model["external"]["items"] == 382 and model["threads"] == 1
        assert model["compressed"]["bytes"] < model["original"]["bytes"] / 4
        assert model["original"]["accuracy"] > 0.8 and model["compressed"]["accuracy"] > 0.8
        low, high = model["verdict"]["interval"]
        assert low <= model["verdict"]["difference"] <= high
        assert model["verdict"]["margin"] == run.MARGIN and model["reload_equal"] is True
    assert all(threads == 1 for *_, threads in demo[2])


def test_the_whole_recipe_is_repeated_in_every_fold(demo):
    calls = called(demo, "make_and_compress")
    assert len(calls) == 2 * (2 + 1), "in each of two folds, and for the model that is kept"
    for start in (0, 3):
        sizes = [len(arguments[1][1]) for arguments, _ in calls[start : start + 3]]
        assert sizes[0] + sizes[1] == 1797 and sizes[2] == 1415 * 4 // 5


def test_members_others_and_external_digits_are_apart(demo):
    for (original, compressed, members, others), _ in called(demo, "compare_membership"):
        assert len(members[1]) + len(others[1]) == 1415
        rows = torch.cat([members[0], others[0]]).flatten(1)
        assert sorted(map(tuple, rows.tolist())) == sorted(
            map(tuple, data.external_split()[0][0].flatten(1).tolist())
        ), "a permutation of the first part"
        assert isinstance(original, nn.Module) and isinstance(compressed, nn.Module)
    for (_, _, external), named in called(demo, "validate"):
        assert torch.equal(external[0], data.external_split()[1][0]) and named["margin"] == run.MARGIN
    for (_, everything, folds), named in called(demo, "cross_validate"):
        assert len(everything[1]) == 1797 and folds == 2 and named["seed"] == 1


def test_the_saved_models_are_those_that_were_measured(demo):
    report, folder, _ = demo
    assert sorted(path.name for path in folder.iterdir()) == ["cnn.safetensors", "mlp.safetensors"]
    compressed = [arguments[1] for arguments, _ in called(demo, "compare_membership")]
    images, _ = data.digits()
    for recipe, model, result in zip(run.RECIPES, compressed, report.models, strict=True):
        path = folder / f"{recipe.name[:3].lower()}.safetensors"
        assert path.stat().st_size == result.cost.compressed_bytes
        loaded = pc.load(path, into=recipe.make)
        assert torch.equal(loaded(images), model(images))
        assert pc.explain(loaded) == pc.explain(model)


def test_a_model_that_loads_to_other_bits_is_told(monkeypatch, tmp_path):
    def load(path, into):
        loaded = pc.load(path, into=into)
        loaded.register_forward_hook(lambda module, inputs, output: output + 1e-3)
        return loaded

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "FOLDS", 2)
    monkeypatch.setattr(run, "validate", lambda *arguments, **named: pc.validate(*arguments, **named))
    recipe = dataclasses.replace(run.RECIPES[0], train={"epochs": 1}, compress={"sparsity": 0.5, "epochs": 1})
    images, labels = data.digits()
    monkeypatch.setattr(run, "digits", lambda: (images[:200], labels[:200]))
    result = run._run_one(recipe, tmp_path, seed=0, progress=False)
    assert result.reload_equal is False and result.to_dict()["reload_equal"] is False


def test_equal_seeds_make_equal_models():
    images, labels = data.digits()
    train = images[:256], labels[:256]
    recipe = shortened(run.RECIPES[1])
    states = []
    for seed in (5, 5, 6):
        torch.rand(1)  # the global generator's state does not matter
        original, result = run.make_and_compress(recipe, train, seed)
        assert not original.training and result.verdict is None
        states.append([tensor.clone() for tensor in original.state_dict().values()])
    assert all(map(torch.equal, states[0], states[1])) and not all(map(torch.equal, states[0], states[2]))


def test_nothing_is_left_when_the_work_fails(monkeypatch, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run_one", fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run(tmp_path / "out", progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_recipes_are_those_of_the_readme():
    shapes = [[tuple(p.shape) for p in recipe.make().parameters() if p.ndim > 1] for recipe in run.RECIPES]
    assert shapes == [[(512, 64), (512, 512), (10, 512)], [(16, 1, 3, 3), (32, 16, 3, 3), (64, 128), (10, 64)]]
    assert run.FOLDS == 5 and run.MARGIN == 0.015
    for recipe in copy.copy(run.RECIPES):
        assert {"simplify", "sparsity", "quantize", "epochs"} <= set(recipe.compress)
        rounds = recipe.compress.get("rounds", 1)
        assert recipe.train["epochs"] >= recipe.compress["epochs"] * (rounds + 1), "as many epochs as the compression"
