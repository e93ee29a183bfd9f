"""How much each weight matters: ``score(model, layers) -> {name: scores}``, higher = keep.

A score is any function of that form; ``layers`` maps names to modules, and the result holds one tensor in the shape of
each layer's weight, or for ``pc.simplify`` one value for each output. A weight of a layer that holds several (LSTM,
GRU, attention) comes in the form of a layer: its ``weight`` is that parameter. Scores that need data are made by a
function that takes it: ``taylor(data, loss)``.

Every score here leaves the model bit-identical: parameters, gradients, training flags, batch statistics and torch's
random numbers. Measured scores run the model in eval mode. ``loss(outputs, targets)`` returns the mean over the items
of a batch as a scalar tensor, as ``torch.nn.functional.cross_entropy`` does.
"""

from __future__ import annotations

from .channels import ablation, activation, bn_scale
from .measured import fisher, snip, taylor, wanda
from .running import Loss, Score
from .weights import l2, lamp, magnitude, random

__all__ = [
    "Loss",
    "Score",
    "ablation",
    "activation",
    "bn_scale",
    "fisher",
    "l2",
    "lamp",
    "magnitude",
    "random",
    "snip",
    "taylor",
    "wanda",
]
