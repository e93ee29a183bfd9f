"""Pruning in patterns: blocks, rows, columns, N:M; exact counts, edges, ties, repetition, recurrent and attention."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import masks

pytestmark = pytest.mark.filterwarnings("ignore:these layers lost", "ignore:Initializing zero-element")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.line = nn.Conv1d(4, 6, 5)
        self.fc = nn.Linear(37, 21)
        self.lstm = nn.LSTM(7, 6)
        self.attention = nn.MultiheadAttention(8, 2)


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


def parameters(model):
    names = ("conv.weight", "line.weight", "fc.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0")
    names += ("attention.in_proj_weight", "attention.out_proj.weight")
    return {name: model.get_parameter(name) for name in names}


def zeros(model):
    return {name: (weight == 0).flatten(1).numpy() for name, weight in parameters(model).items()}


def tiles(rows, columns, height, width):
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def size(pattern, weight):
    if isinstance(pattern, pc.Rows):
        return pattern.count, weight[0].numel()
    if isinstance(pattern, pc.Columns):
        return len(weight), pattern.count * weight[0, 0].numel()
    return pattern.height, pattern.width


def expected(weights, pattern, sparsity, score=torch.abs):
    """Blocks in the order of their means, as many as bring the count closest to the wanted one."""
    blocks = []
    for name, weight in weights.items():
        scores = score(weight.detach().double()).flatten(1).numpy()
        for place in tiles(*scores.shape, *size(pattern, weight)):
            blocks.append((scores[place].sum() / scores[place].size, name, place, scores[place].size))
    blocks.sort(key=lambda block: block[0])
    total = sum(weight.numel() for weight in weights.values())
    sums = np.cumsum([0, *(block[3] for block in blocks)])
    taken = int(np.abs(sums - round(sparsity * total)).argmin())
    gone = {name: np.zeros(weight.flatten(1).shape, bool) for name, weight in weights.items()}
    for _, name, place, _ in blocks[:taken]:
        gone[name][place] = True
    return gone


PATTERNS = [
    *(pc.Blocks(*block) for block in ((1, 1), (16, 4), (4, 1), (1, 8), (3, 5), (100, 2), (100, 1000))),
    *(pc.Rows(), pc.Rows(4), pc.Columns(), pc.Columns(3)),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("across_layers", [True, False])
def test_blocks_go_by_their_means_in_the_closest_number(pattern, sparsity, across_layers):
    model = make()
    before = copy.deepcopy(parameters(model))
    summary = pc.prune_(model, sparsity=sparsity, pattern=pattern, across_layers=across_layers)
    if across_layers:
        gone = expected(before, pattern, sparsity)
    else:
        gone = {name: expected({name: weight}, pattern, sparsity)[name] for name, weight in before.items()}
    for name, found in zeros(model).items():
        assert np.array_equal(found, gone[name]), name
        kept = torch.from_numpy(~gone[name]).view(before[name].shape)
        assert torch.equal(parameters(model)[name], before[name] * kept)
    assert summary.zeros == sum(int(mask.sum()) for mask in gone.values())
    if pattern == pc.Blocks(1, 1) and across_layers:
        assert summary.zeros == round(sparsity * summary.total)


def test_another_score_and_threshold_compare_means():
    model = make()
    before = copy.deepcopy(parameters(model))
    pc.prune_(model, sparsity=0.5, pattern=pc.Blocks(4, 4), score=pc.scores.l2)
    gone = expected(before, pc.Blocks(4, 4), 0.5, torch.square)
    assert all(np.array_equal(found, gone[name]) for name, found in zeros(model).items())
    model = make()
    pc.prune_(model, threshold=0.1, pattern=pc.Blocks(3, 4))
    for name, found in zeros(model).items():
        scores = before[name].detach().double().abs().flatten(1).numpy()
        for place in tiles(*scores.shape, 3, 4):
            assert (found[place] == (scores[place].mean() <= 0.1)).all()


def test_equal_blocks_go_by_index_in_layer_order():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4))
    for p in model.parameters():
        p.data.fill_(0.5)
    pc.prune_(model, sparsity=0.625, pattern=pc.Blocks(2, 4))
    assert (model[0].weight == 0).all() and (model[1].weight == 0).nonzero().tolist() == [
        [row, column] for row in range(2) for column in range(4)
    ]


@pytest.mark.parametrize("pattern", [pc.Blocks(4, 4), pc.Rows(), pc.Blocks(3, 5)], ids=str)
@pytest.mark.parametrize("score", [pc.scores.magnitude, lambda _, layers: {n: -m.weight for n, m in layers.items()}])
def test_what_is_pruned_stays_pruned_and_counts(pattern, score):
    model = make()
    first = pc.prune_(model, sparsity=0.3, score=score)  # single weights
    before = zeros(model)
    assert pc.prune_(model, sparsity=0.3, pattern=pattern, score=score).zeros == first.zeros
    summary = pc.prune_(model, sparsity=0.7, pattern=pattern, score=score)
    largest = max(np.prod(size(pattern, weight)) for weight in parameters(model).values())
    assert abs(summary.zeros - round(0.7 * summary.total)) <= largest
    for name, found in zeros(model).items():
        assert not (before[name] & ~found).any()
        fresh = found & ~before[name]
        shape = size(pattern, parameters(model)[name])
        assert all(found[place].all() for place in tiles(*found.shape, *shape) if fresh[place].any())
    again = pc.prune_(model, sparsity=0.7, pattern=pattern, score=score)
    assert abs(again.zeros - summary.zeros) <= largest // 2


def outside(weight, n, m):
    """What N:M prunes: in each group the smallest but n; of equal ones the lower index."""
    scores = weight.detach().abs().double().flatten(1).numpy()
    gone = np.zeros(scores.shape, bool)
    for row, left in itertools.product(range(len(scores)), range(0, scores.shape[1], m)):
        group = scores[row, left : left + m]
        gone[row, left + np.argsort(group, kind="stable")[: max(0, len(group) - n)]] = True
    return gone


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8), (3, 7), (1, 32), (31, 32)])
@pytest.mark.parametrize("ties", [False, True])
def test_n_of_m_keeps_the_n_largest_of_each_m(n, m, ties):
    model = make()
    if ties:
        for p in model.parameters():
            p.data = torch.randint(-2, 3, p.shape).float()
    before = copy.deepcopy(parameters(model))
    summary = pc.prune_(model, pattern=pc.NM(n, m))
    for name, weight in before.items():
        gone = torch.from_numpy(outside(weight, n, m)).view(weight.shape)
        assert torch.equal(parameters(model)[name], weight.masked_fill(gone, 0)), name
    other = make()
    for name, weight in before.items():
        parameters(other)[name].data.copy_(weight)
    assert pc.prune_(other, sparsity=1 - n / m, pattern=pc.NM(n, m)).zeros <= summary.zeros
    assert str(summary).count("\n") == len(before)


@pytest.mark.parametrize("across_layers", [True, False])
def test_less_than_n_of_m_takes_the_smallest_of_it(across_layers):
    model = make()
    before = copy.deepcopy(parameters(model))
    for sparsity in (0.2, 0.4, 0.45):
        summary = pc.prune_(model, sparsity=sparsity, pattern=pc.NM(2, 4), across_layers=across_layers)
        groups = [list(before)] if across_layers else [[name] for name in before]
        for names in groups:
            keys = [
                np.where(outside(before[name], 2, 4), before[name].detach().abs().flatten(1), np.inf) for name in names
            ]
            count = round(sparsity * sum(key.size for key in keys))
            count = min(count, sum(int(np.isfinite(key).sum()) for key in keys))  # edges may keep more
            limit = np.sort(np.concatenate([key.reshape(-1) for key in keys]))[count - 1]
            for name, key in zip(names, keys, strict=True):
                assert np.array_equal(zeros(model)[name], key <= limit)
    assert summary.sparsity == pytest.approx(0.45, abs=0.02)
    pc.prune_(model, pattern=pc.NM(2, 4), across_layers=across_layers)
    assert all(np.array_equal(found, outside(before[name], 2, 4)) for name, found in zeros(model).items())


def test_n_of_m_up_to_a_threshold():
    model = make()
    before = copy.deepcopy(parameters(model))
    pc.prune_(model, threshold=0.1, pattern=pc.NM(2, 4))
    for name, found in zeros(model).items():
        small = before[name].detach().abs().flatten(1).numpy() <= np.float32(0.1)
        assert np.array_equal(found, outside(before[name], 2, 4) & small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pattern", [pc.Blocks(4, 4), pc.Rows(), pc.NM(2, 4)], ids=str)
def test_other_types(dtype, pattern):
    model, other = make().to(dtype), make()
    for name, weight in parameters(model).items():
        parameters(other)[name].data.copy_(weight.float())
        if dtype == torch.float64:
            weight.data.copy_(weight.float())
    for each in (model, other):
        pc.prune_(each, sparsity=0.5, pattern=pattern)
    assert all(np.array_equal(found, zeros(other)[name]) for name, found in zeros(model).items())


@pytest.mark.parametrize("pattern", [pc.Blocks(16, 4), pc.Rows(), pc.Columns(), pc.NM(2, 4)], ids=str)
def test_empty_and_channels_last_weights(pattern):
    assert pc.prune_(nn.Linear(0, 3), sparsity=0.5, pattern=pattern).zeros == 0
    assert pc.prune_(nn.Linear(3, 0), sparsity=0.5, pattern=pattern).zeros == 0
    conv = nn.Conv2d(4, 8, 3)
    other = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    for each in (conv, other):
        pc.prune_(each, sparsity=0.5, pattern=pattern)
    assert torch.equal(conv.weight, other.weight)


def test_columns_of_a_convolution_are_input_channels():
    conv = nn.Conv2d(6, 4, 3)
    conv.weight.data[:, 2] *= 0.01
    conv.weight.data[:, 5] *= 0.01
    pc.prune_(conv, sparsity=1 / 3, pattern=pc.Columns())
    assert (conv.weight == 0).all((0, 2, 3)).tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sparsity": 0.5, "pattern": (16, 4)}, TypeError, "pattern must be Unstructured, Blocks, Rows, Columns or NM"),
        ({"sparsity": 0.6, "pattern": pc.NM(2, 4)}, ValueError, r"sparsity must be at most 1 - n / m = 0.5"),
        ({"pattern": pc.Blocks(2, 2)}, ValueError, "exactly one of sparsity and threshold"),
        ({"pattern": pc.NM(2, 4), "sparsity": 0.5, "threshold": 0.5}, ValueError, "exactly one of sparsity and"),
    ],
)
def test_bad_arguments_change_nothing(options, kind, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        pc.prune_(model, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not masks.masked(model)


@pytest.mark.parametrize(("pattern", "sparsity"), [(pc.Blocks(4, 4), 0.75), (pc.NM(2, 4), 0.5)], ids=str)
def test_compress_prunes_in_a_pattern(pattern, sparsity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    data = torch.randn(64, 16), torch.arange(64) % 4
    result = pc.compress(model, data, None, sparsity=sparsity, pattern=pattern, rounds=3, epochs=1, progress=False)
    assert result.summary.pruning.sparsity == pytest.approx(sparsity)
    with pytest.raises(ValueError, match="pattern must come with sparsity"):
        pc.compress(model, data, None, quantize=pc.Int8(), pattern=pattern)
    with pytest.raises(TypeError, match="pattern must be Unstructured"):
        pc.compress(model, data, None, sparsity=0.5, pattern="blocks")
