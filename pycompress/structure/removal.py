"""Removal of the least important outputs of layers, physically, from everything that is coupled with them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import scores
from ..calls import copy_of
from ..changes import change_numbers_
from ..data import Data, Tree, forward
from ..kernels.arrays import flag
from ..scores.running import check_arguments
from ..selection import Pattern, select, weight_or_self
from .blocks import check_options, without_blocks
from .call import Labels
from .cutting import cut_
from .following import follow
from .groups import families, mark_modules
from .importance import by_ablation, by_score, lost_units
from .labels import Coupling, Stack
from .operations import LOSERS
from .sizes import Attribute, attributes, changes
from .tracing import Seen, Trace, losing_layers, run, trace


def simplify(
    model: nn.Module,
    example_inputs: Tree,
    fraction: float | Mapping[str, float],
    score: scores.Score | None = scores.magnitude,
    include: Sequence[Pattern] | None = None,
    exclude: Sequence[Pattern] | None = None,
    *,
    blocks: int | Mapping[str, int] = 0,
    data: Data | None = None,
    loss: scores.Loss | None = None,
    progress: bool = True,
) -> nn.Module:
    """Return a smaller dense copy of a model, without its least important neurons, channels, hidden units and heads.

    Of a layer with n outputs, the ``min(round(fraction * n), n - 1)`` outputs of lowest score are removed, the first
    ones among equals: their rows of the weight and the bias, their entries in the normalizations and PReLUs that
    follow, and the weights for them in all layers that they enter. A removed output counts as 0 where it enters a
    layer: the result computes what the model computes with those inputs of its layers set to 0. So also the constant
    is gone that a bias, a batch normalization or an activation with f(0) != 0 gave these layers. Outputs are

    - the neurons and channels of Linear, Conv1d, Conv2d, ConvTranspose1d and ConvTranspose2d;
    - the hidden units of RNN, LSTM and GRU (of each layer and direction, equally many; and the projected ones), and of
      their cells: rows of all gates, columns of ``weight_hh``, and what takes outputs or states;
    - the columns of Embedding and EmbeddingBag;
    - the heads of MultiheadAttention: their rows of the three projections, and their columns of ``out_proj``. The class
      of the layer is then :class:`pycompress.heads.FewerHeads`, for torch's own has a fixed size of heads;
    - the heads and the feed-forward widths (``linear1``) inside encoders and decoders of torch;
    - the heads of attention that a model computes itself (``x.view(b, t, self.heads, -1)``): whole ones where the sizes
      of its forward follow by themselves or are integers that modules hold, which are then changed and kept in files;
      not where they must fill up another size (``reshape(b, t, d)`` with the ``d`` of a residual stream).

    Outputs are followed through the graph of the model (``torch.fx``, which sees the steps of a loop over a number or a
    size of the example inputs, and no choice that values of tensors make), whatever its nesting: element-wise
    operations of one tensor or of several, concatenation, stack, chunk and split, BatchNorm1d/2d, InstanceNorm1d/2d,
    GroupNorm, PReLU, pooling, padding, interpolation, flatten, view, permute and their like, indexing, means and maxima
    over other dimensions, a softmax along others, packed sequences, matrix products, einsum and
    ``scaled_dot_product_attention``. Outputs that meet go together or not at all, with the sum of their scores, and
    ``fraction`` and ``n`` then count such sets (of the same layers: sets that hold outputs of other layers are counted
    apart): those that a residual connection adds, that a gate multiplies; the inputs and outputs of a depthwise
    convolution; the channels at the same position of each group of a grouped one, or of each part that chunk makes; the
    channels of a group of a GroupNorm, whose other groups so keep their statistics; all calls of one module; what is at
    one position of a weight that modules share, which they share in the result too.

    These stay: outputs that the model gives out; those that are added to what keeps its size (an input of the model, a
    parameter, a first state whose size is no attribute of a module and does not follow); those that meet an output of
    an excluded layer; those whose numbers an argmax gives; what enters a MultiheadAttention or leaves it; and those
    that a LayerNorm or RMSNorm runs over, for without them the statistics of the others, and so the outputs, would be
    different: of a transformer, heads and the widths of the feed-forward parts go. It is an error when such outputs
    were chosen by name (``include`` or a dict of fractions), unless the model gives them out.

    Then whole blocks are taken out, one after the other the one with the lowest ``I = L(model without it; data) -
    L(model; data)``, measured: the loss when the block gives what it is given. A block is an entry of a Sequential or a
    ModuleList that has modules inside, as a residual block or an encoder layer, or any module that is named; that runs
    once, and returns a tensor like the one that it is called with. An Identity is put in its place, or it leaves its
    ModuleList. Blocks with layers that ``include`` and ``exclude`` do not choose stay.

    Pruning masks (:func:`pycompress.prune_`) and quantization grids (:func:`pycompress.quantize_`) stay on what is
    kept. So do training mode, ``requires_grad``, dtype and device; gradients and the state of an optimizer do not.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    example_inputs : tensor, or tuple or dict of tensors
        Inputs that the model accepts. Their shapes tell which inputs of a layer behind a flattening belong to one
        channel; and the result is run on them, to see that it works.
    fraction : float, or dict of layer name to float
        Part of each layer's outputs to remove, from 0 to below 1. With a dict, other layers keep their outputs; layers
        whose outputs go together must have the same fraction.
    score : function
        ``score(model, layers) -> dict[str, Tensor]``. Either a tensor like the layer's weight, of which the entries of
        each output are summed (:func:`pycompress.scores.magnitude`: the L1 norm), or one value for each output
        (:func:`pycompress.scores.ablation`). Higher = keep. Each weight of a recurrent layer, an embedding, attention
        or a transposed convolution comes as a layer of its own (``"lstm.weight_ih_l0"``), and the sums over its
        weights count; such layers never run, so scores that watch outputs refuse them by name.
        None: ``I = L(model without it; data) - L(model; data)`` is measured for all that goes together, which takes one
        pass over the data for each set of outputs.
    include, exclude : list of name patterns or module types, optional
        Which layers lose outputs: ``["features.*", nn.Conv2d]``.
    blocks : int, or dict of name pattern to int
        How many blocks to take out; of those with such names (``{"encoder.layers.*": 2}``).
    data : pair, Dataset or batches, optional
        What is measured on; given with ``blocks`` or without a score, and only then.
    loss : function, optional
        ``loss(outputs, targets)``: scalar tensor, the mean over the items. Given with ``data``.
    progress : bool
        Whether the progress of measuring is shown on stderr.

    Returns
    -------
    nn.Module
        Of the class of ``model``, with smaller layers and the same ``state_dict`` keys. :func:`pycompress.save` and
        ``pycompress.load(path, into=factory)`` restore it.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When no layer is left to simplify, a fraction or a score is out of range, or the outputs of a layer cannot be
        followed through the model (all places are named, with the layers; ``exclude`` is the way out). When there are
        not as many blocks, or the model does not run without them.

    References
    ----------
    Li, H. et al. (2017). Pruning Filters for Efficient ConvNets. ICLR.
    Molchanov, P. et al. (2017). Pruning Convolutional Neural Networks for Resource Efficient Inference. ICLR.
    Fang, G. et al. (2023). DepGraph: Towards Any Structural Pruning. CVPR. arXiv:2301.12900.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 3))
    >>> small = simplify(model, torch.zeros(1, 1, 4, 4), fraction=0.75)
    >>> small[0], small[1].num_features
    (Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1)), 2)
    >>> small[4]
    Linear(in_features=8, out_features=3, bias=True)
    """
    selected = select(model, include, exclude, LOSERS)
    if score is not None and not callable(score):
        raise TypeError(f"score must be a function of (model, layers) or None, got {type(score).__name__}")
    _check_fraction(fraction)
    check_options(blocks, score, data, loss)
    flag(progress, "progress")
    if data is not None:
        check_arguments(data, loss)
    measure = data, loss, progress
    result = _smaller(model, example_inputs, fraction, score, selected, include is not None, bool(blocks), measure)
    if blocks:
        kept = {id(weight_or_self(module)) for module in selected.values()}
        chosen = [
            result.get_submodule(name) for name, module in model.named_modules() if id(weight_or_self(module)) in kept
        ]
        assert loss is not None
        result = without_blocks(result, example_inputs, blocks, data, loss, chosen, progress)
    return result


def _smaller(
    model: nn.Module,
    example_inputs: Tree,
    fraction: float | Mapping[str, float],
    score: scores.Score | None,
    selected: dict[str, nn.Module],
    includes: bool,
    blocks: bool,
    measure: tuple[Any, Any, bool],
) -> nn.Module:
    """Return a copy of a model with fewer outputs in its layers."""
    if blocks and not isinstance(fraction, Mapping) and fraction == 0:  # the graph is not needed
        return copy_of(model)
    traced = trace(model, example_inputs)
    candidates = losing_layers(traced)
    fractions = fractions_of(model, candidates, selected, fraction)
    coupling, labels = follow(traced)
    mark_modules(model, traced, coupling)
    ends = set(coupling.layers(coupling.outputs)) - set(candidates)
    explicit = isinstance(fraction, Mapping), includes
    rate = by_ablation(model, coupling, *measure) if score is None else by_score(model, coupling, score)
    while True:
        lost = lost_units(coupling, lambda: families(model, coupling, fractions, ends, *explicit), rate)
        result = copy_of(model)
        cut_(result, coupling, lost)
        try:
            changed = changes(coupling.uses, lost)
            for (path, name), size in changed.items():
                change_numbers_(result.get_submodule(path), {name: size})
            _check_runs(result, example_inputs, _check_sizes(result, traced, labels, lost, changed))
            return result
        except ValueError:
            if not coupling.uses:
                raise
        _keep_uses_(coupling)  # what the graph does not show: a loop over the number of heads, say


def _keep_uses_(coupling: Coupling) -> None:
    """Let all units stay whose number attributes of modules decide."""
    for use in coupling.uses:
        names = ", ".join(f"{path}.{name}" if path else name for path, name in attributes(use.size))
        coupling.mark("fixed", use.labels, f"the forward does not work with another {names}")
    coupling.uses.clear()


def _check_fraction(fraction: object) -> None:
    values = fraction if isinstance(fraction, Mapping) else {None: fraction}
    for name, value in values.items():
        where = "fraction" if name is None else f"fraction[{name!r}]"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{where} must be a number, got {type(value).__name__}")
        if not (math.isfinite(value) and 0 <= value < 1):
            raise ValueError(f"{where} must be at least 0 and below 1, got {value}")


def fractions_of(
    model: nn.Module, layers: list[str], selected: dict[str, nn.Module], fraction: float | Mapping[str, float]
) -> dict[str, float]:
    """Return the fraction of each layer that loses outputs."""
    # Layers that share a weight are selected together, under the name of the first.
    weights = {id(weight_or_self(module)) for module in selected.values()}
    modules = {name: model.get_submodule(name) for name in layers}
    layers = [name for name in layers if id(weight_or_self(modules[name])) in weights]
    if not layers:
        raise ValueError(
            "model must have a layer that can lose outputs (Linear, say) with another one behind it, among the layers"
            f" that include and exclude select, got {', '.join(selected)}"
        )
    if not isinstance(fraction, Mapping):
        return dict.fromkeys(layers, float(fraction))
    unknown = [str(name) for name in fraction if name not in layers]
    if unknown or not fraction:
        raise ValueError(f"fraction must name layers among {', '.join(layers)}, got {', '.join(unknown) or 'none'}")
    return {name: float(fraction[name]) for name in layers if name in fraction}


def _check_sizes(
    result: nn.Module, traced: Trace, labels: dict[fx.Node, Labels], lost: Tensor, changed: dict[Attribute, int]
) -> Any:
    """Return the outputs of the graph with the smaller modules; see that each tensor has lost what it should."""
    try:
        seen, outputs = run(traced, result, changed)
    except Exception as error:
        raise ValueError(f"model must be one whose sizes follow its channels, got the error: {error}") from error
    for node, found in labels.items():
        for expected, new in _shapes(traced.seen[node], seen[node], found, lost):
            if expected != new:
                raise ValueError(
                    "model must be one whose sizes follow its channels (exclude=[...] leaves layers as they are), got"
                    f" {new} for {expected} from {traced.place(node)}"
                )
    return outputs


def _shapes(
    before: Seen, after: Seen, labels: Labels, lost: Tensor
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Yield the expected and the found shape of each tensor that a node gives."""
    if isinstance(labels, tuple):
        for parts in zip(before.parts or (), after.parts or (), labels, strict=True):
            yield from _shapes(*parts, lost)
    elif before.shape is not None and isinstance(labels, Stack):
        yield before.shape[:1] + _without(before.shape[1:], labels.rows[0], lost), after.shape
    elif before.shape is not None and isinstance(labels, Tensor):
        yield _without(before.shape, labels, lost), after.shape


def _without(shape: tuple[int, ...], labels: Tensor, lost: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor without some units."""
    kept = int((~torch.isin(labels, lost.nonzero()[:, 0])).sum())
    return tuple(kept if labels.shape[dim] > 1 else size for dim, size in enumerate(shape))


def _check_runs(result: nn.Module, example_inputs: Tree, traced_outputs: Any) -> None:
    """Run the result, and see that it computes what its graph does, in which all numbers are as they were."""

    def outputs() -> Any:
        with torch.no_grad():
            return forward(copy_of(result).eval(), example_inputs, "example_inputs")

    found = outputs()
    if not same_outputs(found, traced_outputs) and same_outputs(found, outputs()):  # else the model draws numbers
        raise ValueError(
            "model must not compute with the sizes of its layers (as in x * self.layer.out_features ** -0.5), got other"
            " outputs with smaller layers"
        )


def same_outputs(a: Any, b: Any) -> bool:
    """Whether two outputs are the same but for rounding: within a thousandth of the largest entry of the second.

    Examples
    --------
    >>> same_outputs([torch.ones(2)], [torch.tensor([1.0, 0.9999])]), same_outputs(torch.ones(2), torch.zeros(2))
    (True, False)
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        close = functools.partial(torch.allclose, rtol=0, equal_nan=True)
        return a.shape == b.shape and (torch.equal(a, b) or close(a.double(), b.double(), atol=_largest(b) * 1e-3))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_outputs(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same_outputs, a, b))
    return True


def _largest(x: Tensor) -> float:
    finite = x[torch.isfinite(x)]
    return float(finite.abs().max()) if finite.numel() else 0.0
