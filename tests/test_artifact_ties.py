"""Parameters and modules that are shared: stored once, and shared again after loading."""

from dataclasses import replace

import pytest
import torch
from test_artifact import assert_same, prune, put_on_grid, saved
from torch import nn

from pycompress import artifact, grids, kernels
from pycompress.formats import Int8
from pycompress.layers import LayerDecision, PackedLinear, decisions


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


def test_stored_bytes_count_a_tied_parameter_once():
    apart, tied = artifact.stored_bytes(Tied(tie=False)), artifact.stored_bytes(Tied())
    assert apart - tied > (60 * 30 + 30 * 30) * 4
