"""Why each layer of a model is packed or not, as a table."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .layers import LayerDecision, PackedLayer, decisions
from .linears import can_be_packed, joined


class Explanation(list[LayerDecision]):
    """The decisions of a model's layers; as text, a table."""

    def __str__(self) -> str:
        titles = ("layer", "kind", "format", "kernel", "rows", "dense us", "packed us", "speedup (95 %)", "why")
        rows = [titles, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


def _cells(decision: LayerDecision) -> tuple[str, ...]:
    d = decision
    return (
        d.name or "(model)",
        d.kind,
        "dense" if d.format is None else type(d.format).__name__,
        d.kernel or "torch",
        "" if d.rows is None else str(d.rows),
        "" if d.dense_us is None else f"{d.dense_us:.1f}",
        "" if d.packed_us is None else f"{d.packed_us:.1f}",
        "" if d.speedup is None else f"{d.speedup:.2f} ({d.low:.2f} to {d.high:.2f})",
        d.reason,
    )


def explain(model: nn.Module) -> Explanation:
    """Tell for every layer with weights how it is stored, which kernel runs, how fast it is and why.

    Parameters
    ----------
    model : nn.Module
        From ``pack``, ``quantize_dynamic`` or ``load``; another model's layers are listed as dense.

    Returns
    -------
    list of LayerDecision
        In the order of ``named_modules``; ``print`` shows it as a table. Times are those of the machine that packed,
        the kernel is that of this one.

    Raises
    ------
    TypeError
        When model is not an nn.Module.

    Examples
    --------
    >>> import torch
    >>> from pycompress import pack
    >>> packed = pack(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 4)), torch.zeros(1, 1, 3, 3))
    >>> for decision in explain(packed):
    ...     print(decision.name, decision.kind, decision.reason)
    0 Conv2d neither quantized to Int8 nor pruned
    2 Linear neither quantized to Int8 nor pruned
    """
    recorded = decisions(model)
    explanation = Explanation()
    for name, module in model.named_modules():
        decision = recorded.get(name)
        if isinstance(module, PackedLayer):
            kind = type(module).__name__.removeprefix("Packed")
            decision = decision or LayerDecision(name, kind, module.format, module.kernel, reason="packed by hand")
            if decision.kernel != module.kernel:
                reason = joined(decision.reason, f"measured with {decision.kernel}")
                decision = replace(decision, kernel=module.kernel, reason=reason)
        elif decision is None and can_be_packed(module):
            decision = LayerDecision(name, type(module).__name__, reason="not packed yet")
        elif decision is None and has_weights(module):
            decision = LayerDecision(name, type(module).__name__, reason="no kernel yet, stays dense")
        if decision is not None:
            explanation.append(decision)
    return explanation


def has_weights(module: nn.Module) -> bool:
    """Whether a module itself holds a weight of two or more dimensions.

    Examples
    --------
    >>> has_weights(nn.Linear(2, 1)), has_weights(nn.LayerNorm(2))
    (True, False)
    """
    return any(p is not None and p.ndim > 1 for p in module._parameters.values())
