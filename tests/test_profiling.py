"""Profiles: times under a clock that only modules move, gains, what is shown; and that nothing of the model changes."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from wrong_values import INPUTS, model, state

import pycompress as pc
from pycompress.profiling import Amount, Gain, LayerProfile, Profile
from pycompress.profiling.times import module_times


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quick(made, inputs, **options):
    return pc.profile(made, inputs, **{"seconds": 0.005, "progress": False, "gains": False} | options)


def row(profile, name):
    [found] = [layer for layer in profile.layers if layer.name == name]
    return found


class Clock:
    """Seconds that only pass where somebody says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_times_are_own_and_with_what_runs_inside():
    clock = Clock()

    class Takes(nn.Module):
        def __init__(self, seconds, *inside):
            super().__init__()
            self.seconds, self.inside = seconds, nn.ModuleList(inside)

        def forward(self, depth=0):
            clock.now += self.seconds
            for module in self.inside:
                module()
            if depth:
                self(depth - 1)

    leaf = Takes(1.0)
    middle = Takes(0.25, leaf, leaf)
    made = Takes(0.5, middle, leaf)
    found = module_times(list(made.modules()), lambda: lambda: made(1), 100.0, clock, False)
    once = 0.5 + 2.25 + 1.0
    assert found.total[made] == pytest.approx(2 * once * 1e6) and found.own[made] == pytest.approx(1e6)
    assert found.total[middle] == pytest.approx(4.5e6) and found.own[middle] == pytest.approx(0.5e6)
    assert found.total[leaf] == found.own[leaf] == pytest.approx(6e6)
    assert found.plain == found.watched == pytest.approx(2 * once * 1e6) and found.runs == 3
    quick_clock = Clock()
    quick_clock.now = 5.0  # stands still
    assert module_times([leaf], lambda: lambda: None, 1.0, quick_clock, False).runs == 200


def test_a_module_that_fails_inside_another_leaves_the_rest_right():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.fc = Fails(), nn.Linear(3, 2)

        def forward(self, x):
            try:
                return self.fails(x)
            except KeyError:
                return self.fc(x)

    found = quick(Catches(), torch.ones(4, 3))
    assert {layer.name: layer.calls for layer in found.layers} == {"": 1, "fails": 1, "fc": 1}
    assert found.layers[0].total.operations == 24
    assert found.layers[0].total.microseconds >= row(found, "fc").total.microseconds > 0


def test_shares_add_up_and_parts_are_not_longer_than_the_whole():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(256, 256), nn.Sequential(nn.Linear(256, 256), nn.GELU()), nn.Linear(256, 8))
    found = quick(made, torch.randn(32, 256), seconds=0.05)
    assert sum(map(found.share, found.layers)) == pytest.approx(1)
    assert found.runs >= 3 and found.microseconds > 0 and found.threads == 1
    inside = sum(row(found, name).total.microseconds for name in ("0", "1", "2"))
    assert inside <= found.layers[0].total.microseconds * 1.2
    assert row(found, "0").gflops == pytest.approx(2 * 32 * 65536 / row(found, "0").total.microseconds / 1e3)
    assert row(found, "1.1").gflops is None
    assert found.share(row(found, "0")) > found.share(row(found, "1.1"))


@pytest.mark.parametrize("gains", [False, True])
def test_nothing_of_the_model_changes(gains):
    made = model().train()
    made[4].register_forward_hook(lambda *_: None)
    made.register_buffer("seen", torch.zeros(1))
    made.register_forward_pre_hook(lambda module, args: module.seen.add_(1) and None)
    before, random, threads = state(made), torch.get_rng_state(), torch.get_num_threads()
    inputs = INPUTS.clone()
    quick(made, inputs, gains=gains, sparsity=0.5 if gains else None)
    assert state(made) == before and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(inputs, INPUTS) and torch.get_num_threads() == threads


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, a, b, scale=1.0):
        return {"y": self.fc(a.add_(b)) * scale, "x": (a, [b])}


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(4, 3), torch.ones(4, 3)),
        (torch.ones(4, 3), torch.ones(4, 3), 2.0),
        {"a": torch.ones(4, 3), "b": torch.ones(4, 3), "scale": 0.5},
        (np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)),
    ],
    ids=["tuple", "with a number", "dict", "arrays"],
)
def test_inputs_are_those_of_pack(inputs):
    found = quick(Two(), inputs, gains=True)
    assert row(found, "fc").own.operations == 24 and row(found, "fc").gains
    assert found.layers[0].activation_bytes == 4 * 2 * 4, "the others are inputs"


def test_scripted_modules_are_one_row():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    made = nn.Sequential(torch.jit.script(inner.eval()), nn.Linear(4, 2))
    found = quick(made, torch.randn(3, 6), gains=True)
    assert [layer.name for layer in found.layers] == ["", "0", "1"]
    assert row(found, "0").total.parameters == 35 + 24 and row(found, "0").total.bytes == 4 * 59
    assert row(found, "0").own.operations == 3 * (30 + 20) and row(found, "1").own.operations == 24
    assert quick(torch.jit.script(inner), torch.randn(3, 6)).layers[0].total.operations == 150


def test_chains_and_fused_layers_of_packed_models():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    packed = pc.pack(made, torch.randn(4, 64), pc.Int8(), force=True)
    assert type(packed).__name__ == "ChainedSequential"
    found = quick(packed, torch.randn(4, 64))
    assert found.layers[0].total.operations == 4 * (2 * 64 * 64 + 64 * 8) and row(found, "2").calls == 1
    images = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    x = torch.randn(2, 3, 12, 12)
    pc.quantize_(images, pc.Int8(), calibration=(x, torch.zeros(2)))
    packed = pc.pack(images, x, force=True)
    assert quick(packed, x).layers[0].total.operations == quick(images, x).layers[0].total.operations


def test_encoders_with_padding_and_nested_tensors():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    found = quick(encoder, {"src": x, "src_key_padding_mask": padding}, gains=True)
    assert row(found, "layers.0.linear1").calls == 1
    assert row(found, "layers.0.linear1").gains and row(found, "layers.1.self_attn").gains
    assert not row(found, "layers.0.self_attn.out_proj").gains, "it is packed with its attention"
    assert not any(layer.note for layer in found.layers)
    rows = 3 * 5  # the hidden ones included
    assert found.layers[0].total.operations == 2 * (rows * (4 * 64 + 2 * 8 * 16) + 2 * 8 * 3 * 25)
    assert encoder.use_nested_tensor and not found.notes


def test_nested_tensors_are_not_counted_and_that_is_told():
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    found = quick(nn.Sequential(nn.Linear(8, 8)), nested)
    assert found.layers[0].total.operations is None and "NestedTensor" in found.notes[0]
    assert row(found, "0").calls == 1 and row(found, "0").total.microseconds > 0


def test_gains_are_those_of_the_packed_layer():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(0), nn.Linear(4 * 254, 4))
    made.append(nn.Bilinear(2, 2, 1))
    made.append(nn.Identity())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.idle, self.wide = made[:5], nn.Linear(3, 3), nn.Linear(2, 2).double()

        def forward(self, x):
            self.wide(x[0, :2].double())
            return self.body(x)

    net, x = Net(), torch.randn(4, 256)
    found = quick(net, x, gains=True, sparsity=0.9)
    packed = pc.pack(net, x, pc.Int8(), force=True)
    linear = row(found, "body.0")
    int8, sparse = linear.gains
    assert (int8.format, int8.sparsity, sparse.format, sparse.sparsity) == ("Int8()", None, "Sparse()", 0.9)
    assert int8.now_bytes == 4 * (256 * 256 + 256) and int8.then_bytes == packed.body[0].packed.nbytes
    assert sparse.then_bytes < 0.4 * sparse.now_bytes and sparse.saved_bytes == sparse.now_bytes - sparse.then_bytes
    assert int8.low <= int8.speedup <= int8.high and int8.saved_us == int8.now_us - int8.then_us
    assert [gain.format for gain in row(found, "body.2").gains] == ["Int8()"], "no sparse kernel"
    assert row(found, "idle").note == "never called by example_inputs" and not row(found, "idle").gains
    assert row(found, "wide").note == "its weight is float64"
    text = str(found)
    assert "Sparse()" in text and "Not tried: idle (never called by example_inputs)." in text


def test_a_sparse_candidate_keeps_the_largest_weights():
    from pycompress.profiling.gains import _sparse

    torch.manual_seed(0)
    layer = nn.Linear(32, 16).requires_grad_(False)
    before = layer.weight.clone()
    packed = _sparse(layer, 0.9).packed
    kept = 512 - round(0.9 * 512)
    assert torch.equal(layer.weight, before)
    limit = layer.weight.abs().flatten().sort(descending=True).values[kept - 1]
    assert torch.equal(torch.from_numpy(packed.unpack()), layer.weight * (layer.weight.abs() >= limit))


def test_gains_count_all_calls_of_a_layer():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x):
            for _ in range(40):
                x = self.fc(x)
            return x

    found = row(quick(Often(), torch.randn(2, 64), gains=True, seconds=0.05), "fc")
    assert found.calls == 40
    assert found.gains[0].now_us == pytest.approx(found.total.microseconds, rel=0.9)
    assert found.gains[0].now_us > 5 * found.total.microseconds / 40


def test_models_of_other_things_have_no_gains():
    found = quick(nn.Sequential(nn.ReLU(), nn.Softmax(-1)), torch.ones(2, 3), gains=True)
    assert all(not layer.gains and not layer.note for layer in found.layers) and found.savings == {}
    assert found.layers[0].total == Amount(0, 0, 0, 0, found.layers[0].total.microseconds)
    packed = pc.pack(nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8), pc.Int8(), force=True)
    assert not quick(packed, torch.ones(1, 8), gains=True).layers[1].gains


def test_json():
    torch.manual_seed(0)
    found = quick(nn.Sequential(nn.Linear(64, 32), nn.ReLU()), torch.randn(8, 64), gains=True)
    plain = found.to_dict()
    assert json.loads(found.to_json()) == plain
    assert set(plain) == {"microseconds", "watched_microseconds", "runs", "threads", "savings", "notes", "layers"}
    first = plain["layers"][1]
    assert first["name"] == "0" and first["total"]["operations"] == 8 * 64 * 32 and first["calls"] == 1
    assert first["gains"][0]["saved_bytes"] == found.layers[1].gains[0].saved_bytes
    assert sum(layer["share"] for layer in plain["layers"]) == pytest.approx(1)


def made_profile(**changes):
    """A profile with all that can be shown."""
    cost = Amount(1_234_567, 123_456, 4_938_268, 987_654_321, 1234.5)
    leaf = Amount(1000, 1000, 4000, None, 12.3)
    gain = Gain("Int8()", None, 1200.0, 400.0, 3.0, 2.9, 3.1, 4_938_268, 1_240_000)
    slow = Gain("Int8()", None, 12.0, 14.0, 0.9, 0.8, 1.1, 4000, 1100)
    layers = (
        LayerProfile("", "Net", "", None, 1, 0.9, 0, Amount(0, 0, 0, 0, 1.0), cost),
        LayerProfile("body", "Sequential", "", None, 1, 0.9, 0, Amount(0, 0, 0, 0, 2.0), cost),
        LayerProfile("body.0", "Linear", "float32", None, 2, 0.9, 4096, cost, cost, (gain,)),
        LayerProfile("body.1", "Linear", "float32", None, 1, 0.0, 10, leaf, leaf, (slow,)),
        LayerProfile("idle", "Linear", "float32", None, 0, 0.0, 0, leaf, Amount(9, 9, 36, 0, 0.0), (), "never called"),
    )
    return Profile(
        **{"layers": layers, "microseconds": 1200.0, "watched_microseconds": 1234.5, "runs": 7, "threads": 2} | changes
    )


def test_the_tree():
    text = str(made_profile())
    lines = text.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[2:7]] == [
        "(the model)",
        "├─ body",
        "│",
        "│",
        "└─ idle",
    ]
    assert "├─ 0" in lines[4] and "└─ 1" in lines[5]
    assert "1.23 M (90 % zero)" in lines[4] and "4.94 MB" in lines[4] and "987.65 M" in lines[4]
    assert "1.23 ms" in lines[4] and "-800.0 us" in lines[4] and "no faster" in lines[5] and "?" in lines[5]
    assert "1.20 ms for one run, 1.23 ms while every module is watched (medians of 7 runs each, 2 threads)." in text
    assert "Int8() would save about 800.0 us and 3.70 MB of memory" in text
    assert "Not tried: idle (never called)." in text
    assert max(map(len, lines)) <= 140 and "\x1b" not in text
    assert str(made_profile(notes=("Operations are not known.",))).endswith("Operations are not known.")


@pytest.mark.parametrize("name", ["[red]layer[/red]", "[/]", ":warning:", "\x1b[2J", "a\u202eb"])
def test_names_are_shown_as_they_are(name):
    made = nn.Sequential()
    made.add_module(name, nn.Linear(3, 2))
    text = str(quick(made, torch.ones(1, 3)))
    assert "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name) in text
    assert not {c for c in text if not c.isprintable()} - {"\n"}


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width, monkeypatch):
    from pycompress import tables

    monkeypatch.setattr(tables, "width", lambda: width)
    text = str(made_profile())
    assert max(len(line) for line in text.splitlines()) <= width and "…" not in text
    for number in ("1.23 ms", "98 %", "-800.0 us", "no faster", "12.3 us"):
        assert number in text
    assert ("GFLOP/s" in text) == (width >= 100) and ("Linear" in text) == (width == 140)


def test_rich_shows_it_too():
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    console.print(made_profile())
    assert "\x1b[" in console.file.getvalue() and "body" in console.file.getvalue()


def test_what_cannot_be_profiled_is_refused():
    made = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for layer in made:
        layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model must have finite weights, got 0.weight: 1.*1.weight: 1"):
        quick(made, torch.ones(1, 3))
    with pytest.raises(ValueError, match="sparsity must be None with gains=False"):
        quick(nn.Linear(3, 2), torch.ones(1, 3), sparsity=0.5)
    with pytest.raises(ValueError, match=r"example_inputs must fit the model, got \(1, 4\) float32"):
        quick(nn.Linear(3, 2), torch.ones(1, 4))

    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.cache = self.fc(torch.ones(1, 3))

    with pytest.raises(ValueError, match="model must be one that can be copied"):
        quick(Holds(), torch.ones(1, 3))
