"""The digits of the demo (see DIGITS.md for source, citation and licence), and their division by writers."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import torch

Digits = tuple[torch.Tensor, torch.Tensor]

_LAST_FORMS = 1415


@cache
def _arrays() -> tuple[torch.Tensor, torch.Tensor]:
    with files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        images = torch.from_numpy(stored["images"].astype(np.float32) / 16)[:, None]
        labels = torch.from_numpy(stored["labels"].astype(np.int64))
    return images, labels


def digits() -> Digits:
    """Return the 1 797 handwritten digits of the UCI data set's test part, in the order of the file.

    The file is read once; each call returns tensors of its own.

    Returns
    -------
    images : [1797, 1, 8, 8] float32
        Pixels from 0 (white) to 1, the file's 0 to 16 divided by 16.
    labels : [1797] int64
        0 to 9.

    References
    ----------
    Alpaydin, E. and Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49. CC BY 4.0.

    Examples
    --------
    >>> images, labels = digits()
    >>> images.shape, labels[:5].tolist()
    (torch.Size([1797, 1, 8, 8]), [0, 1, 2, 3, 4])
    """
    images, labels = _arrays()
    return images.clone(), labels.clone()


def external_split() -> tuple[Digits, Digits]:
    """Divide the digits between forms: the first 1 415 items, and the last 382.

    The file is in blocks: the labels repeat the text of a form 14 times, and a form is most likely one person's. The
    cut lies where the twelfth form starts, so that no form is in both parts. The second part is therefore written by
    other people (13 people filled in 14 forms, so one of its three writers may also be in the first part: the file
    does not name writers). See DIGITS.md.

    Returns
    -------
    (images, labels) of the first part: [1415, 1, 8, 8] float32, [1415] int64
    (images, labels) of the second part: [382, 1, 8, 8] float32, [382] int64

    Examples
    --------
    >>> (train_images, _), (external_images, _) = external_split()
    >>> len(train_images), len(external_images)
    (1415, 382)
    """
    images, labels = digits()
    return (images[:_LAST_FORMS], labels[:_LAST_FORMS]), (images[_LAST_FORMS:], labels[_LAST_FORMS:])
