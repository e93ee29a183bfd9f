"""Metrics against scikit-learn and plain loops; running models leaves no trace."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pycompress.validation.metrics import (
    accuracy,
    auc,
    f1_macro,
    item_mean,
    log_likelihood,
    neg_mae,
    neg_mse,
    per_item_of,
    top_k,
)
from pycompress.validation.predictions import (
    Flips,
    class_indices,
    evaluating,
    expected_calibration_error,
    flips,
    predict,
    predict_each,
    predicted_classes,
)


@pytest.fixture
def logits():
    return torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets(logits):
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    return (logits + noise).argmax(dim=1)


def test_classification_metrics_are_scikit_learns(logits, targets):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    predicted, truth = logits.argmax(dim=1).numpy(), targets.numpy()
    assert accuracy(logits, targets) == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    assert f1_macro(logits, targets) == pytest.approx(sklearn_metrics.f1_score(truth, predicted, average="macro"))
    assert top_k(2)(logits, targets) == pytest.approx(sklearn_metrics.top_k_accuracy_score(truth, logits.numpy(), k=2))
    probabilities = logits.double().softmax(dim=1).numpy()
    assert log_likelihood(logits, targets) == pytest.approx(-sklearn_metrics.log_loss(truth, probabilities))


def test_f1_counts_classes_that_are_only_predicted_or_only_present():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    outputs = torch.nn.functional.one_hot(torch.tensor([0, 0, 3, 3, 1]), 6).float()
    classes = torch.tensor([0, 0, 0, 5, 1])
    expected = sklearn_metrics.f1_score(classes, outputs.argmax(1), average="macro", zero_division=0)
    assert f1_macro(outputs, classes) == pytest.approx(expected)


def test_auc_with_ties_is_scikit_learns():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, classes = rng.integers(0, 6, 200) / 4, rng.integers(0, 2, 200)
    expected = sklearn_metrics.roc_auc_score(classes, scores)
    one, two = torch.tensor(scores), torch.stack([torch.ones(200), torch.tensor(scores) + 1], dim=1)
    assert auc(one, torch.tensor(classes)) == pytest.approx(expected)
    assert auc(one[:, None], torch.tensor(classes)) == pytest.approx(expected)
    assert auc(two, torch.tensor(classes)) == pytest.approx(expected)


def test_one_logit_is_two_classes():
    logit = torch.tensor([2.0, -1.0, 0.5, -0.1])
    two = torch.stack([torch.zeros(4), logit], dim=1)
    for classes in (torch.tensor([1, 0, 0, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1, 0, 0, 1]).bool()):
        for outputs in (logit, logit[:, None]):
            assert accuracy(outputs, classes) == 0.5
            assert log_likelihood(outputs, classes) == pytest.approx(log_likelihood(two, classes.long()), abs=1e-9)
            assert f1_macro(outputs, classes) == f1_macro(two, classes.long())
            assert expected_calibration_error(outputs, classes) == pytest.approx(
                expected_calibration_error(two, classes.long()), abs=1e-6
            )


def test_item_with_several_targets_counts_once():
    outputs = torch.eye(3).expand(2, 3, 3)  # predicts 0, 1, 2
    classes = torch.tensor([[0, 1, 2], [0, 0, 0]])
    assert per_item_of(accuracy)(outputs, classes).tolist() == pytest.approx([1.0, 1 / 3])
    assert accuracy(outputs, classes) == pytest.approx(2 / 3)


def test_regression_errors():
    outputs, values = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 4.0], [0.0, 4.0]])
    assert neg_mse(outputs, values) == -(4 + 9 + 1) / 4
    assert neg_mae(outputs, values) == -(2 + 3 + 1) / 4
    assert per_item_of(neg_mae)(outputs, values).tolist() == [-1.0, -2.0]


def test_column_of_outputs_is_not_broadcast_against_a_row_of_targets():
    outputs, values = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])
    assert neg_mse(outputs, values) == pytest.approx(-1 / 3)
    with pytest.raises(ValueError, match=r"outputs must have the shape of targets, \(3,\), got \(3, 2\)"):
        neg_mse(torch.zeros(3, 2), values)


@pytest.mark.parametrize("metric", [accuracy, top_k(2), log_likelihood, neg_mse, neg_mae])
def test_metric_is_the_mean_of_its_items(metric, logits, targets):
    reference = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    wanted = reference if metric in (neg_mse, neg_mae) else targets
    values = per_item_of(metric)(logits, wanted)
    assert values.shape == (300,) and values.dtype == torch.float64
    assert metric(logits, wanted) == pytest.approx(float(values.mean()))


def test_own_metric():
    close = item_mean(lambda outputs, targets: (outputs - targets).abs() < 1, fraction=True, name="close")
    assert close.__name__ == "close"
    assert close(torch.tensor([1.0, 5.0]), torch.tensor([1.5, 2.0])) == 0.5


def test_half_precision_outputs_lose_nothing_in_the_mean():
    outputs = torch.zeros(4096, 2, dtype=torch.bfloat16)
    outputs[:1, 0] = 1
    assert accuracy(outputs, torch.zeros(4096, dtype=torch.long)) == 1.0
    assert accuracy(outputs, torch.ones(4096, dtype=torch.long)) == 0.0
    assert neg_mae(outputs, torch.zeros(4096, 2)) == -1 / 8192


def test_calibration_error_by_hand():
    # Bins of width 0.1: two items at confidence ~0.73 (one right), one at ~0.95 (right).
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    first, second = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    expected = (abs(1 - 2 * first) + abs(1 - second)) / 3
    assert expected_calibration_error(logits, torch.tensor([0, 1, 0]), bins=10) == pytest.approx(expected)


def test_flips_by_hand():
    before = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2, 1, 0]), 3).float()
    after = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 0]), 3).float()
    assert flips(before, after, torch.tensor([0, 1, 0, 0, 2, 1])) == Flips(lost=1, gained=1, changed=1)


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (torch.zeros(3, 4), torch.tensor([0, 1, 4]), ValueError, "targets must be class indices from 0 to 3, got 4"),
        (torch.zeros(3, 4), torch.tensor([0, -100, 1]), ValueError, "from 0 to 3, got -100"),
        (torch.zeros(3), torch.tensor([0, 2, 1]), ValueError, "from 0 to 1, got 2"),
        (
            torch.zeros(3, 4),
            torch.tensor([0.0, 1.0, 2.0]),
            TypeError,
            "targets must be class indices, got torch.float32",
        ),
        (torch.zeros(3), torch.tensor([0.3, 1.0, 0.0]), TypeError, "targets must be class indices"),
        (torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.long), ValueError, r"got \(3, 4\) for \(3, 4\)"),
        (torch.zeros(3, 4), torch.zeros(4, dtype=torch.long), ValueError, r"got \(3, 4\) for \(4,\)"),
        (torch.zeros(3, 4).long(), torch.zeros(3).long(), TypeError, "outputs must be floating logits"),
        (np.zeros((3, 4)), torch.zeros(3).long(), TypeError, "outputs must be a torch tensor, got ndarray"),
    ],
)
@pytest.mark.parametrize("function", [class_indices, predicted_classes, accuracy, f1_macro, log_likelihood])
def test_targets_that_do_not_fit(function, outputs, targets, error, message):
    with pytest.raises(error, match=message):
        function(outputs, targets)


def test_wrong_arguments_of_metrics():
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(0)
    with pytest.raises(TypeError, match="k must be an int"):
        top_k(1.5)
    with pytest.raises(ValueError, match="more than 3 classes"):
        top_k(3)(torch.zeros(2, 3), torch.zeros(2).long())
    with pytest.raises(ValueError, match="both classes for auc, got 0 ones and 2 zeros"):
        auc(torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="logits of 2 classes"):
        auc(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        expected_calibration_error(torch.zeros(2, 2), torch.tensor([0, 1]), bins=0)


class Mixed(nn.Module):
    """Behaves differently in train mode, and part of it is frozen in eval mode by its owner."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.frozen(self.norm(x)))


def test_predict_leaves_no_trace():
    model = Mixed().train()
    model.frozen.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(10, 3)
    outputs, targets = predict(model, (inputs, torch.arange(10)), batch_size=3)
    assert torch.equal(outputs, model.eval()(inputs).detach()) and not outputs.requires_grad
    assert torch.equal(targets, torch.arange(10))
    model.train()
    model.frozen.eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training and model.norm.training and not model.frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_models_see_the_same_items_in_random_order():
    data = TensorDataset(torch.randn(50, 3), torch.arange(50))
    loader = DataLoader(data, batch_size=7, shuffle=True)
    outputs, order = predict_each({"a": nn.Identity(), "b": nn.Identity()}, loader)
    assert torch.equal(outputs["a"], outputs["b"])
    assert torch.equal(outputs["a"], data.tensors[0][order]) and sorted(order.tolist()) == list(range(50))


def test_predict_takes_dicts_and_tuples():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    one = torch.arange(4.0)
    for inputs in ({"a": one, "b": one}, (one, one)):
        outputs, _ = predict(Sum(), (inputs, one), batch_size=3)
        assert torch.equal(outputs, 2 * one)


class Broken(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


def nan_in_last_row(x):
    x = x.clone()
    x[-1, 0] = math.nan
    return x


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (nan_in_last_row, ValueError, "compressed must return numbers, got NaN for 1 of 4 items"),
        (lambda x: (x, x), TypeError, "compressed must return one tensor, got tuple"),
        (lambda x: x.sum(), ValueError, r"compressed must return one row for each of 4 items, got shape \(\)"),
        (lambda x: x[:2], ValueError, "compressed must return one row for each of 4 items"),
        (lambda x: x[:, :1], ValueError, r"outputs of one shape for data, got original \(4, 2\), compressed \(4, 1\)"),
    ],
)
def test_wrong_outputs_name_the_model(change, error, message):
    models = {"original": nn.Identity(), "compressed": Broken(change)}
    with pytest.raises(error, match=message):
        predict_each(models, (torch.zeros(4, 2), torch.zeros(4)))


def test_predict_wants_a_module():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        predict(lambda x: x, (torch.zeros(4, 2), torch.zeros(4)))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predict(nn.Identity(), (torch.zeros(4, 2), torch.zeros(4)), batch_size=0)
