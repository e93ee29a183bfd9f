"""compress: a copy is compressed step by step, and test data make the verdict alone."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from wrong_values import state

import pycompress as pc
from pycompress import grids, pipeline
from pycompress.artifact import to_bytes
from pycompress.layers import PackedLinear

GENERATOR = torch.Generator().manual_seed(0)
CENTRES = 2 * torch.randn(3, 8, generator=GENERATOR)
LABELS = torch.arange(300) % 3
INPUTS = CENTRES[LABELS] + torch.randn(300, 8, generator=GENERATOR)
TRAIN, TEST = (INPUTS[:200], LABELS[:200]), (INPUTS[200:], LABELS[200:])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nothing_is_timed(monkeypatch):
    """Layers are packed without measuring, and latency is left out: times differ from run to run."""
    monkeypatch.setattr(pipeline, "pack", functools.partial(pc.pack, force=True))
    monkeypatch.setattr(pipeline, "validate", functools.partial(pc.validate, latency=False))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))


@functools.cache
def trained_once():
    made = network()
    pc.fit_(made, TRAIN, epochs=10, lr=0.01, progress=False)
    return made


@pytest.fixture
def model():
    made = copy.deepcopy(trained_once()).train()
    made[1].eval()
    return made


def spy(monkeypatch, name):
    """Record the arguments of each call of a step of compress."""
    calls, step = [], getattr(pipeline, name)

    @functools.wraps(step)
    def record(*arguments, **named):
        calls.append((arguments, named))
        return step(*arguments, **named)

    monkeypatch.setattr(pipeline, name, record)
    return calls


RECIPE = {"simplify": 0.25, "sparsity": 0.5, "quantize": pc.Int8(), "epochs": 2, "lr": 0.01, "progress": False}


def test_a_copy_is_compressed(model):
    before, random = state(model), torch.get_rng_state()
    result = pc.compress(model, TRAIN, TEST, margin=0.1, **RECIPE)
    assert state(model) == before and torch.equal(random, torch.get_rng_state())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in result.model.parameters()}
    assert not any(module.training for module in result.model.modules())
    assert not any(parameter.requires_grad for parameter in result.model.parameters())
    assert [type(layer) for layer in result.model] == [PackedLinear, nn.Identity, nn.Identity, nn.Dropout, PackedLinear]


def test_the_summary_says_what_was_done(model, tmp_path):
    result = pc.compress(model, TRAIN, TEST, margin=0.1, rounds=2, **RECIPE)
    summary = result.summary
    assert summary.epochs == 3 * 2, "after the removal, and in each of two rounds"
    left = 24 - 6
    total = 8 * left + left * 3
    assert summary.pruning.total == total and summary.pruning.zeros == round(0.5 * total)
    assert summary.parameters == (8 * 24 + 24 * 3 + 24 + 3 + 2 * 24, total - round(0.5 * total) + left + 3 + 2 * left)
    assert [layer.name for layer in summary.quantization.layers] == ["0", "4"]
    assert summary.layers == tuple(pc.explain(result.model))
    pc.save(result.model, tmp_path / "compressed")
    assert summary.bytes[1] == (tmp_path / "compressed").stat().st_size < summary.bytes[0]
    assert result.verdict.cost.compressed_bytes == summary.bytes[1]


@pytest.mark.filterwarnings("ignore:these layers lost all")
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.97])
@pytest.mark.parametrize("rounds", [1, 3])
def test_sparsity_is_exact_after_the_last_round(model, monkeypatch, sparsity, rounds):
    calls = spy(monkeypatch, "prune_")
    result = pc.compress(model, TRAIN, None, sparsity=sparsity, rounds=rounds, epochs=1, progress=False)
    shares = [named["sparsity"] for _, named in calls][1:]  # the first call is the trial on a copy
    assert shares == [pytest.approx(sparsity * (1 - (1 - i / rounds) ** 3)) for i in range(1, rounds + 1)]
    layers = [result.model[i] for i in (0, 4)]
    weights = [layer.packed.unpack() if isinstance(layer, PackedLinear) else layer.weight.numpy() for layer in layers]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(sparsity * 264) == result.summary.pruning.zeros


def test_the_integers_of_quantize_are_those_that_are_packed(model, monkeypatch):
    found, found_norm, quantize_ = [], [], pipeline.quantize_

    def record(twin, *arguments, **named):
        summary = quantize_(twin, *arguments, **named)
        found[:] = [(grids.grid_of(layer), grids.integers(layer.weight, grids.grid_of(layer))) for layer in twin[::4]]
        found_norm[:] = [twin[1].weight.detach().double() * torch.rsqrt(twin[1].running_var.double() + twin[1].eps)]
        return summary

    monkeypatch.setattr(pipeline, "quantize_", record)
    result = pc.compress(model, TRAIN, None, **RECIPE)
    for layer, (grid, integers) in zip(result.model[::4], found, strict=True):
        signs, scale = torch.ones(len(integers)), grid.scale
        if layer is result.model[0]:  # the normalization behind it is in its scales
            norm = found_norm[0]
            signs, scale = torch.sign(norm), (scale.double() * norm.abs()).float()
        assert (layer.packed.canonical_weight() == (integers * signs.to(torch.int8)[:, None]).numpy()).all()
        assert (layer.packed.scale == scale.numpy()).all()


class Counting(Dataset):
    """Counts how often an item is read."""

    def __init__(self, pair):
        self.pair, self.reads = pair, 0

    def __len__(self):
        return len(self.pair[1])

    def __getitem__(self, index):
        self.reads += 1
        return self.pair[0][index], int(self.pair[1][index])


def test_test_data_are_for_the_verdict_alone(model, monkeypatch):
    test, reads = Counting(TEST), {}
    for name in ("simplify_model", "prune_", "distill_", "quantize_", "pack"):
        step = getattr(pipeline, name)

        @functools.wraps(step)
        def watched(*arguments, step=step, name=name, **named):
            before = test.reads
            result = step(*arguments, **named)
            reads[name] = test.reads - before
            return result

        monkeypatch.setattr(pipeline, name, watched)
    result = pc.compress(model, Counting(TRAIN), test, margin=0.1, **RECIPE)
    assert reads == dict.fromkeys(("simplify_model", "prune_", "distill_", "quantize_", "pack"), 0)
    assert test.reads >= 2 * len(test)
    other = pc.compress(model, TRAIN, (TEST[0].flip(0), (TEST[1] + 1) % 3), margin=0.1, **RECIPE)
    without = pc.compress(model, TRAIN, None, **RECIPE)
    assert without.verdict is None and other.verdict.original.value != result.verdict.original.value
    assert to_bytes(other.model) == to_bytes(without.model)


@pytest.mark.filterwarnings("ignore:these layers lost all")
def test_the_verdict_is_that_of_validate(model):
    result = pc.compress(model, TRAIN, TEST, margin=0.12, seed=3, **RECIPE)
    expected = pc.validate(model, result.model, TEST, margin=0.12, seed=3, latency=False)
    assert result.verdict.to_dict() == expected.to_dict()
    assert result.verdict.decision == "non-inferior" and result.verdict.original.value > 0.9
    destroyed = pc.compress(model, None, TEST, sparsity=0.99, margin=0.05, progress=False)
    assert destroyed.verdict.decision == "inferior" and destroyed.verdict.difference < -0.3


def test_the_teacher_is_the_original_unless_another_is_given(model, monkeypatch):
    calls = spy(monkeypatch, "distill_")
    pc.compress(model, TRAIN, None, **RECIPE)
    assert len(calls) == 2 and all(arguments[1] is model and arguments[0] is not model for arguments, _ in calls)
    assert [named["seed"] for _, named in calls] == [0, 2], "each training step has a seed of its own"
    del calls[:]
    teacher = nn.Linear(8, 3)
    before = state(teacher)
    pc.compress(model, TRAIN, None, sparsity=0.5, teacher=teacher, epochs=1, temperature=2.0, alpha=0.3, progress=False)
    assert calls[0][0][1] is teacher and calls[0][1]["temperature"] == 2.0 and calls[0][1]["alpha"] == 0.3
    assert state(teacher) == before


def test_no_training_data_means_no_training_step(model, monkeypatch):
    calls = spy(monkeypatch, "distill_")
    result = pc.compress(model, None, TEST, sparsity=0.3, quantize=pc.Int8(), margin=0.1, progress=False)
    assert not calls and result.summary.epochs == 0
    twin = copy.deepcopy(model)
    pc.prune_(twin, sparsity=0.3)
    pc.quantize_(twin, pc.Int8())
    assert to_bytes(result.model) == to_bytes(pc.pack(twin, TEST[0][:1], force=True))


def test_equal_seeds_give_equal_models(model):
    first, again, other = (
        to_bytes(pc.compress(model, TRAIN, None, seed=seed, **RECIPE).model) for seed in (1, 1, 2**63 - 1)
    )
    assert first == again != other


@pytest.mark.parametrize("form", [list, Counting, "dataset", "loader"])
def test_every_form_of_data(model, form):
    make = {
        list: lambda pair: [(pair[0][:70], pair[1][:70]), (pair[0][70:], pair[1][70:])],
        Counting: Counting,
        "dataset": lambda pair: TensorDataset(*pair),
        "loader": lambda pair: DataLoader(TensorDataset(*pair), 50),
    }[form]
    result = pc.compress(model, make(TRAIN), make(TEST), margin=0.1, **RECIPE)
    assert result.verdict.items == 100 and result.verdict.decision == "non-inferior"


def test_only_the_layers_that_are_asked_for(model):
    options = RECIPE | {"simplify": None}
    result = pc.compress(model, TRAIN, None, include=[nn.Linear], exclude=["4"], **options)
    assert [layer.name for layer in result.summary.pruning.layers] == ["0"]
    assert [layer.name for layer in result.summary.quantization.layers] == ["0"]
    assert type(result.model[4]) is nn.Linear and bool((result.model[4].weight != 0).all())


def test_the_steps_are_optional(model):
    for option in ({"sparsity": 0.5}, {"quantize": pc.Affine(bits=4)}, {"simplify": {"0": 0.5}}):
        result = pc.compress(model, None, None, example_inputs=TEST[0][:4], **option)
        assert (result.summary.pruning is None) == ("sparsity" not in option)
        assert (result.summary.quantization is None) == ("quantize" not in option)
        assert (result.model[1].num_features == 24) == ("simplify" not in option)
        assert result.model(TEST[0]).shape == (100, 3)


def test_a_model_of_convolutions_alone():
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = inputs, torch.arange(60) % 3
    result = pc.compress(model, data, data, sparsity=0.5, quantize=pc.Int8(), simplify=0.5, epochs=1, margin=0.9)
    assert result.model[0].out_channels == 12 and not result.model.training
    weights = [
        torch.from_numpy(packed.unpack())
        if (packed := getattr(result.model[i], "packed", None))
        else result.model[i].weight
        for i in (0, 2)
    ]
    assert sum(int((weight == 0).sum()) for weight in weights) >= round(0.5 * sum(weight.numel() for weight in weights))
    assert [layer.kind for layer in result.summary.layers] == ["Conv2d+ReLU", "Conv2d"]
    assert result.summary.bytes[1] < result.summary.bytes[0] and result.verdict.items == 60


def test_tied_weights_are_compressed_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    result = pc.compress(Tied(), TRAIN, TEST, sparsity=0.5, quantize=pc.Int8(), epochs=1, margin=0.9, progress=False)
    assert result.summary.pruning.total == 64 + 24 and result.summary.pruning.zeros == 44
    first, second = result.model.a.packed, result.model.b.packed
    assert (first.canonical_weight() == second.canonical_weight()).all() and first.bias is not second.bias


def test_the_result_is_saved_and_loaded_bit_for_bit(model, tmp_path):
    result = pc.compress(model, TRAIN, None, **RECIPE)
    pc.save(result.model, tmp_path / "model.safetensors")
    again = pc.load(tmp_path / "model.safetensors", into=network)
    assert torch.equal(again(TEST[0]), result.model(TEST[0]))
    assert pc.explain(again) == pc.explain(result.model)
    assert to_bytes(again) == (tmp_path / "model.safetensors").read_bytes()


def test_compress_inside_every_fold():
    seen = []

    def recipe(train, seed):
        made = network()
        pc.fit_(made, train, epochs=6, lr=0.01, seed=seed, progress=False)
        seen.append((len(train[1]), seed))
        return made.eval(), pc.compress(made, train, None, seed=seed, **RECIPE).model

    found = pc.cross_validate(recipe, (INPUTS, LABELS), folds=3, margin=0.1, seed=5, progress=False)
    assert seen == [(200, 5), (200, 6), (200, 7)] and found.items == 300
    assert found.decision == "non-inferior" and found.verdict.cost.size_ratio > 1


def test_only_stderr_shows_progress(model, capsys):
    pc.compress(model, TRAIN, TEST, margin=0.1, **RECIPE)
    assert capsys.readouterr() == ("", "")


def test_with_everything_measured(model, monkeypatch):
    monkeypatch.setattr(pipeline, "pack", pc.pack)
    monkeypatch.setattr(pipeline, "validate", pc.validate)
    result = pc.compress(model, None, TEST, sparsity=0.5, quantize=pc.Int8(), margin=0.1)
    assert [row.batch for row in result.verdict.cost.latency] == [1, 32]
    measured = [layer for layer in result.summary.layers if layer.kind != "BatchNorm1d"]
    assert measured
    for layer in measured:  # alone, or with its neighbours: which of them is a matter of the machine
        if layer.speedup is None:
            assert layer.format == pc.Int8() and "in one call" in layer.reason
        else:
            assert (layer.format is not None) == (layer.low > 1)


def test_static_int8_comes_out_of_one_call(model, monkeypatch):
    calls = spy(monkeypatch, "quantize_")
    options = {"calibration": TRAIN, "observer": pc.observers.Percentile(99.9), "bias_correction": True}
    result = pc.compress(model, None, TEST, quantize=pc.Int8(), margin=0.1, progress=False, max_error=0.5, **options)
    layers = result.summary.quantization.layers
    assert all(layer.input_scale > 0 and layer.output_error < 0.5 for layer in layers)
    assert [result.model[i].packed.input_scale for i in (0, 4)] == pytest.approx(
        [layer.input_scale for layer in layers]
    )
    trial, real = (named for _, named in calls)
    assert len(trial["calibration"][0]) == 1 and real["calibration"] is TRAIN, "the trial is on one item"
    twin = copy.deepcopy(model)
    pc.quantize_(twin, pc.Int8(), TRAIN, observer=options["observer"], bias_correction=True)
    assert to_bytes(result.model) == to_bytes(pc.pack(twin, TEST[0][:1], force=True))


def test_layers_that_lose_too_much_stay_float(model):
    measured = pc.compress(model, None, None, quantize=pc.Int8(), calibration=TRAIN, max_error=1e3)
    errors = {layer.name: layer.output_error for layer in measured.summary.quantization.layers}
    bound = sum(errors.values()) / 2
    result = pc.compress(model, None, None, quantize=pc.Int8(), calibration=TRAIN, max_error=bound)
    stays = {layer.name for layer in result.summary.quantization.layers if layer.stays_float}
    assert stays == {name for name, error in errors.items() if error > bound} and len(stays) == 1
    assert type(result.model.get_submodule(stays.pop())) is nn.Linear
