import hashlib
from importlib.resources import files

import numpy as np
import torch

from pycompress.demo import models
from pycompress.demo.data import digits, external_split


def test_the_file_is_the_published_data_unchanged():
    images, labels = digits()
    assert images.dtype == torch.float32 and images.shape == (1797, 1, 8, 8)
    assert labels.dtype == torch.int64 and labels.shape == (1797,)
    # The class counts that UCI states for the test part.
    assert np.bincount(labels.numpy()).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = (images * 16).numpy()
    assert pixels.min() == 0 and pixels.max() == 16 and (pixels == np.rint(pixels)).all()
    digest = hashlib.sha256(pixels.astype(np.uint8).tobytes() + labels.numpy().astype(np.uint8).tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_the_file_needs_no_pickle_and_its_licence_is_beside_it():
    with files("pycompress.demo").joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        assert {name: stored[name].dtype.name for name in stored} == {"images": "uint8", "labels": "uint8"}
    note = files("pycompress.demo").joinpath("DIGITS.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in note and "10.24432/C50P49" in note and "Alpaydin" in note


def test_a_caller_cannot_change_the_data_of_the_next():
    images, labels = digits()
    images.fill_(7)
    labels.fill_(7)
    assert digits()[0].max() == 1 and digits()[1][0] == 0


def test_the_external_part_starts_where_a_form_starts():
    (images, labels), (external_images, external_labels) = external_split()
    assert torch.equal(torch.cat([images, external_images]), digits()[0])
    assert torch.equal(torch.cat([labels, external_labels]), digits()[1])
    # A form's text starts with the ten digits three times, and all but a few forms hold the same text.
    assert external_labels[:30].tolist() == [*range(10)] * 3
    assert torch.equal(external_labels[:130], labels[:130])


def test_the_models_take_the_images():
    images, _ = digits()
    for make in (models.mlp, models.cnn):
        assert make()(images[:5]).shape == (5, 10)
