import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pycompress import masks, training
from pycompress.schedules import cosine, plateau, step_schedule
from pycompress.training import fit_, reestimate_batch_norm_


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On a busy machine the threads of such small models wait for each other, a hundred times longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(items=240, features=8, classes=3, seed=0):
    """Three clouds of points that a linear model separates."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99)) * 2
    targets = torch.randint(classes, (items,), generator=generator)
    return centres[targets] + torch.randn(items, features, generator=generator), targets


def network(seed=0, dropout=0.3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
        ).eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Items(Dataset):
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index], int(self.targets[index])


@pytest.mark.parametrize(
    "optimizer",
    [training.adam, torch.optim.AdamW, functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)],
)
def test_training_learns_and_gives_the_modes_back(optimizer):
    model = network()
    model[3].train()
    history = fit_(model, blobs(), epochs=15, lr=0.02, optimizer=optimizer)
    assert [module.training for module in model.modules()] == [False, False, False, False, True, False]
    assert history.train_loss[-1] < 0.3 * history.train_loss[0] and len(history.train_loss) == len(history.lr) == 15
    assert history.validation_loss == () and history.best_epoch is None and history.stopped_epoch is None
    inputs, targets = blobs(seed=1)
    assert (model.eval()(inputs).argmax(1) == targets).float().mean() > 0.9
    assert all(parameter.grad is None for parameter in model.parameters())


def test_equal_seeds_give_equal_models_and_the_callers_random_state_stays():
    models = [network() for _ in range(3)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    histories = [fit_(model, blobs(), epochs=2, seed=seed) for model, seed in zip(models, (7, 7, 8), strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(state(models[0]), state(models[1])) and histories[0] == histories[1]
    assert not same(state(models[0]), state(models[2]))


def test_seeds_hold_for_a_shuffling_loader_too():
    models = [network() for _ in range(2)]
    for model in models:
        torch.rand(3)
        fit_(model, DataLoader(TensorDataset(*blobs()), batch_size=32, shuffle=True), epochs=2, seed=3)
    assert same(state(models[0]), state(models[1]))


def test_dropout_drops_in_training_and_not_in_validation():
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.modes = nn.Linear(8, 3), []

        def forward(self, x):
            self.modes.append((self.training, len(x), torch.is_grad_enabled()))
            return self.layer(x)

    model = Spy()
    with torch.no_grad():
        fit_(model, blobs(100), epochs=2, batch_size=40, validation_fraction=0.1)
    assert model.modes == [(True, 40, True), (True, 40, True), (True, 10, True), (False, 10, False)] * 2


@pytest.mark.parametrize("form", ["dataset", "list", "loader", "arrays", "dict"])
def test_every_form_of_data(form):
    inputs, targets = blobs(100)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

    data = {
        "dataset": Items(inputs, targets),
        "list": [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])],
        "loader": DataLoader(Items(inputs, targets), batch_size=25),
        "arrays": (inputs.numpy(), targets.numpy().astype("uint8")),
        "dict": ({"x": inputs}, targets),
    }[form]
    model = Named()
    fraction = 0.0 if form == "loader" else 0.2
    history = fit_(model, data, epochs=8, lr=0.02, validation_fraction=fraction)
    assert history.train_loss[-1] < history.train_loss[0]
    assert len(history.validation_loss) == (0 if form == "loader" else 8)


def test_a_batch_of_one_left_over_does_not_stop_batch_norm():
    fit_(network(), blobs(65), epochs=1, batch_size=64)


def test_early_stopping_restores_the_best_weights():
    inputs, _ = blobs(80)
    targets = torch.randint(3, (80,), generator=torch.Generator().manual_seed(5))  # noise: only overfitting is left
    model = network(dropout=0.0)
    history = fit_(model, (inputs, targets), epochs=200, lr=0.05, validation_fraction=0.25, patience=4)
    assert history.stopped_epoch == history.best_epoch + 4 == len(history.validation_loss) < 200
    assert history.validation_loss[history.best_epoch - 1] == min(history.validation_loss)
    again = network(dropout=0.0)
    shorter = fit_(again, (inputs, targets), epochs=history.best_epoch, lr=0.05, validation_fraction=0.25)
    assert shorter.validation_loss == history.validation_loss[: history.best_epoch]
    assert same(state(model), state(again))


def test_the_held_out_part_is_never_trained_on():
    inputs = torch.eye(50)
    model = nn.Linear(50, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = functools.partial(torch.optim.SGD, momentum=0.0)
    fit_(model, (inputs, torch.arange(50) % 2), epochs=1, lr=1.0, optimizer=optimizer, validation_fraction=0.3)
    assert (model.weight.abs().sum(0) == 0).sum() == 15  # each item moves its own column only


def rates(schedule, epochs, lr=1.0):
    model = nn.Linear(2, 1)
    optimizer = functools.partial(torch.optim.SGD, momentum=0.0)
    data = (torch.zeros(2, 2), torch.tensor([[1.0], [-1.0]]))
    return fit_(
        model, data, epochs=epochs, loss=nn.functional.l1_loss, lr=lr, optimizer=optimizer, schedule=schedule
    ).lr


def test_schedules():
    assert rates(None, 3) == (1.0, 1.0, 1.0)
    assert rates(step_schedule(every=2, factor=0.5), 5) == pytest.approx((1, 1, 0.5, 0.5, 0.25))
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates(cosine(final=0.2), 4) == pytest.approx(expected)
    assert rates(cosine(warmup=3), 5, lr=2.0) == pytest.approx((0.5, 1.0, 1.5, 2.0, 1.0))
    own = rates(lambda optimizer, epochs: torch.optim.lr_scheduler.ExponentialLR(optimizer, 1 / epochs), 2)
    assert own == (1.0, 0.5)
    falling = rates(plateau(patience=0, factor=0.1), 12)  # the median of +1 and -1 cannot be improved for long
    assert falling[-1] < 0.01 and list(falling) == sorted(falling, reverse=True)


def test_plateau_follows_the_validation_loss():
    inputs, _ = blobs(80)
    targets = torch.randint(3, (80,), generator=torch.Generator().manual_seed(5))
    history = fit_(
        network(dropout=0.0), (inputs, targets), epochs=40, lr=0.02, validation_fraction=0.25, schedule=plateau(1)
    )
    assert history.train_loss[-1] < history.train_loss[10] and history.lr[-1] < 0.02


def test_gradients_are_clipped():
    weights = []
    for clip_norm in (None, 0.5):
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        data = (torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]))
        fit_(model, data, epochs=1, lr=1.0, loss=nn.functional.mse_loss, optimizer=torch.optim.SGD, clip_norm=clip_norm)
        weights.append(model.weight.detach().norm().item())
    assert weights == pytest.approx([100.0, 0.5])


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    frozen, head = model[0].weight.clone(), model[4].weight.clone()
    fit_(model, blobs(), epochs=1)
    assert torch.equal(model[0].weight, frozen) and not torch.equal(model[4].weight, head)
    assert model[0].weight.grad is None


def test_pruned_weights_stay_pruned():
    model = network()
    mask = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    masks.attach_(model[0], "weight", mask)
    before = state(model)
    fit_(model, blobs(), epochs=3, validation_fraction=0.2, patience=1)
    assert torch.equal(model[0].weight != 0, mask) and not same(state(model), before)
    before = state(model)
    with pytest.raises(ValueError, match="finite"):
        fit_(model, blobs(), epochs=3, loss=explode(after=2))
    assert same(state(model), before) and torch.equal(model[0].weight != 0, mask)


def test_label_smoothing_by_the_loss():
    loss = functools.partial(nn.functional.cross_entropy, label_smoothing=0.3)
    sharp, smooth = network(dropout=0.0), network(dropout=0.0)
    fit_(sharp, blobs(), epochs=20, lr=0.02)
    fit_(smooth, blobs(), epochs=20, lr=0.02, loss=loss)
    inputs, _ = blobs(seed=2)
    assert smooth(inputs).softmax(1).max(1).values.mean() < sharp(inputs).softmax(1).max(1).values.mean()


def explode(after):
    calls = iter(range(10**6))
    return lambda outputs, targets: (
        nn.functional.cross_entropy(outputs, targets) * (float("nan") if next(calls) >= after else 1.0)
    )


def interrupt(after):
    calls = iter(range(10**6))

    def loss(outputs, targets):
        if next(calls) >= after:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)

    return loss


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": explode(after=10)}, ValueError, "loss must stay finite, got nan in epoch 3 of 5"),
        ({"loss": explode(after=3), "validation_fraction": 0.2}, ValueError, "validation after epoch 1"),
        ({"loss": lambda outputs, targets: outputs.square().mean() / 1e-30, "lr": 1e30}, ValueError, "finite"),
        ({"loss": interrupt(after=6)}, KeyboardInterrupt, None),
        ({"loss": lambda outputs, targets: outputs}, TypeError, "loss must return a 0-D floating tensor, got .64, 3."),
        ({"loss": lambda outputs, targets: 0.5}, TypeError, "got float"),
        ({"loss": lambda outputs, targets: torch.tensor(0.5)}, ValueError, "loss must depend on parameters"),
        ({"loss": lambda outputs, targets: outputs @ outputs}, ValueError, r"loss must take .* RuntimeError: .*shapes"),
        ({"schedule": cosine(warmup=5)}, ValueError, "warmup must be less than the 5 epochs"),
        ({"schedule": lambda optimizer, epochs: 1 / 0}, ZeroDivisionError, None),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "closure"),
    ],
)
def test_a_training_that_fails_loses_nothing(options, error, words):
    model = network()
    model[3].train()
    gradient = torch.ones_like(model[0].weight)
    model[0].weight.grad = gradient
    before, random = state(model), torch.get_rng_state()
    with pytest.raises(error, match=words):
        fit_(model, blobs(), epochs=5, **options)
    assert same(state(model), before) and torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [False, False, False, True, False]
    assert model[0].weight.grad is gradient and torch.equal(gradient, torch.ones_like(gradient))
    assert model[4].weight.grad is None


def test_weights_that_overflow_in_the_last_step_are_found():
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="weights"):
        fit_(model, blobs(64), epochs=1, lr=3e38, optimizer=torch.optim.SGD, loss=lambda o, t: 1e20 * o.square().mean())
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("epochs", 2.0, TypeError),
        ("epochs", True, TypeError),
        ("loss", None, TypeError),
        ("lr", 0.0, ValueError),
        ("lr", float("nan"), ValueError),
        ("lr", float("inf"), ValueError),
        ("lr", "0.1", TypeError),
        ("optimizer", "adam", TypeError),
        ("batch_size", 0, ValueError),
        ("batch_size", 1.5, TypeError),
        ("schedule", "cosine", TypeError),
        ("clip_norm", 0, ValueError),
        ("clip_norm", float("nan"), ValueError),
        ("validation_fraction", 1.0, ValueError),
        ("validation_fraction", -0.1, ValueError),
        ("patience", 3, ValueError),
        ("seed", -1, ValueError),
        ("seed", None, TypeError),
    ],
)
def test_wrong_arguments(argument, value, error):
    model = network()
    before = state(model)
    with pytest.raises(error, match=argument):
        fit_(model, blobs(), **{"epochs": 1, argument: value})
    assert same(state(model), before)


def test_wrong_model_or_data():
    with pytest.raises(TypeError, match="model"):
        fit_(None, blobs(), epochs=1)
    with pytest.raises(ValueError, match="require grad"):
        fit_(network().requires_grad_(False), blobs(), epochs=1)
    with pytest.raises(TypeError, match="data must be a pair"):
        fit_(network(), iter([blobs()]), epochs=1)
    with pytest.raises(ValueError, match="validation_fraction must be 0 for data that comes in batches"):
        fit_(network(), DataLoader(TensorDataset(*blobs())), epochs=1, validation_fraction=0.1)
    with pytest.raises(ValueError, match="fewer than 2 items"):
        fit_(network(), blobs(1), epochs=1, validation_fraction=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: step_schedule(every=0), "every"),
        (lambda: step_schedule(every=1, factor=0.0), "factor"),
        (lambda: cosine(warmup=-1), "warmup"),
        (lambda: cosine(final=1.5), "final"),
        (lambda: plateau(patience=-1), "patience"),
        (lambda: plateau(factor=1.0), "factor"),
    ],
)
def test_wrong_schedules(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_trained_model_can_be_copied_and_pickled():
    model = network()
    fit_(model, blobs(), epochs=1, schedule=cosine())
    assert same(state(pickle.loads(pickle.dumps(model))), state(copy.deepcopy(model)))


def test_batch_norm_statistics_are_those_of_the_data():
    inputs = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(2)
    model[3].train()
    weights = {name: value for name, value in state(model).items() if "running" not in name and "num" not in name}
    assert reestimate_batch_norm_(model, (inputs, torch.zeros(2000)), batch_size=100) == 1
    hidden = model[0](inputs)
    assert torch.allclose(model[1].running_mean, hidden.mean(0), atol=1e-4)
    assert torch.allclose(model[1].running_var, hidden.var(0), rtol=0.02)
    assert model[1].momentum == 0.1 and [module.training for module in model] == [False, False, False, True, False]
    assert same({name: state(model)[name] for name in weights}, weights)


def test_batch_norm_does_not_depend_on_the_order_of_the_data():
    """Items sorted by class would make the variance inside a batch too small."""
    inputs = torch.cat([torch.randn(500, 8) - 5, torch.randn(500, 8) + 5])
    model = network()
    reestimate_batch_norm_(model, (inputs, torch.zeros(1000)))
    assert torch.allclose(model[1].running_var, model[0](inputs).var(0), rtol=0.1)


def test_batch_norm_that_fails_stays():
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="data inputs must be finite"):
        reestimate_batch_norm_(model, (torch.full((4, 8), float("nan")), torch.zeros(4)))
    with pytest.raises(ValueError, match="finite statistics"):
        reestimate_batch_norm_(model, DataLoader(TensorDataset(torch.full((4, 8), 3e38), torch.zeros(4)), 2))
    with pytest.raises(ValueError, match=r"data inputs must fit the model, got \(4, 7\) float32"):
        reestimate_batch_norm_(model, [(torch.zeros(4, 8), torch.zeros(4)), (torch.zeros(4, 7), torch.zeros(4))])
    with pytest.raises(ValueError, match="batch-norm layers"):
        reestimate_batch_norm_(nn.Linear(8, 3), blobs())
    assert same(state(model), before) and model[1].momentum == 0.1 and not model[1].training
