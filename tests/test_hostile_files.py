"""Files made by an attacker, digest and all: each is refused with an ArtifactError that says what is wrong, quickly and
with little memory, and the model that was to be filled is as it was."""

import copy
import random
import time
import tracemalloc

import pytest
import torch
from hostile import CORPUS, Parts, sign
from torch import nn

from pycompress import artifact, grids, kernels
from pycompress.artifact.container import DIGEST
from pycompress.formats import Affine, FixedPoint, Int8, Sparse
from pycompress.layers import LayerDecision, PackedLinear


def target():
    """The model that hostile files are loaded into."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "packed": nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20)),
            "affine": nn.Linear(30, 40, bias=False),
            "fixed": nn.Linear(3, 2),
            "pruned": nn.Linear(30, 40, bias=False),
            "tied": nn.Linear(30, 40, bias=False),
            "conv": nn.Conv2d(4, 4, 1, groups=2),
        }
    )
    model.register_buffer("flags", torch.tensor([False, False]))
    return model


def good_file():
    """A file with packed layers, decisions, grids, pruned and tied weights, groups and a buffer."""
    model = target().requires_grad_(False)
    model.flags[0] = True
    first, _, second = model["packed"]
    decision = LayerDecision("", "Linear+ReLU", Int8(), "native/avx2", 8, 2.0, 1.0, 2.0, 1.9, 2.1, "faster")
    model["packed"][0] = PackedLinear(kernels.pack(first.weight, Int8(), first.bias, input_scale=0.1), "relu", decision)
    model["packed"][1] = nn.Identity()
    model["packed"][2] = PackedLinear(kernels.pack(second.weight * (second.weight > 0.15), Sparse(), second.bias))
    for name, format, scale in (("affine", Affine(bits=4), 0.125), ("fixed", FixedPoint(6), 2.0**-6)):
        zero_point = 7.25 if name == "affine" else 0.0
        record = grids.GridRecord(format, torch.tensor(scale), torch.tensor(zero_point))
        q = torch.round(model[name].weight / scale + zero_point).int()
        model[name].weight.copy_(grids.weight_from(q, record))
        grids.set_grid(model[name], record)
    model["affine"].weight[2:] = 0
    model["pruned"].weight[1:] = 0
    model["tied"].weight = model["pruned"].weight
    return artifact.to_bytes(model)


@pytest.fixture(scope="module")
def good():
    return good_file()


def assert_untouched(model, before):
    assert repr(model) == repr(before)
    found, wanted = model.state_dict(), before.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_corpus_is_large_and_the_good_file_loads(good, tmp_path):
    assert len(CORPUS) >= 250
    path = tmp_path / "good"
    path.write_bytes(good)
    assert artifact.to_bytes(artifact.load(path, into=target())) == good


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_files_are_refused(name, good, tmp_path):
    message, function = CORPUS[name]
    data = function(good)
    path = tmp_path / "hostile"
    path.write_bytes(data)
    model = target()
    before = copy.deepcopy(model)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(artifact.ArtifactError, match=message) as caught:
        artifact.load(path, into=model)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 3000
    assert peak < 2**20 + 100 * len(data)
    assert seconds < 1, "promised are 0.1 s; this is for hangs"
    assert_untouched(model, before)


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_files_are_described_or_refused(name, good, tmp_path):
    path = tmp_path / "hostile"
    path.write_bytes(CORPUS[name][1](good))
    try:
        assert artifact.describe(path).bytes == path.stat().st_size
    except artifact.ArtifactError as error:
        assert len(str(error)) < 3000


def test_a_digest_that_does_not_fit_is_told(good, tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(CORPUS["wrong digest-0"][1](good))
    assert not artifact.describe(path).digest_ok
    path.write_bytes(good)
    assert artifact.describe(path).digest_ok


def small_model():
    return nn.Sequential(nn.Linear(9, 20, bias=False), nn.Linear(4, 1, bias=False))


def small_file():
    torch.manual_seed(1)
    model = small_model().requires_grad_(False)
    model[0].weight[1:] = 0
    model[1] = PackedLinear(kernels.pack(model[1].weight, Int8()))
    return artifact.to_bytes(model)


def refusal(data, path, model):
    """Why a file is refused, or None when it loads; any other exception is a failure."""
    path.write_bytes(data)
    try:
        artifact.load(path, into=model)
    except artifact.ArtifactError as error:
        return str(error)
    return None


def test_truncation_at_every_byte(tmp_path):
    good, model = small_file(), small_model()
    before = copy.deepcopy(model)
    for size in range(len(good)):
        assert refusal(good[:size], tmp_path / "cut", model), size
    assert_untouched(model, before)
    assert refusal(good, tmp_path / "whole", model) is None


def test_every_flip_of_a_bit_is_noticed(tmp_path):
    good, model = small_file(), small_model()
    before = copy.deepcopy(model)
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        assert refusal(data, tmp_path / "flipped", model), bit
    assert_untouched(model, before)


def test_flips_with_a_new_digest_load_or_are_refused(tmp_path):
    """An attacker may change numbers, but nothing gets past the checks into a crash or another exception."""
    good, loaded = small_file(), 0
    for bit in range(64, 8 * len(good), 3):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        loaded += refusal(sign(data), tmp_path / "flipped", small_model()) is None
    assert loaded > 20


HOSTILE_VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 127, 2**31, 2**53, 2**62, 2**64, 10**30, 0.5, -0.5, 1e39),
    *(
        "",
        "a",
        "F32",
        "I8",
        "U8",
        "BOOL",
        "Int8",
        "Sparse",
        "relu",
        "packed.0.weight",
        "affine.weight",
        "flags",
        DIGEST,
    ),
    *([], [0], [1, 1], [2**40, 2**40], [0, 0], {}, {"name": "Int8"}, {"name": "Sparse"}),
]


def mutate(parts, generator):
    """Change one to three random nodes of header and metadata."""
    for _ in range(generator.randint(1, 3)):
        node = generator.choice([parts.header, parts.metadata])
        while isinstance(node, (dict, list)) and node:
            key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], (dict, list)) and node[key] and generator.random() < 0.85:
                node = node[key]
                continue
            action = generator.random()
            if action < 0.1:
                del node[key]
            elif action < 0.2 and isinstance(node, dict):
                node[generator.choice(["x", "bits", "grid", "packed", "affine.weight", "packed.2"])] = node.pop(key)
            elif action < 0.3 and type(node[key]) is int:
                node[key] += generator.choice([-1, 1])
            else:
                node[key] = copy.deepcopy(generator.choice(HOSTILE_VALUES))
            break


def fuzz(good, path, seeds):
    """Return how many of the files that seeds make are loaded; a seed that fails otherwise is in the error."""
    loaded = 0
    for seed in seeds:
        parts = Parts(good)
        mutate(parts, random.Random(seed))
        try:
            loaded += refusal(parts.file(), path, target()) is None
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    return loaded


def test_random_changes_load_or_are_refused(good, tmp_path):
    assert fuzz(good, tmp_path / "fuzzed", range(1000)) < 100


@pytest.mark.soak
def test_many_random_changes_load_or_are_refused(good, tmp_path):
    assert fuzz(good, tmp_path / "fuzzed", range(10_000, 110_000)) < 10_000
