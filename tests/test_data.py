import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pycompress import data


class Squares(Dataset):
    """Map-style, with Python numbers and NumPy rows as a user writes it."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return np.full(3, index, np.float32), index * index


class DuckSquares:
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.full((3,), float(index)), index * index


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), 0


INPUTS = torch.arange(7.0)[:, None].expand(7, 3).clone()
TARGETS = torch.arange(7) ** 2
FORMS = {
    "tensors": (INPUTS, TARGETS),
    "arrays": (INPUTS.numpy(), TARGETS.numpy()),
    "uint8 targets": (INPUTS, TARGETS.to(torch.uint8)),
    "tensor dataset": TensorDataset(INPUTS, TARGETS),
    "subset of tensors": Subset(TensorDataset(INPUTS.repeat(2, 1), TARGETS.repeat(2)), range(7, 14)),
    "dataset": Squares(),
    "subset": Subset(Squares(), range(7)),
    "no base class": DuckSquares(),
    "loader": DataLoader(Squares(), batch_size=3),
    "list of batches": [(INPUTS[:4], TARGETS[:4]), (INPUTS[4:].numpy(), TARGETS[4:].numpy())],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_gives_the_same_items(form):
    data.check(form, "train", finite=True)
    inputs, targets = data.gather(form)
    assert torch.equal(inputs, INPUTS) and torch.equal(targets, TARGETS)
    assert data.size(form) == 7
    picked = data.take(form, [5, 2])
    assert torch.equal(picked[0], INPUTS[[5, 2]]) and torch.equal(picked[1], TARGETS[[5, 2]])
    assert torch.equal(data.first_inputs(form, 5), INPUTS[:5])
    assert torch.equal(data.first_inputs(form, 50), INPUTS)
    parts = list(data.batches(form, 3))
    assert torch.equal(torch.cat([part[0] for part in parts]), INPUTS)
    assert all(part[1].dtype == torch.int64 for part in parts)


@pytest.mark.parametrize("form", ["tensors", "dataset"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 100])
def test_shuffled_batches_hold_each_item_once_and_none_is_alone(form, batch_size):
    parts = list(data.batches(FORMS[form], batch_size, shuffle=True, generator=torch.Generator().manual_seed(1)))
    again = list(data.batches(FORMS[form], batch_size, shuffle=True, generator=torch.Generator().manual_seed(1)))
    targets = torch.cat([part[1] for part in parts])
    assert torch.equal(targets.sort().values, TARGETS) and not torch.equal(targets, TARGETS)
    assert torch.equal(targets, torch.cat([part[1] for part in again]))
    assert all(torch.equal(part[0][:, 0] ** 2, part[1].float()) for part in parts)
    if batch_size > 1:
        assert min(len(part[1]) for part in parts) > 1


def test_inputs_may_be_a_tuple_or_a_dict():
    pair = ((INPUTS, INPUTS.numpy()), TARGETS)
    (first, second), targets = next(data.batches(pair, 2))
    assert first.shape == second.shape == (2, 3) and targets.tolist() == [0, 1]
    named = {"ids": INPUTS, "mask": INPUTS > 0}, {"label": TARGETS}
    inputs, labels = data.take(named, [3])
    assert inputs["mask"].tolist() == [[True] * 3] and labels["label"].tolist() == [9]
    assert data.gather([named, named])[0]["ids"].shape == (14, 3)
    assert data.gather([pair, pair])[0][1].shape == (14, 3)
    loader = DataLoader([((row, row), 0) for row in INPUTS], batch_size=2)
    assert isinstance(data.first_inputs(loader, 3), tuple)


def test_forward_unpacks():
    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return a - b

    assert data.forward(Sum(), (torch.tensor(3), torch.tensor(2))) == 1
    assert data.forward(Sum(), {"b": torch.tensor(3), "a": torch.tensor(2)}) == -1


def test_unusual_arrays_are_read_right():
    backwards = INPUTS.numpy()[::-1]
    frozen = INPUTS.numpy().copy()
    frozen.flags.writeable = False
    for array, expected in (
        (backwards, INPUTS.flip(0)),
        (frozen, INPUTS),
        (INPUTS.numpy().astype(">f4"), INPUTS),
        (INPUTS.double(), INPUTS.double()),
    ):
        inputs, _ = data.gather((array, TARGETS))
        assert torch.equal(inputs, expected) and inputs.dtype == expected.dtype
    inputs, _ = data.gather((INPUTS.clone().requires_grad_(), TARGETS))
    assert not inputs.requires_grad


def test_floating_and_bool_targets_keep_their_type():
    assert data.gather((INPUTS, INPUTS.numpy()))[1].dtype == torch.float32
    assert data.gather((INPUTS, TARGETS > 3))[1].dtype == torch.bool


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (iter([(INPUTS, TARGETS)]), "one-shot iterator"),
        (((INPUTS, TARGETS) for _ in range(2)), "one-shot iterator generator"),
        (None, "NoneType"),
        (INPUTS, "Tensor"),
        (INPUTS.numpy(), "ndarray"),
        ({"x": INPUTS}, "dict"),
        ("digits", "str"),
        ((INPUTS, INPUTS, TARGETS), "tuple of 3"),
        ((INPUTS, None), "targets must be a NumPy array or a torch tensor, got NoneType"),
        ((INPUTS.numpy().astype(object), TARGETS), "inputs must hold numbers, got dtype object"),
        ((INPUTS, np.array(["a"] * 7)), "targets must hold numbers"),
        ([INPUTS, TARGETS], "batch 0"),
        ([(INPUTS, TARGETS), (INPUTS,)], "tuple of 1 as batch 1"),
        (Stream(), "wrap it in a DataLoader"),
        (Subset(Stream(), [0]), "wrap it in a DataLoader"),
        (TensorDataset(INPUTS), "tuple of 1 as item 0"),
    ],
)
def test_wrong_kinds_are_type_errors(bad, words):
    with pytest.raises(TypeError, match=words) as error:
        data.check(bad, "train")
    assert str(error.value).startswith("train ")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((INPUTS, TARGETS[:6]), "got 7 inputs and 6 targets"),
        (((INPUTS, INPUTS[:5]), TARGETS), "got 5 and 7 inputs and 7 targets"),
        (((), TARGETS), "got no inputs"),
        ([(INPUTS, TARGETS), (INPUTS, TARGETS[:6])], "in batch 1"),
        ((INPUTS[:0], TARGETS[:0]), "must not be empty"),
        ([], "must not be empty"),
        (Subset(TensorDataset(INPUTS, TARGETS), []), "must not be empty"),
        (Subset(Squares(), []), "must not be empty"),
        ((torch.tensor(1.0), TARGETS), "one item per row"),
        ((INPUTS.to("meta"), TARGETS), "meta"),
    ],
)
def test_wrong_values_are_value_errors(bad, words):
    with pytest.raises(ValueError, match=words) as error:
        data.check(bad, "train")
    assert str(error.value).startswith("train ")


def test_data_read_twice_that_can_be_read_once_is_an_error():
    class Once:
        def __init__(self):
            self.rows = iter([(INPUTS, TARGETS)])

        def __iter__(self):
            return self.rows

    once = Once()
    assert len(list(data.batches(once, 2))) == 1
    with pytest.raises(ValueError, match="read only once"):
        list(data.batches(once, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrap", [lambda x: (x, TARGETS), lambda x: DataLoader(TensorDataset(x, TARGETS), 2)])
def test_infinite_inputs_are_errors_where_asked(value, wrap):
    inputs = INPUTS.clone()
    inputs[5, 1] = value
    data.check(wrap(inputs), "calibration")
    with pytest.raises(ValueError, match="calibration inputs must be finite, got 1 NaN"):
        data.check(wrap(inputs), "calibration", finite=True)


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_batch_size_is_checked_at_the_call(batch_size, error):
    with pytest.raises(error, match="batch_size"):
        data.batches(FORMS["tensors"], batch_size)


def test_no_indices_and_indices_outside_are_errors():
    with pytest.raises(ValueError, match="indices"):
        data.take(FORMS["dataset"], [])
    with pytest.raises(IndexError):
        data.take(FORMS["tensors"], [7])
