"""Embeddings whose rows are 8-bit or 4-bit integers, and how an embedding of a model becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import grids
from .formats import Format, Int4, Int8
from .grids import GridRecord
from .kernels import arrays
from .layers import LayerDecision, PackedLayer, arrays_like
from .linears import Shared, joined
from .rows import PackedRows, has_rows, pack_rows

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
"""The layers that this module packs."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MODES = ("sum", "mean", "max")


class _PackedEmbedding(PackedLayer):
    packed: PackedRows

    def __init__(
        self,
        packed: PackedRows,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        decision: LayerDecision | None = None,
    ) -> None:
        if not isinstance(packed, PackedRows):
            raise TypeError(f"packed must be PackedRows, got {type(packed).__name__}")
        if padding_idx is not None:
            padding_idx = arrays.integer(padding_idx, "padding_idx", 0, packed.shape[0] - 1)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
        super().__init__(packed, decision)
        self.padding_idx, self.dtype = padding_idx, dtype

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.packed.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Size of a row."""
        return self.packed.shape[1]

    @property
    def sizes(self) -> str:
        """Rows and their size, for messages."""
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def canonical_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` holds of this layer, by name."""
        return {"weight": torch.tensor(self.packed.canonical_weight()), "scale": self.packed.scale.clone()}

    def repacked(self, tensors: dict[str, Any]) -> PackedRows:
        """Make a table of tensors that stand for the canonical ones."""
        found = arrays_like(self.canonical_tensors(), tensors)
        return pack_rows(found["weight"], found["scale"], self.packed.format)

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.sizes}{padding}, format={self.format}, dtype={self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # There is no tensor to convert, but outputs have the dtype that the weight had: .half() must tell.
        dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self.dtype = dtype if dtype in _DTYPES else self.dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _rows(self, input: Tensor) -> Tensor:
        """Return the rows [..., columns] float32 of checked indices."""
        if torch.compiler.is_compiling():
            return self.packed.gather(input)
        try:
            return self.packed.gather(input)
        except IndexError as error:
            span = f"{int(input.min())} to {int(input.max())}"
            message = f"input must be indices from 0 to {self.num_embeddings - 1}, got {span}"
            raise ValueError(message) from error


class PackedEmbedding(_PackedEmbedding):
    """A table of integer rows: ``y = weight[input] * scale[input]``, for inference only; called as nn.Embedding is.

    Has no parameters and no buffers; the outputs have the dtype that the weight had, also after ``.half()``.
    ``state_dict``, pickles and copies hold ``weight`` [rows, columns] int8 and ``scale`` [rows] float32; with
    Int4 [rows, groups] float16.

    Parameters
    ----------
    packed : PackedRows
        From :func:`pack_rows`.
    padding_idx : int, optional
        Shown; it has a meaning for training alone.
    dtype : torch.dtype
        Of the outputs: float32, float16 or bfloat16.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> layer = PackedEmbedding(pack_rows(torch.tensor([[1.0, -1.0], [127.0, 64.0]])))
    >>> layer(torch.tensor([1, 0]))
    tensor([[127.,  64.],
            [  1.,  -1.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows [..., columns] of indices [...] int64 or int32.

        Raises
        ------
        TypeError, ValueError
            When input holds no indices, or one that lies outside the table.
        """
        if not torch.compiler.is_compiling():
            _check_indices(input, "input")
        return self._rows(input).to(self.dtype)


class PackedEmbeddingBag(_PackedEmbedding):
    """Sums, means or maxima of bags of integer rows, for inference only; called as nn.EmbeddingBag is.

    The rows ``weight[i] * scale[i]`` are reduced in float32. Else it is like :class:`PackedEmbedding`.

    Parameters
    ----------
    packed : PackedRows
        From :func:`pack_rows`.
    mode : "sum", "mean" or "max"
    padding_idx : int, optional
        The row that bags leave out.
    include_last_offset : bool
        As that of nn.EmbeddingBag.
    dtype : torch.dtype
        Of the outputs: float32, float16 or bfloat16.
    decision : LayerDecision, optional
        Why the layer is packed.

    Raises
    ------
    TypeError, ValueError
        When an argument has another type or value.

    Examples
    --------
    >>> layer = PackedEmbeddingBag(pack_rows(torch.tensor([[1.0, -1.0], [127.0, 64.0]])), mode="sum")
    >>> layer(torch.tensor([1, 0, 0]), offsets=torch.tensor([0, 2]))
    tensor([[128.,  63.],
            [  1.,  -1.]])
    """

    def __init__(
        self,
        packed: PackedRows,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        dtype: torch.dtype = torch.float32,
        decision: LayerDecision | None = None,
    ) -> None:
        super().__init__(packed, padding_idx, dtype, decision)
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        self.mode, self.include_last_offset = mode, arrays.flag(include_last_offset, "include_last_offset")

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Reduce bags: the rows of input [bags, size], or input [indices] cut at ``offsets``; returns [bags, columns].

        Parameters
        ----------
        input : [bags, size] or [indices] int64 or int32
        offsets : [bags] int64 or int32, optional
            The first index of each bag, for 1-D inputs; with ``include_last_offset`` [bags + 1].
        per_sample_weights : [shape of input] float, optional
            What rows are multiplied by, with mode "sum" alone.

        Raises
        ------
        TypeError, ValueError
            When they do not fit each other or the table.
        """
        if not torch.compiler.is_compiling():
            self._check(input, offsets, per_sample_weights)
        rows = self._rows(input.reshape(-1))
        order = torch.arange(rows.shape[0])
        padding = None
        if self.padding_idx is not None:  # all that is left out becomes one row more, which bags leave out
            padding = rows.shape[0]
            rows = torch.cat([rows, rows.new_zeros(1, self.embedding_dim)])
            order = torch.where(input.reshape(-1) == self.padding_idx, padding, order)
        if input.ndim == 2 and input.shape[1] == 0:
            return rows.new_zeros(input.shape[0], self.embedding_dim).to(self.dtype)
        y = F.embedding_bag(
            order.reshape(input.shape),
            rows,
            None if offsets is None else offsets.long(),
            mode=self.mode,
            per_sample_weights=None if per_sample_weights is None else per_sample_weights.float(),
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
        return y.to(self.dtype)

    def extra_repr(self) -> str:
        """What ``repr`` shows inside the brackets."""
        return f"{super().extra_repr()}, mode={self.mode!r}, include_last_offset={self.include_last_offset}"

    def _check(self, input: Any, offsets: Any, per_sample_weights: Any) -> None:
        _check_indices(input, "input")
        if input.ndim not in (1, 2):
            raise ValueError(f"input must be 1-D or 2-D, got {arrays.describe(input)}")
        if (offsets is None) != (input.ndim == 2):
            raise ValueError(f"offsets must be given for a 1-D input and for no other, got {arrays.describe(input)}")
        if offsets is not None:
            _check_indices(offsets, "offsets")
            if offsets.ndim != 1 or (self.include_last_offset and not len(offsets)):
                raise ValueError(f"offsets must be 1-D, one for each bag, got {arrays.describe(offsets)}")
            inside = not len(offsets) or (offsets[0] == 0 and offsets[-1] <= len(input))
            if not inside or bool((offsets[1:] < offsets[:-1]).any()):
                raise ValueError(f"offsets must run from 0 up to at most {len(input)}, got {offsets.tolist()!r:.99}")
        if per_sample_weights is not None:
            self._check_input(per_sample_weights, "per_sample_weights")
            if self.mode != "sum":
                raise ValueError(f"per_sample_weights must be None with mode {self.mode!r}")
            if per_sample_weights.shape != input.shape or per_sample_weights.dtype not in _DTYPES:
                found = arrays.describe(per_sample_weights)
                raise ValueError(f"per_sample_weights must be floats of shape {tuple(input.shape)}, got {found}")


def _check_indices(x: object, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch CPU tensor, got {type(x).__name__}")
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {arrays.describe(x)}")
    if x.device.type != "cpu" or x.layout != torch.strided or x.is_nested:
        raise ValueError(f"{name} must be a dense CPU tensor, got device {x.device} and layout {x.layout}")


def obstacle(layer: nn.Module) -> str:
    """Return why no packed layer can stand in for this embedding, or "" where one can.

    Examples
    --------
    >>> obstacle(nn.Embedding(2, 1)), obstacle(nn.Embedding(2, 1, max_norm=1.0))
    ('', 'it has a max_norm, by which every call changes its weight')
    """
    kind = nn.Embedding if isinstance(layer, nn.Embedding) else nn.EmbeddingBag
    if type(layer).forward is not kind.forward or "forward" in layer.__dict__:
        return f"{type(layer).__name__} has a forward of its own"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a parametrization, which must be removed first"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which must be removed first"
    if getattr(layer, "max_norm", None) is not None:
        return "it has a max_norm, by which every call changes its weight"
    if weight.dtype not in _DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    return ""


def candidates(
    layer: nn.Module, format: Format | None, record: GridRecord | None, shared: Shared
) -> tuple[list[PackedEmbedding | PackedEmbeddingBag], str]:
    """Return the packed embedding to try, in eval mode, or none; and why there is none, or which record was ignored.

    Parameters
    ----------
    layer : nn.Embedding or nn.EmbeddingBag
        Without an :func:`obstacle`.
    format : Int8, Int4, Sparse or None
        None: packed only where the weight lies on a recorded Int8 grid (that of a linear layer which shares it). Int4:
        without zero points, with float16 scales.
    record : GridRecord or None
        The grid of the weight.
    shared : dict
        What was packed already; is added to.

    Examples
    --------
    >>> [packed], note = candidates(nn.Embedding(3, 2), Int8(), None, {})
    >>> packed.packed.shape, note
    ((3, 2), '')
    """
    weight = cast(Tensor, layer.weight).detach()
    on_grid = grids.integers(weight, record) if record is not None and isinstance(record.format, Int8) else None
    note = ""
    if record is not None and on_grid is None and isinstance(record.format, Int8):
        note = "the weight was changed since it was quantized, so that its Int8 grid no longer holds"
    if format is None and on_grid is None:
        return [], joined("an embedding is packed with Int8() alone", note)
    if isinstance(format, Int4) and not has_rows(format):
        return [], f"{format} has no kernel for embeddings"
    if format is not None and not isinstance(format, (Int8, Int4)):
        return [], f"{type(format).__name__} has no kernel for embeddings"
    key = (PackedRows, id(layer.weight), format if isinstance(format, Int4) else None)
    if key not in shared and isinstance(format, Int4):
        shared[key] = pack_rows(weight, format=format)
    elif key not in shared:
        scale = None if record is None or on_grid is None else record.scale.expand(len(weight))
        shared[key] = pack_rows(weight if on_grid is None else on_grid, scale)
    return [packed_like(layer, shared[key])], note


def packed_like(layer: nn.Module, rows: PackedRows) -> PackedEmbedding | PackedEmbeddingBag:
    """Return the packed layer, in eval mode, with the options of an embedding and a table that stands for its weight.

    Examples
    --------
    >>> packed_like(nn.EmbeddingBag(3, 2, mode="max"), pack_rows(torch.ones(3, 2))).mode
    'max'
    """
    dtype = cast(Tensor, layer.weight).dtype
    padding = cast("int | None", layer.padding_idx)
    if isinstance(layer, nn.EmbeddingBag):
        bag = PackedEmbeddingBag(rows, layer.mode, padding, bool(layer.include_last_offset), dtype)
        return bag.eval()
    return PackedEmbedding(rows, padding, dtype).eval()
