"""The two models of the demo, for images [n, 1, 8, 8] and ten classes."""

from __future__ import annotations

from torch import nn


def mlp() -> nn.Sequential:
    """Make an MLP 64-512-512-10 with ReLU (301 066 parameters), initialised from torch's global generator.

    Returns
    -------
    nn.Sequential
        Maps [n, 1, 8, 8] to [n, 10] logits.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in mlp().parameters())
    301066
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def cnn() -> nn.Sequential:
    """Make a CNN of two 3x3 convolutions (16 and 32 channels) and a linear layer of 64 (13 706 parameters).

    Each convolution is followed by ReLU and 2x2 max pooling. Initialised from torch's global generator.

    Returns
    -------
    nn.Sequential
        Maps [n, 1, 8, 8] to [n, 10] logits.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in cnn().parameters())
    13706
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
