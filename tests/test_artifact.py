"""Saving and loading: what goes in comes out, bit for bit, small; what does not fit is named and changes nothing."""

import copy
import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from golden import version1
from torch import nn

from pycompress import artifact, grids, kernels, masks
from pycompress.artifact.container import DIGEST
from pycompress.formats import Affine, FixedPoint, Int8, Sparse
from pycompress.layers import LayerDecision, PackedLinear, decisions, set_decision


def mlp(sizes=(20, 30, 10), seed=0):
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn(channels=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, 3, groups=channels),
        nn.Flatten(),
        nn.Linear(channels * 4, 5),
    )


def prune(module, fraction, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks.attach_(module, "weight", torch.rand(module.weight.shape, generator=generator) >= fraction)


def put_on_grid(layer, format):
    quantized = kernels.quantize(
        layer.weight.detach(),
        format.bits if isinstance(format, Affine) else 8,
        scheme="affine" if isinstance(format, Affine) else "symmetric",
        signed=not isinstance(format, Affine) or format.signed,
        axis=0 if not isinstance(format, Affine) or format.per_channel else None,
    )
    scale, zero_point = quantized.scale, quantized.zero_point
    if isinstance(format, FixedPoint):
        scale, zero_point = torch.tensor(2.0**-format.bits), torch.tensor(0.0)
        integers = torch.round(layer.weight.detach() / scale)
    else:
        integers = quantized.values
    record = grids.GridRecord(format, scale, zero_point, 0.5 if isinstance(format, Int8) else None)
    layer.weight.data = grids.weight_from(integers, record)
    grids.set_grid(layer, record)


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def assert_same(model, expected):
    found, wanted = model.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name


def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    artifact.save(model, path)
    return path


def test_dense_models_come_back_bit_for_bit(tmp_path):
    for model, other in ((mlp(), mlp(seed=1)), (cnn(), cnn(seed=1))):
        model[0].weight.data[0, 0] = -0.0
        path = saved(model, tmp_path)
        again = artifact.load(path, into=other)
        assert again is other
        assert_same(again, model)
        assert again.training and again[0].weight.requires_grad
        assert_same(artifact.load(path, into=lambda like=other: copy.deepcopy(like)), model)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
    ],
)
def test_buffers_of_any_dtype_and_shape(tmp_path, dtype):
    torch.manual_seed(0)
    values = torch.randint(0, 2, (40, 30)).to(dtype)
    sparse = (torch.rand(40, 30) < 0.05).to(dtype)

    def build(fill):
        module = nn.Module()
        for name, tensor in (("full", values), ("sparse", sparse), ("scalar", values[0, 0]), ("empty", values[:0])):
            module.register_buffer(name, tensor if fill else torch.zeros(tensor.shape).to(dtype))
        module.register_buffer("transient", torch.ones(2), persistent=False)
        return module

    model = build(True)
    path = saved(model, tmp_path)
    assert_same(artifact.load(path, into=build(False)), model)
    assert {t.name: t.coding for t in artifact.describe(path).tensors}["sparse"] == "nonzeros"


def test_special_numbers_keep_their_bits(tmp_path):
    model = nn.Linear(40, 40)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    assert_same(artifact.load(saved(model, tmp_path), into=nn.Linear(40, 40)), model)


def test_the_file_decides_the_floating_dtype(tmp_path):
    model = mlp().to(torch.bfloat16)
    again = artifact.load(saved(model, tmp_path), into=mlp(seed=1))
    assert_same(again, model)


def test_masks_become_nonzeros_and_the_model_is_not_changed(tmp_path):
    model = mlp((100, 100, 10))
    prune(model[0], 0.95)
    model[0].weight.data.add_(1)  # by hand: the mask holds at the next forward, and in the file
    before = copy.deepcopy(model)
    path = saved(model, tmp_path)
    assert_same(model, before)
    assert masks.mask_of(model[0]) is not None
    again = artifact.load(path, into=mlp((100, 100, 10), seed=1))
    assert masks.masked(again) == {}
    pruned = masks.finalize_(before)
    assert_same(again, pruned)
    stored = {t.name: t for t in artifact.describe(path).tensors}["0.weight"]
    nonzeros = int((pruned[0].weight != 0).sum())
    assert (stored.coding, stored.shape, stored.dtype) == ("nonzeros", (100, 100), "F32")
    assert nonzeros * 5 <= stored.bytes <= nonzeros * 5 + 10


def test_masks_of_the_filled_model_are_dropped(tmp_path):
    model, other = mlp(), mlp(seed=1)
    prune(other[0], 0.9)
    again = artifact.load(saved(model, tmp_path), into=other)
    again(torch.zeros(1, 20))
    assert_same(again, model)


@pytest.mark.parametrize(
    "format",
    [Int8(), Affine(bits=4), Affine(bits=8, signed=True, per_channel=True), Affine(bits=12), FixedPoint(6)],
    ids=str,
)
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.9])
def test_weights_on_a_grid_are_stored_as_integers(tmp_path, format, fraction):
    model = mlp((200, 50, 10))
    put_on_grid(model[0], format)
    if fraction:
        prune(model[0], fraction)
    path = saved(model, tmp_path)
    again = artifact.load(path, into=mlp((200, 50, 10), seed=1))
    assert torch.equal(again[0].weight, model[0].weight)
    record, wanted = grids.grid_of(again[0]), grids.grid_of(model[0])
    assert (record.format, record.input_scale) == (wanted.format, wanted.input_scale)
    assert torch.equal(record.scale, wanted.scale) and torch.equal(record.zero_point, wanted.zero_point)
    assert grids.grid_of(again[2]) is None
    stored = {t.name: t for t in artifact.describe(path).tensors}["0.weight"]
    wide = 2 if isinstance(format, Affine) and format.bits > 8 else 1
    kept = int((model[0].weight != 0).sum()) if fraction == 0.9 else 10000
    assert stored.bytes <= kept * (wide + (1 if fraction else 0)) + 50 * 8 + 20
    assert repr(format) in stored.coding
    assert torch.equal(grids.integers(again[0].weight, record), grids.integers(model[0].weight, wanted))


def test_a_weight_trained_since_it_was_quantized_is_stored_as_it_is(tmp_path):
    model = mlp()
    put_on_grid(model[0], Int8())
    model[0].weight.data[3, 3] += 0.001
    again = artifact.load(saved(model, tmp_path), into=mlp(seed=1))
    assert_same(again, model)
    assert grids.grid_of(again[0]) is None


def test_a_grid_of_a_half_precision_weight(tmp_path):
    model = nn.Linear(64, 8).half()
    scale = torch.full((8,), 2.0**-6)
    record = grids.GridRecord(Int8(), scale, torch.zeros(8))
    model.weight.data = (torch.randint(-127, 128, (8, 64)) * scale[:, None]).half()
    grids.set_grid(model, record)
    path = saved(model, tmp_path)
    assert_same(artifact.load(path, into=nn.Linear(64, 8)), model)
    assert "Int8()" in artifact.describe(path).tensors[1].coding


def packed_mlp():
    model = mlp((40, 30, 20, 10)).eval().requires_grad_(False)
    decision = LayerDecision("0", "Linear+ReLU", Int8(), "native/avx2", 32, 10.5, 4.25, 2.5, 2.25, 2.75, "faster")
    model[0] = PackedLinear(
        kernels.pack(model[0].weight, Int8(), model[0].bias, input_scale=0.03), activation="relu", decision=decision
    )
    model[1] = nn.Identity()
    weight = model[2].weight * (torch.rand(20, 30) < 0.1)
    model[2] = PackedLinear(kernels.pack(weight, Sparse(), model[2].bias))
    set_decision(model[4], LayerDecision("4", "Linear", rows=32, speedup=0.5, reason="slower"))
    return model


def test_packed_layers_come_back_with_their_decisions(tmp_path):
    model = packed_mlp()
    path = saved(model, tmp_path)
    into = mlp((40, 30, 20, 10), seed=1)
    again = artifact.load(path, into=into)
    assert again is into
    x = torch.randn(7, 40)
    assert torch.equal(again(x), model(x))
    assert [type(layer) for layer in again] == [type(layer) for layer in model]
    assert (again[0].activation, again[0].packed.input_scale) == ("relu", model[0].packed.input_scale)
    assert decisions(again) == decisions(model)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert not any(module.training for module in again.modules())
    assert_same(again, model)
    assert torch.equal(artifact.load(path, into=model)(x), again(x))
    assert artifact.describe(path).layers["0"].packed.format == Int8()
    assert artifact.to_bytes(again) == path.read_bytes()


def test_sparse_integers_stay_integers(tmp_path):
    weight = (torch.randint(-127, 128, (30, 40)) * (torch.rand(30, 40) < 0.2)).to(torch.int8)
    scale = torch.rand(30) + 0.1
    model = nn.Sequential(PackedLinear(kernels.pack(weight, Sparse(), None, scale))).eval()
    path = saved(model, tmp_path)
    again = artifact.load(path, into=nn.Sequential(nn.Linear(40, 30, bias=False)))
    assert torch.equal(torch.from_numpy(again[0].packed.canonical_weight()), weight)
    assert {t.name: t.dtype for t in artifact.describe(path).tensors} == {"0.weight": "I8", "0.scale": "F32"}


def test_a_model_that_is_one_packed_layer(tmp_path):
    dense = nn.Linear(8, 4)
    model = PackedLinear(kernels.pack(dense.weight.detach(), Int8(), dense.bias.detach()))
    path = saved(model, tmp_path)
    again = artifact.load(path, into=dense)
    assert isinstance(again, PackedLinear) and isinstance(dense, nn.Linear)
    assert_same(again, model)


class Tied(nn.Module):
    def __init__(self, tie=True, share=False):
        super().__init__()
        self.embedding = nn.Embedding(60, 30)
        self.inner = nn.Linear(30, 30)
        self.again = self.inner if share else nn.Linear(30, 30)
        self.head = nn.Linear(30, 60, bias=False)
        if tie:
            self.head.weight = self.embedding.weight
            self.again.weight = self.inner.weight


@pytest.mark.parametrize("tie_before", [True, False])
def test_tied_parameters_are_stored_once_and_tied_again(tmp_path, tie_before):
    model = Tied()
    path = saved(model, tmp_path)
    description = artifact.describe(path)
    assert description.tied == {"again.weight": "inner.weight", "head.weight": "embedding.weight"}
    again = artifact.load(path, into=Tied(tie=tie_before))
    assert again.head.weight is again.embedding.weight and again.again.weight is again.inner.weight
    assert again.again.bias is not again.inner.bias
    assert_same(again, model)


def test_what_the_file_keeps_apart_is_untied(tmp_path):
    model = Tied(tie=False)
    path = saved(model, tmp_path)
    again = artifact.load(path, into=Tied(tie=True))
    assert again.head.weight is not again.embedding.weight
    assert_same(again, model)
    with pytest.raises(artifact.ArtifactError, match=r"again\.bias, which is inner\.bias in the model"):
        artifact.load(path, into=Tied(tie=False, share=True))


def test_a_shared_module_is_packed_once(tmp_path):
    model = Tied(share=True).eval()
    model.inner = model.again = PackedLinear(
        kernels.pack(model.inner.weight.detach(), Int8(), model.inner.bias.detach()),
        decision=LayerDecision("inner", "Linear", Int8(), reason="asked for"),
    )
    path = saved(model, tmp_path)
    again = artifact.load(path, into=Tied(share=True))
    assert again.inner is again.again and isinstance(again.inner, PackedLinear)
    assert decisions(again) == decisions(model)
    apart = artifact.load(path, into=Tied(tie=False))
    assert apart.inner.packed is apart.again.packed
    assert sum(t.bytes for t in artifact.describe(path).tensors) < 60 * 30 * 4 + 30 * 30 + 30 * 8 + 1


def test_tied_weights_keep_mask_and_grid_of_any_owner(tmp_path):
    model = Tied()
    put_on_grid(model.again, Int8())
    prune(model.again, 0.5)
    again = artifact.load(saved(model, tmp_path), into=Tied())
    assert torch.equal(again.inner.weight, model.again.weight)
    for layer in (again.inner, again.again):
        assert grids.integers(layer.weight, grids.grid_of(layer)) is not None


def test_layers_that_share_a_weight_keep_their_own_input_scales(tmp_path):
    model = Tied()
    put_on_grid(model.inner, Int8())
    grids.set_grid(model.again, replace(grids.grid_of(model.inner), input_scale=0.25))
    again = artifact.load(saved(model, tmp_path), into=Tied())
    assert [grids.grid_of(layer).input_scale for layer in (again.inner, again.again)] == [0.5, 0.25]


def test_removed_channels_are_restored_by_shape(tmp_path):
    model = cnn(5)
    path = saved(model, tmp_path)
    again = artifact.load(path, into=cnn(8))
    assert_same(again, model)
    assert repr(again) == repr(model)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), model(x))


def test_removed_neurons_of_packed_and_quantized_layers(tmp_path):
    small, large = mlp((40, 12, 9, 10)), mlp((40, 30, 20, 10), seed=1)
    put_on_grid(small[2], Int8())
    small[0] = PackedLinear(kernels.pack(small[0].weight.detach(), Int8(), small[0].bias.detach()))
    again = artifact.load(saved(small, tmp_path), into=large)
    assert (again[2].in_features, again[2].out_features, again[4].in_features) == (12, 9, 9)
    x = torch.randn(3, 40)
    assert torch.equal(again(x), small.eval()(x))


def test_everything_that_does_not_fit_is_named_and_nothing_changes(tmp_path):
    path = saved(
        nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(7), nn.Linear(3, 2), nn.Conv1d(4, 4, 3, groups=2)), tmp_path
    )
    into = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(3, 2, bias=False), nn.Conv1d(4, 4, 5), nn.Linear(1, 1)
    )
    into[2].weight.requires_grad_(False)
    before = copy.deepcopy(into)
    with pytest.raises(artifact.ArtifactError) as caught:
        artifact.load(path, into=into)
    message = str(caught.value)
    missing, unexpected, mismatched = message.split("; ")
    assert missing.endswith("missing in the file: 4.bias, 4.weight")
    assert unexpected == "unexpected in the file: 2.bias"
    for name in ("0.weight, (9, 4) in the file and (8, 4)", "0.bias", "1.weight", "1.bias", "3.weight", "3, 2 groups"):
        assert name in mismatched, name
    assert "2.weight" not in message
    assert_same(into, before)
    assert repr(into) == repr(before) and [p.requires_grad for p in into.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]


def test_dtypes_of_another_kind_do_not_fit(tmp_path):
    module, other = nn.Module(), nn.Module()
    module.register_buffer("steps", torch.tensor(3))
    other.register_buffer("steps", torch.tensor(3.0))
    with pytest.raises(artifact.ArtifactError, match=r"steps, torch.int64 in the file and torch.float32 in the model"):
        artifact.load(saved(module, tmp_path), into=other)


def test_packed_files_need_linear_layers(tmp_path):
    path = saved(packed_mlp(), tmp_path)
    into = mlp((40, 30, 20, 10))
    into[0] = nn.Conv1d(40, 30, 1)
    with pytest.raises(artifact.ArtifactError, match=r"0, a packed linear layer in the file and Conv1d in the model"):
        artifact.load(path, into=into)
    with pytest.raises(artifact.ArtifactError, match=r"0, a packed layer of \(30, 40\) in the file"):
        artifact.load(path, into=mlp((39, 30, 20, 10)))
    with pytest.raises(artifact.ArtifactError, match=r"missing in the file: 6\.bias, 6\.weight"):
        artifact.load(path, into=mlp((40, 30, 20, 10, 5)))
    dense = saved(mlp((40, 30, 20, 10)), tmp_path)
    with pytest.raises(artifact.ArtifactError, match="0, dense in the file and packed in the model"):
        artifact.load(dense, into=packed_mlp())


def test_models_that_cannot_be_stored_are_refused_with_all_names(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    model[2].register_buffer("wide", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(artifact.ArtifactError) as caught:
        artifact.save(model, tmp_path / "a")
    for name in (
        "0.weight is not init",
        "1.weight is on the meta",
        "1.bias is on",
        "2.wide is torch.strided torch.complex",
    ):
        assert name in str(caught.value)
    with pytest.raises(artifact.ArtifactError, match="_extra_state is no parameter or buffer"):
        artifact.save(Extra(2, 2), tmp_path / "a")
    module = nn.Module()
    module.a = nn.Module()
    module.a.register_buffer("b", torch.eye(90))
    module.a.register_buffer("b:gaps", torch.zeros(1))
    with pytest.raises(artifact.ArtifactError, match=r"must not have a tensor named 'a\.b:gaps'"):
        artifact.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path):
    path = saved(mlp(), tmp_path)
    for call, name in (
        (lambda: artifact.save({}, path), "model"),
        (lambda: artifact.save(mlp(), 3), "path"),
        (lambda: artifact.save(mlp(), None), "path"),
        (lambda: artifact.load(None, into=mlp()), "path"),
        (lambda: artifact.load(path, into={}), "into"),
        (lambda: artifact.load(path, into=lambda: 3), "into"),
        (lambda: artifact.describe(3), "path"),
        (lambda: artifact.to_bytes(None), "model"),
        (lambda: artifact.stored_bytes(None), "model"),
    ):
        with pytest.raises(TypeError, match=f"^{name} must"):
            call()
    with pytest.raises(FileNotFoundError):
        artifact.load(tmp_path / "none", into=mlp())
    for bad in (tmp_path, Path("/dev/null")):
        with pytest.raises(artifact.ArtifactError, match="must be a regular file"):
            artifact.load(bad, into=mlp())
        with pytest.raises(artifact.ArtifactError, match="must be a regular file or new"):
            artifact.save(mlp(), bad)


def test_parameters_keep_their_identity_for_optimizers(tmp_path):
    model, other = mlp(), mlp(seed=1)
    held = list(other.parameters())
    artifact.load(saved(model, tmp_path), into=other)
    assert all(a is b for a, b in zip(held, other.parameters(), strict=True))


def test_a_model_without_memory_can_be_filled(tmp_path):
    model = cnn()
    path = saved(model, tmp_path)
    with torch.device("meta"):
        into = cnn()
    assert_same(artifact.load(path, into=into), model)


def test_other_programs_can_read_the_file(tmp_path):
    model = mlp()
    path = saved(model, tmp_path)
    tensors = safetensors.torch.load_file(path)
    assert tensors.pop(DIGEST).shape == (32,)
    assert {name: bits(t) for name, t in tensors.items()} == {n: bits(t) for n, t in model.state_dict().items()}


def test_names_in_any_script(tmp_path):
    model = nn.ModuleDict({"слой": nn.Linear(100, 100), 'a"\\b': nn.Linear(2, 2), "~": nn.Linear(1, 1)})
    prune(model["слой"], 0.99)
    again = artifact.load(saved(model, tmp_path), into=copy.deepcopy(model))
    assert_same(again, masks.finalize_(model))


def test_stored_bytes_of_plain_and_compressed_models(tmp_path):
    model = mlp((100, 100, 10))
    model[2].bias.data.zero_()
    plain = len(safetensors.torch.save(model.state_dict()))
    assert artifact.stored_bytes(model) == plain
    assert artifact.stored_bytes(Tied()) < plain + 60 * 30 * 4
    prune(model[0], 0.9)
    assert artifact.stored_bytes(model) == len(artifact.to_bytes(model)) == saved(model, tmp_path).stat().st_size
    assert artifact.stored_bytes(masks.finalize_(model)) < plain / 2


def compressed(sizes, sparsity):
    """An MLP as pruning, int8 and packing leave it, with decisions as long as they get."""
    model = mlp(sizes).eval()
    for index in range(0, len(model), 2):
        layer = model[index]
        prune(layer, sparsity if index < len(model) - 1 else 0.5, seed=index)
        masks.finalize_(layer)
        decision = LayerDecision(
            str(index), "Linear+ReLU", Int8(), "native/avx512vnni", 32, 123.456789012345, 23.456789012345,
            5.26315789473684, 5.16315789473684, 5.36315789473684, "faster: the 95 % interval of the speedup is above 1",
        )  # fmt: skip
        model[index] = PackedLinear(kernels.pack(layer.weight.detach(), Int8(), layer.bias.detach()), decision=decision)
    return model


def test_files_are_small():
    dense, small = mlp((64, 512, 512, 10)), compressed((64, 512, 512, 10), 0.94)
    assert artifact.stored_bytes(dense) >= 20 * artifact.stored_bytes(small)
    dense, small = mlp((784, 300, 100, 10)), compressed((784, 300, 100, 10), 0.95)
    assert artifact.stored_bytes(dense) >= 30 * artifact.stored_bytes(small)
    data = artifact.to_bytes(small)
    assert int.from_bytes(data[:8], "little") < 3000


def test_the_golden_file_of_version_1_is_read_for_ever():
    assert hashlib.sha256(version1.PATH.read_bytes()).hexdigest() == version1.SHA256
    expected, again = version1.build(), artifact.load(version1.PATH, into=version1.architecture)
    assert_same(again, expected)
    assert repr(again) == repr(expected)
    assert decisions(again) == decisions(expected)
    assert again["tied"].weight is again["pruned"].weight
    for name in ("int8", "affine", "fixed"):
        found, wanted = grids.grid_of(again[name]), grids.grid_of(expected[name])
        assert (found.format, found.input_scale) == (wanted.format, wanted.input_scale)
        assert torch.equal(found.scale, wanted.scale) and torch.equal(found.zero_point, wanted.zero_point)
    x = version1.numbers(9, 40)
    assert torch.equal(again["packed"](x), expected["packed"](x))
    assert {t.coding for t in artifact.describe(version1.PATH).tensors} == {
        "plain",
        "nonzeros",
        "Int8()",
        "FixedPoint(bits=6)",
        "Affine(bits=4, signed=False, per_channel=False) + nonzeros",
    }
