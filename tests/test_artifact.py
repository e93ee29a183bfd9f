"""Saving and loading: what goes in comes out, bit for bit, small; what does not fit is named and changes nothing."""

import copy
from itertools import pairwise

import pytest
import safetensors.torch
import torch
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


def test_a_model_loaded_in_inference_mode_can_be_trained(tmp_path):
    path = saved(mlp(), tmp_path)
    into = mlp(seed=1)
    with torch.inference_mode():
        artifact.load(path, into=into)
    into(torch.ones(1, 20)).sum().backward()
    assert into[0].weight.grad is not None


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
