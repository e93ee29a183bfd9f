"""What does not fit, and what cannot be stored: all of it is named, and nothing is changed."""

import copy
from pathlib import Path

import pytest
import torch
from test_artifact import assert_same, mlp, packed_mlp, saved
from torch import nn

from pycompress import artifact


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
