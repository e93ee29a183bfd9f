"""What pack tries of sparse int8 weights, and the file that says so."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import breakeven, cli
from pycompress.breakeven import BreakEven
from pycompress.formats import Int8, Sparse


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYCOMPRESS_PROGRESS", "0")


def in_blocks(block, zeros, shape=(128, 256), seed=0):
    rng = np.random.default_rng(seed)
    kept = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) >= zeros
    return np.where(np.kron(kept, np.ones(block, bool)), rng.integers(1, 128, shape), 0).astype(np.int8)


@pytest.mark.parametrize("block", [(16, 4), (32, 4), (32, 64)])
def test_the_block_of_zeros_is_found(block):
    found, zeros = breakeven.int8_block(in_blocks(block, 0.6))
    assert found == block and 0.4 < zeros < 0.8


def test_zeros_without_a_pattern_are_single_ones():
    weight = in_blocks((1, 1), 0.8)
    found, zeros = breakeven.int8_block(weight)
    assert found == (1, 1) and zeros == pytest.approx((weight == 0).mean())
    for shape in ((0, 5), (5, 0), (0, 0), (1, 1), (17, 5), (33, 65)):
        assert breakeven.int8_block(np.ones(shape, np.int8))[1] == 0
        assert breakeven.worth_trying(np.ones(shape, np.int8), 1) is None
    assert breakeven.worth_trying(np.zeros((64, 64), np.int8), 1).block == (32, 64)


def test_a_written_file_is_what_is_asked(tmp_path):
    weight = in_blocks((16, 4), 0.5)
    entries = [BreakEven(128, 256, 1, (16, 4), 0.4), BreakEven(128, 256, 64, (16, 4), 0.9)]
    path = breakeven.write(entries)
    assert path.parent == tmp_path / "cache" and breakeven.break_evens() == entries
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert breakeven.worth_trying(weight, 1) == Sparse((16, 4), Int8())
    assert breakeven.worth_trying(weight, 64) is None
    assert breakeven.worth_trying(in_blocks((1, 1), 0.9), 1) is None  # no entry of that kind


@pytest.mark.parametrize(
    "change",
    [
        lambda held: "",
        lambda held: "{",
        lambda held: "[" * 100_000,
        lambda held: "null",
        lambda held: json.dumps(held | {"version": 2}),
        lambda held: json.dumps(held | {"level": "other"}),
        lambda held: json.dumps(held | {"entries": []}),
        lambda held: json.dumps(held | {"entries": 5}),
        lambda held: json.dumps(held | {"entries": [{}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"rows": 0}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"rows": "1"}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"zeros": None}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"zeros": float("nan")}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"block": [3, 3]}]}),
        lambda held: json.dumps(held | {"entries": [held["entries"][0] | {"block": [[1], 1]}]}),
    ],
)
def test_a_broken_file_is_told_and_the_defaults_hold(change):
    path = breakeven.write([BreakEven(1, 1, 1, (16, 4), 0.4)])
    path.write_text(change(json.loads(path.read_text())))
    with pytest.warns(UserWarning, match=r"breakeven-.*pycompress calibrate"):
        found = breakeven.break_evens()
    assert found == breakeven.DEFAULTS.get(breakeven.level(), breakeven.DEFAULTS["scalar"])
    path.write_bytes(b"\xff\xfe")
    with pytest.warns(UserWarning, match="not used"):
        breakeven.break_evens()


def test_without_a_file_nothing_is_said():
    assert breakeven.break_evens()


def test_the_command_measures_and_keeps(monkeypatch, capsys):
    real = breakeven.measure
    monkeypatch.setattr(breakeven, "measure", lambda: real([(32, 32)], [1]))
    monkeypatch.setattr(cli_kernels(), "set_num_threads", lambda n: None)
    assert cli.main(["calibrate", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["file"] == str(breakeven.cache_file()) and printed["level"] == breakeven.level()
    assert len(printed["entries"]) == 3 == len(breakeven.break_evens())
    assert cli.main(["calibrate"]) == 0
    assert "blocks 16x4" in capsys.readouterr().out


def cli_kernels():
    from pycompress import kernels

    return kernels


def test_a_folder_that_cannot_be_written_is_a_mistake_of_the_call(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYCOMPRESS_CACHE", str(tmp_path / "file" / "inside"))
    monkeypatch.setattr(breakeven, "measure", lambda: [BreakEven(1, 1, 1, (16, 4), 0.4)])
    monkeypatch.setattr(cli_kernels(), "set_num_threads", lambda n: None)
    assert cli.main(["calibrate"]) == 2
    assert "pycompress: " in capsys.readouterr().err


def pruned_on_a_grid():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        model[0].weight *= torch.from_numpy(in_blocks((16, 4), 0.8) != 0)
    pc.quantize_(model, pc.Int8())
    return model


def test_pack_tries_the_sparse_int8_weight_and_measures(monkeypatch):
    model = pruned_on_a_grid()
    x = torch.randn(4, 256)
    clock = itertools.count()
    tried = []
    from pycompress import linears

    candidates = linears.candidates

    def noted(*arguments, **options):
        found = candidates(*arguments, **options)
        tried.append([packed.format for packed in found[0]])
        return found

    monkeypatch.setattr(linears, "candidates", noted)
    packed = pc.pack(model, x, _clock=lambda: float(next(clock)))
    assert tried[0][:2] == [Int8(), Sparse((16, 4), Int8())] and tried[1] == [Int8()]
    assert type(packed[0]).__name__ == "Linear"  # by that clock nothing is faster
    breakeven.write([BreakEven(128, 256, 4, (16, 4), 2.0)])
    pc.pack(model, x, _clock=lambda: float(next(clock)))
    assert tried[2][0] == Int8() and Sparse((16, 4), Int8()) not in tried[2]
    forced = pc.pack(model, x, Sparse((16, 4), Int8()), force=True)
    assert forced[0].format == Sparse((16, 4), Int8())
    assert torch.equal(forced(x), pc.pack(model, x, Int8(), force=True)(x))
