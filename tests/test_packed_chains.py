"""Packed layers that follow each other in a Sequential run in one call, with the bits of the layers one by one."""

import copy
import pickle

import pytest
import torch
from torch import nn

import pycompress as pc
from pycompress import artifact, kernels
from pycompress.chains import ChainedSequential, chain_, chained
from pycompress.explaining import explain
from pycompress.formats import Int8, Sparse, has_int8_weights
from pycompress.kernels import ops
from pycompress.layers import PackedLinear
from pycompress.packing import pack

pytestmark = pytest.mark.skipif("native" not in kernels.available_backends(), reason="the native kernels are not built")

X = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))


def mlp(second=nn.ReLU):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 5), nn.Softmax(-1), nn.Linear(5, 3))
    return nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Dropout(), nn.Linear(9, 7), second(), inner)


def one_by_one(model, x):
    for module in model:
        x = one_by_one(module, x) if isinstance(module, nn.Sequential) else module(x)
    return x


@pytest.fixture
def calls(monkeypatch):
    """Number of layers in each call of a chain."""
    made = []
    original = ops.chain_call

    def chain_call(packed, activations):
        call = original(packed, activations)
        return call and (lambda x: (made.append(len(packed)), call(x))[1])

    monkeypatch.setattr("pycompress.chains.chain_call", chain_call)
    return made


def test_chains_are_found_and_give_the_same_bits(calls):
    model = mlp()
    packed = pack(model, X, Int8(), force=True)
    assert (packed.chains, packed[5].chains) == ((("0", "3"),), (("0", "2"),))
    assert [name for name, _ in packed.named_modules()] == [name for name, _ in model.named_modules()]
    for x in (X, X[0], X[:0], X.view(2, 3, 12), torch.full((2, 12), torch.nan)):
        calls.clear()
        assert torch.equal(packed(x).nan_to_num(), one_by_one(packed, x).nan_to_num())
        assert calls == [2, 2]
    calls.clear()
    for x in (X.half(), X.bfloat16(), X.T.contiguous().T):
        assert torch.equal(packed(x), one_by_one(packed, x))
    with pytest.raises(ValueError, match="x must have 12 features"):
        packed(X[:, :5])
    with pytest.raises(ValueError, match="x must not require grad: PackedLinear"):
        packed(X.clone().requires_grad_())
    with pytest.raises(TypeError, match="x must be a torch CPU tensor"):
        packed(X.numpy())


def test_copies_pickles_states_and_files_keep_chains(tmp_path, calls):
    packed = pack(mlp(), X, Int8(), force=True)
    y = packed(X)
    artifact.save(packed, tmp_path / "model")
    twins = [copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), artifact.load(tmp_path / "model", into=mlp)]
    for twin in twins:
        calls.clear()
        assert torch.equal(twin(X), y)
        assert calls == [2, 2]
        assert twin.state_dict().keys() == packed.state_dict().keys()
        assert artifact.to_bytes(twin) == (tmp_path / "model").read_bytes()
    other = mlp()
    other.load_state_dict({key: value + 1 for key, value in other.state_dict().items()})
    changed = pack(other, X, Int8(), force=True)
    packed.load_state_dict(changed.state_dict())
    assert torch.equal(packed(X), changed(X))
    assert torch.equal(packed(X), one_by_one(packed, X))


def hook(module, args, output):
    return output + 1


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda m: m[0].register_forward_hook(hook), [2]),
        (lambda m: m[1].register_forward_hook(hook), [2]),
        (lambda m: m[3].register_forward_pre_hook(lambda module, args: (args[0] * 2,)), [2]),
        (lambda m: m.register_forward_hook(hook), [2, 2]),
        (lambda m: m.train(), [2]),
        (lambda m: m.__setitem__(3, nn.Linear(9, 7).requires_grad_(False)), [2]),
        (lambda m: m.__setitem__(1, nn.Tanh()), [2]),
        (lambda m: m.__delitem__(4), [2, 2]),
        (lambda m: setattr(m[0], "activation", "relu"), [2, 2]),
        (lambda m: setattr(m[0], "forward", lambda x: x[..., :9]), [2]),
        (lambda m: m[5].__delitem__(0), [2]),
    ],
)
def test_what_is_changed_later_counts(calls, change, made):
    packed = pack(mlp(), X, Int8(), force=True)
    packed(X)
    change(packed)
    calls.clear()
    torch.manual_seed(3)
    y = packed(X)
    assert calls == made
    if not packed._forward_hooks:
        torch.manual_seed(3)
        assert torch.equal(y, one_by_one(packed, X))


def test_hooks_of_all_modules_are_called(calls):
    packed = pack(mlp(), X, Int8(), force=True)
    seen = []
    calls.clear()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        packed(X)
    finally:
        handle.remove()
    assert not calls
    assert {module for module in packed.modules() if isinstance(module, PackedLinear)} <= set(seen)


@pytest.mark.parametrize(("faster", "kind"), [(True, ChainedSequential), (False, nn.Sequential)])
def test_only_what_is_measured_to_be_faster_is_chained(monkeypatch, faster, kind):
    now = [0.0]

    def slow(function, seconds):
        def run(*arguments):
            now[0] += seconds
            return function(*arguments)

        return run

    def chain_call(packed, activations):
        call = original(packed, activations)
        return call and slow(call, 2.0**-14 * (1.5 if faster else 2))

    original = ops.chain_call
    monkeypatch.setattr(PackedLinear, "forward", slow(PackedLinear.forward, 2.0**-14))
    monkeypatch.setattr(nn.Linear, "forward", slow(nn.Linear.forward, 2.0**-13))
    monkeypatch.setattr("pycompress.chains.chain_call", chain_call)
    packed = pack(nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7)), X, Int8(), _clock=lambda: now[0])
    assert type(packed) is kind
    assert [type(module).__name__ for module in packed] == ["PackedLinear", "Identity", "PackedLinear"]


@pytest.mark.parametrize("faster", [True, False])
def test_layers_that_are_faster_sparse_are_joined_where_one_call_is_faster_still(monkeypatch, tmp_path, faster):
    now = [0.0]

    def forward(self, x):
        now[0] += 2.0**-14 * (1 if self.packed.format == Sparse() else 1.5)
        return original(self, x)

    def dense(self, x):
        now[0] += 2.0**-13
        return plain(self, x)

    def chain_call(packed, activations):
        call = single(packed, activations)

        def run(x):
            joined = faster and all(has_int8_weights(each.format) for each in packed)
            now[0] += 2.0**-14 * (1.5 if joined else 2.5)
            return call(x)

        return call and run

    original, plain, single = PackedLinear.forward, nn.Linear.forward, ops.chain_call
    monkeypatch.setattr(PackedLinear, "forward", forward)
    monkeypatch.setattr(nn.Linear, "forward", dense)
    monkeypatch.setattr("pycompress.chains.chain_call", chain_call)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7))
    pc.prune_(model, sparsity=0.8, across_layers=False)
    pc.quantize_(model, Int8())
    packed = pack(model, X, _clock=lambda: now[0])
    formats = [packed[i].packed.format for i in (0, 2)]
    if not faster:
        assert type(packed) is nn.Sequential and Sparse() in formats
        return
    assert packed.chains == (("0", "2"),) and all(map(has_int8_weights, formats))
    assert all("with the layers beside it in one call" in d.reason for d in explain(packed))
    assert torch.equal(packed(X), one_by_one(packed, X))
    artifact.save(packed, tmp_path / "model")
    again = artifact.load(tmp_path / "model", into=lambda: nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7)))
    assert torch.equal(again(X), packed(X)) and again.chains == packed.chains


def test_what_cannot_run_in_one_call_is_not_chained():
    for format, backend in ((Sparse(), "reference"), (Int8(), "reference")):
        with kernels.use_backend(backend):
            assert type(pack(mlp(), X, format, force=True)) is nn.Sequential
    packed = PackedLinear(kernels.pack(torch.eye(3), Int8()))
    wide = PackedLinear(kernels.pack(torch.ones(3, 4), Int8()))
    for layers in ([packed], [packed, nn.Tanh(), packed], [wide, wide], [packed, nn.Linear(3, 3)]):
        model = nn.Sequential(*layers).eval()
        chain_(model, {}, force=True)
        assert type(model) is nn.Sequential
    with kernels.use_isa("scalar"):
        mixed = nn.Sequential(packed, PackedLinear(kernels.pack(torch.eye(3), Int8()))).eval()
    chain_(mixed, {}, force=True)
    assert (type(mixed) is nn.Sequential) == (kernels.isa_levels() != ["scalar"])


def test_a_chained_file_runs_on_other_backends(tmp_path):
    packed = pack(mlp(), X, Int8(), force=True)
    artifact.save(packed, tmp_path / "model")
    with kernels.use_backend("reference"):
        again = artifact.load(tmp_path / "model", into=mlp)
    assert again.chains == packed.chains
    assert torch.equal(again(X), packed(X))


def test_compiled_chains_have_the_same_bits():
    packed = pack(mlp(), X, Int8(), force=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(packed, fullgraph=True)(X), packed(X))
        program = torch.export.export(packed, (X,))
    torch.testing.assert_close(program.module()(X), packed(X))


def test_wrong_chains():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    for bad in ((("0",),), (("1", "0"),), (("0", "2"),), (("0", "1"), ("0", "1")), ((),)):
        with pytest.raises(ValueError, match="chains must hold keys"):
            chained(model, bad)
    with pytest.raises(TypeError, match=r"sequential must be an nn\.Sequential, got Linear"):
        chained(nn.Linear(1, 1), ())
    assert type(chained(model, ())) is nn.Sequential


def test_explain_lists_chained_layers():
    assert [decision.name for decision in explain(pack(mlp(), X, Int8(), force=True))] == [
        "0",
        "3",
        "5.0",
        "5.2",
        "5.4",
    ]
