"""LSTM and GRU in compiled and exported models: the operators, their bits, and hostile bytes of weights."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_recurrent import KINDS, flat, layer_of, same
from test_recurrent_models import INPUTS, Tagger
from test_torch_ops import forged
from torch import nn
from torch._subclasses import FakeTensorMode

import pycompress as pc
from pycompress import kernels, weight_bytes
from pycompress.formats import Int8
from pycompress.recurrent import packed_of


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_passes_torchs_own_checks(kind):
    packed = packed_of(layer_of(kind, num_layers=2, bidirectional=True))
    numbers, x = [part.number for part in packed.packed], torch.randn(3, 2, 12)
    with torch.no_grad():
        y, *given = flat(packed(x))
    sizes = [21] * len(given)
    for states in ([], given):
        arguments = x, states, None, numbers, sizes, True
        assert set(torch.library.opcheck(torch.ops.pycompress.recurrent_here, arguments).values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="numbers must be"):
        torch.ops.pycompress.recurrent_here(x, [], None, [10**9], sizes, False)
    with pytest.raises(ValueError, match=r"sizes must be \[21"):
        torch.ops.pycompress.recurrent_here(x, [], None, numbers, [22], True)
    with FakeTensorMode() as mode:  # code that torch kept on disk knows nothing but the call
        shapes = torch.ops.pycompress.recurrent_here(mode.from_tensor(x), [], None, [10**9] * 4, sizes, True)
    assert [each.shape for each in shapes] == [each.shape for each in (y, *given)]


@torch.no_grad()
def test_a_compiled_model_has_no_graph_break_and_the_same_bits():
    torch._dynamo.reset()
    eager = pc.quantize_dynamic(Tagger().eval())
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for shape in ((3, 5, 6), (1, 2, 6)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), eager(x))
        assert torch.equal(compiled(x.bfloat16()), eager(x.bfloat16()))
    gru = packed_of(layer_of("gru", bidirectional=True))
    compiled = torch.compile(gru, fullgraph=True, backend="aot_eager")
    x, state = torch.randn(4, 12), torch.randn(2, 21)
    same(compiled(x), gru(x))
    same(compiled(x, state), gru(x, state))


@torch.no_grad()
def test_a_compiled_model_takes_packed_sequences():
    torch._dynamo.reset()
    eager = pc.quantize_dynamic(Tagger().eval())
    compiled = torch.compile(eager, backend="eager")
    assert torch.equal(compiled(*INPUTS[1]), eager(*INPUTS[1]))


EXPORTED = {
    "lstm": lambda: packed_of(layer_of("lstm", num_layers=2, bidirectional=True, batch_first=True)),
    "projected": lambda: packed_of(layer_of("lstm", proj_size=7)),
    "gru": lambda: packed_of(layer_of("gru", bias=False)),
}


def first_of(model):
    """A program has no tuples of states: the output alone."""
    return nn.Sequential(model, Output())


class Output(nn.Module):
    def forward(self, result):
        return result[0]


@pytest.mark.parametrize("kind", EXPORTED)
@torch.no_grad()
def test_an_exported_program_keeps_the_bits(tmp_path, kind):
    eager, path = first_of(EXPORTED[kind]()), tmp_path / "model.pt2"
    sizes = {side: torch.export.Dim(f"n{side}", min=2) for side in (0, 1)}
    program = torch.export.export(eager, (torch.randn(4, 3, 12),), dynamic_shapes=({**sizes},), strict=False)
    torch.export.save(program, path)
    for again in (program, program.run_decompositions(), torch.export.load(path)):
        for shape in ((4, 3, 12), (2, 7, 12)):
            x = torch.randn(shape)
            assert torch.equal(again.module()(x), eager(x))
    x = torch.randn(5, 2, 12)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", eager(x).numpy())
    code = f"""
import numpy as np, torch, pycompress.torch_ops
x, y = (torch.from_numpy(np.load({str(tmp_path)!r} + name)) for name in ("/x.npy", "/y.npy"))
assert torch.equal(torch.export.load({str(path)!r}).module()(x), y)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bytes_of_weights_pass_torchs_own_checks_and_hostile_ones_are_refused():
    packed = packed_of(layer_of("lstm", num_layers=2))
    content = [weight_bytes.to_bytes(part) for part in packed.packed]
    x, sizes = torch.randn(3, 2, 12), [21, 21]
    arguments = x, [], None, content, sizes, False
    assert set(torch.library.opcheck(torch.ops.pycompress.recurrent, arguments).values()) == {"SUCCESS"}
    with torch.no_grad():
        same([torch.ops.pycompress.recurrent(*arguments)[0], ()], [packed(x)[0], ()])
    again = weight_bytes.from_bytes(content[1]).canonical()
    for name, array in packed.packed[1].canonical().items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(ValueError, match=r"packed\[1\] must have cell and sizes \('lstm', 21"):
        torch.ops.pycompress.recurrent(x, [], None, [content[0], content[0]], sizes, False)
    with pytest.raises(ValueError, match="packed must hold 2 of each layer, got 1"):
        torch.ops.pycompress.recurrent(x, [], None, content[:1], sizes, True)
    linear = weight_bytes.to_bytes(kernels.pack(torch.ones(2, 12), Int8()))
    with pytest.raises(ValueError, match="packed must be the bytes of recurrent weights"):
        torch.ops.pycompress.recurrent(x, [], None, [linear], sizes, False)
    with pytest.raises(ValueError, match="its shape must be"):
        torch.ops.pycompress.linear(x, content[0], 21, None)
    for change in (
        lambda header: header.update(cell="rnn"),
        lambda header: header.update(cell=["gru"]),
        lambda header: header.update(cell="gru"),
        lambda header: header.update(input_scale=-1.0),
        lambda header: header.update(format={"name": "Float32"}),
        lambda header: header["arrays"].pop("scale_hh") and None,
        lambda header: header["arrays"].update(scale_ih=["int8", [336]]),
        lambda header: header["arrays"].update(more=["int8", [0]]),
    ):
        with pytest.raises(ValueError, match="got wrong ones"):
            weight_bytes.from_bytes(forged(change, packed=packed.packed[0]))
