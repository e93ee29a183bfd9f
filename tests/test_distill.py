import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pycompress.distill import distill_


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On a busy machine the threads of such small models wait for each other, a hundred times longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(4, (96,), generator=torch.Generator().manual_seed(1))
VALUES = torch.randn(96, 4, generator=torch.Generator().manual_seed(2))


def network(seed, width=12, outputs=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, outputs)
        )


def linear(seed, outputs=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, outputs)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def hinton(student, teacher, targets, temperature, alpha):
    """The formula in NumPy, float64."""

    def softmax(logits):
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    s, t = (model(INPUTS).detach().numpy().astype(np.float64) for model in (student, teacher))
    p, q = softmax(t / temperature), softmax(s / temperature)
    divergence = (p * (np.log(p) - np.log(q))).sum(1).mean()
    entropy = -np.log(softmax(s)[np.arange(len(s)), targets.numpy()]).mean()
    return alpha * temperature**2 * divergence + (1 - alpha) * entropy


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_the_loss_is_hintons(temperature, alpha):
    student, teacher = linear(0), linear(1)
    expected = hinton(student, teacher, CLASSES, temperature, alpha)
    history = distill_(
        student, teacher, (INPUTS, CLASSES), epochs=1, temperature=temperature, alpha=alpha, batch_size=96
    )
    assert history.train_loss[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_floating_targets_are_a_regression(alpha):
    student, teacher = linear(0), linear(1)
    s, t = student(INPUTS).detach(), teacher(INPUTS).detach()
    expected = alpha * (s - t).square().mean() + (1 - alpha) * (s - VALUES).square().mean()
    history = distill_(student, teacher, (INPUTS, VALUES), epochs=1, alpha=alpha, batch_size=96)
    assert history.train_loss[0] == pytest.approx(expected.item(), rel=1e-5)


def test_further_dimensions_are_further_items():
    """[N, C, d] logits weigh every position like an item, as cross_entropy does."""
    student, teacher = nn.Conv1d(6, 4, 1), nn.Conv1d(6, 4, 1)
    flat_student, flat_teacher = linear(0), linear(0)
    for conv, flat in ((student, flat_student), (teacher, flat_teacher)):
        flat.weight.data, flat.bias.data = conv.weight.data[:, :, 0].clone(), conv.bias.data.clone()
    folded = INPUTS.reshape(24, 4, 6).transpose(1, 2)
    history = distill_(student, teacher, (folded, CLASSES.reshape(24, 4)), epochs=1, batch_size=24)
    flat = distill_(flat_student, flat_teacher, (INPUTS, CLASSES), epochs=1, batch_size=96)
    assert history.train_loss == pytest.approx(flat.train_loss, rel=1e-5)


def test_a_student_learns_from_the_teacher_alone():
    teacher, student = network(1, width=32).eval(), network(2).eval()
    with torch.no_grad():
        teacher[4].weight.mul_(10)
    wrong = torch.zeros(96, dtype=torch.int64)
    agree = (teacher(INPUTS).argmax(1) == student(INPUTS).argmax(1)).float().mean()
    student[3].p = 0.0
    history = distill_(student, teacher, (INPUTS, wrong), epochs=60, alpha=1.0, lr=0.01, batch_size=32)
    assert history.train_loss[-1] < 0.2 * history.train_loss[0]
    assert (teacher(INPUTS).argmax(1) == student(INPUTS).argmax(1)).float().mean() > max(2 * agree, 0.8)


FORMS = {
    "pair": (INPUTS, CLASSES),
    "tensor dataset": TensorDataset(INPUTS, CLASSES),
    "list": [(INPUTS[:48], CLASSES[:48]), (INPUTS[48:], CLASSES[48:])],
    "loader": DataLoader(TensorDataset(INPUTS, CLASSES), batch_size=48, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_stays_bit_identical(form):
    teacher, student = network(1), network(2).eval()
    teacher.train()
    teacher[3].eval()
    teacher[4].weight.grad = torch.ones(4, 12)
    before = state(teacher)
    distill_(student, teacher, FORMS[form], epochs=3)
    assert same(state(teacher), before)
    assert [module.training for module in teacher] == [True, True, True, False, True]
    assert torch.equal(teacher[4].weight.grad, torch.ones(4, 12)) and teacher[0].weight.grad is None
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in student.modules())


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.rows = network(1), 0

    def forward(self, x):
        assert not self.net.training and not torch.is_grad_enabled()
        self.rows += len(x)
        return self.net(x)


@pytest.mark.parametrize(("form", "rows"), [("pair", 96), ("tensor dataset", 96), ("list", 96 * 5), ("loader", 96 * 5)])
def test_the_teacher_sees_what_is_in_memory_once(form, rows):
    teacher = Counting()
    distill_(network(2), teacher, FORMS[form], epochs=5)
    assert teacher.rows == rows


def test_remembered_answers_belong_to_their_items():
    """Shuffled, in small batches and with a part held out, the pair is learned as from a teacher that is asked anew."""

    class Items(Dataset):
        def __len__(self):
            return 96

        def __getitem__(self, index):
            return INPUTS[index], int(CLASSES[index])

    options = {"epochs": 3, "batch_size": 7, "validation_fraction": 0.2, "lr": 0.01}
    students = [linear(2), linear(2)]
    histories = [
        distill_(student, network(1), data, **options)
        for student, data in zip(students, ((INPUTS, CLASSES), Items()), strict=True)
    ]
    assert torch.allclose(students[0].weight, students[1].weight, atol=1e-5)
    assert histories[0].validation_loss == pytest.approx(histories[1].validation_loss, rel=1e-4)


def test_seeds():
    students = [network(2) for _ in range(3)]
    for student, seed in zip(students, (5, 5, 6), strict=True):
        torch.rand(2)
        distill_(student, network(1), (INPUTS, CLASSES), epochs=2, seed=seed)
    assert same(state(students[0]), state(students[1])) and not same(state(students[0]), state(students[2]))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = linear(1)

    def forward(self, x):
        return self.net(x), self.net(x)


class Infinite(nn.Module):
    def forward(self, x):
        return x / 0


def broken():
    teacher = linear(1)
    with torch.no_grad():
        teacher.weight[0, 0] = float("nan")
    return teacher


@pytest.mark.parametrize("form", ["pair", "loader"])
@pytest.mark.parametrize(
    ("teacher", "targets", "error", "words"),
    [
        (broken(), CLASSES, ValueError, "teacher must have finite weights, got weight: 1 NaN"),
        (Infinite(), CLASSES, ValueError, "teacher must return finite outputs"),
        (Two(), CLASSES, TypeError, "teacher must return one floating tensor, got tuple"),
        (linear(1, outputs=5), CLASSES, ValueError, r"teacher's shape \(48, 5\), got \(48, 4\)"),
        (linear(1), VALUES[:, 0], ValueError, r"outputs' shape \(48, 4\), got \(48,\)"),
        (linear(1), CLASSES > 1, TypeError, "class indices or of real numbers, got torch.bool"),
        (linear(1), CLASSES + 4, ValueError, "loss must take .* targets of data, .* out of bounds"),
    ],
)
def test_a_distillation_that_fails_loses_nothing(form, teacher, targets, error, words):
    student = network(2)
    student[3].eval()
    before = state(student)
    data = (INPUTS, targets) if form == "pair" else DataLoader(TensorDataset(INPUTS, targets), batch_size=48)
    with pytest.raises(error, match=words):
        distill_(student, teacher, data, epochs=2, batch_size=48)
    assert same(state(student), before) and [m.training for m in student] == [True, True, True, False, True]
    assert teacher.training


def test_a_teacher_that_training_would_change_is_refused():
    student = network(2)
    with pytest.raises(ValueError, match=r"teacher must share nothing .* got itself, 0, 1"):
        distill_(student, student, (INPUTS, CLASSES), epochs=1)
    teacher = copy.deepcopy(student)
    teacher[4].weight = student[4].weight
    with pytest.raises(ValueError, match=r"got 4\.weight$"):
        distill_(student, teacher, (INPUTS, CLASSES), epochs=1)
    student[4].weight.requires_grad_(False)
    before = state(teacher)
    distill_(student, teacher, (INPUTS, CLASSES), epochs=1)
    assert same(state(teacher), before)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("student", None, TypeError),
        ("teacher", "resnet", TypeError),
        ("data", iter([(INPUTS, CLASSES)]), TypeError),
        ("data", (INPUTS, CLASSES[:5]), ValueError),
        ("epochs", 0, ValueError),
        ("temperature", 0.0, ValueError),
        ("temperature", float("inf"), ValueError),
        ("temperature", None, TypeError),
        ("alpha", 1.1, ValueError),
        ("alpha", float("nan"), ValueError),
        ("lr", -1.0, ValueError),
        ("patience", 2, ValueError),
    ],
)
def test_wrong_arguments_are_found_before_the_teacher_runs(argument, value, error):
    student, teacher = network(2), Counting()
    before = state(student)
    arguments = {"student": student, "teacher": teacher, "data": (INPUTS, CLASSES), "epochs": 1, argument: value}
    with pytest.raises(error, match=argument):
        distill_(**arguments)
    assert same(state(student), before) and teacher.rows == 0
