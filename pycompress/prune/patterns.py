"""Which weights are pruned together. A weight is looked at as a matrix, outputs x inputs, as it lies in memory.

The weight of a convolution, [out, in, height, width], is the matrix [out, in * height * width].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.arrays import integer


@dataclass(frozen=True)
class Unstructured:
    """Any single weight may be pruned.

    Examples
    --------
    >>> Unstructured()
    Unstructured()
    """


@dataclass(frozen=True)
class Blocks:
    """Blocks of outputs x inputs are pruned together, those with the smallest mean score.

    Blocks start at multiples of their size; those at the edges are smaller where the size does not divide the weight,
    which is why means are compared (of whole blocks, they rank as sums do). A convolution's inputs are
    ``in * height * width``, as the weight lies.

    Parameters
    ----------
    height : int
        Outputs, 1 or more.
    width : int
        Inputs, 1 or more.

    Examples
    --------
    >>> Blocks(16, 4)
    Blocks(height=16, width=4)
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        integer(self.height, "height", 1)
        integer(self.width, "width", 1)


@dataclass(frozen=True)
class Rows:
    """Whole outputs are pruned together: the rows of a matrix, the output channels of a convolution.

    The shapes stay; ``pc.simplify`` removes rows for good, with everything that they lead to.

    Parameters
    ----------
    count : int
        How many consecutive rows go together, such as the size of a head in a projection of attention.

    Examples
    --------
    >>> Rows()
    Rows(count=1)
    """

    count: int = 1

    def __post_init__(self) -> None:
        integer(self.count, "count", 1)


@dataclass(frozen=True)
class Columns:
    """Whole inputs are pruned together: the columns of a matrix, the input channels of a convolution.

    Parameters
    ----------
    count : int
        How many consecutive columns or channels go together.

    Examples
    --------
    >>> Columns(2)
    Columns(count=2)
    """

    count: int = 1

    def __post_init__(self) -> None:
        integer(self.count, "count", 1)


@dataclass(frozen=True)
class NM:
    """Of each M consecutive inputs of an output, at most N are kept: those with the largest scores.

    Of equal scores, those with the higher index are kept. A group at the end that is smaller than M keeps N too.
    2:4 is what sparse tensor cores take (Mishra et al. 2021, Accelerating sparse deep neural networks).

    Parameters
    ----------
    n : int
        Weights kept, 1 to m - 1.
    m : int
        Size of a group, 2 to 32.

    Examples
    --------
    >>> NM(2, 4).sparsity
    0.5
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        integer(self.m, "m", 2, 32)
        integer(self.n, "n", 1, self.m - 1)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is pruned where m divides the inputs."""
        return 1 - self.n / self.m


Structure = Unstructured | Blocks | Rows | Columns | NM
"""What ``pattern`` of :func:`pycompress.prune_` is."""


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as a matrix of outputs x inputs.

    Examples
    --------
    >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
    torch.Size([8, 75])
    """
    outputs = weight.shape[0]
    return weight.reshape(outputs, weight.numel() // outputs if outputs else 0)


def block_of(pattern: Blocks | Rows | Columns, weight: Tensor) -> tuple[int, int]:
    """Return height and width of the blocks of a weight as a matrix.

    Examples
    --------
    >>> block_of(Rows(), torch.zeros(4, 6)), block_of(Columns(2), torch.zeros(8, 4, 3, 3))
    ((1, 6), (8, 18))
    """
    rows, columns = as_matrix(weight).shape
    if isinstance(pattern, Rows):
        height, width = pattern.count, columns
    elif isinstance(pattern, Columns):
        height, width = rows, pattern.count * max(1, weight[:1, :1].numel())
    else:
        height, width = pattern.height, pattern.width
    return max(1, min(height, rows)), max(1, min(width, columns))


def block_sums(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Sum the blocks of a matrix, [ceil(rows / height), ceil(columns / width)] float64.

    Examples
    --------
    >>> block_sums(torch.ones(3, 4), (2, 3)).tolist()
    [[6.0, 2.0], [3.0, 1.0]]
    """
    (rows, columns), (height, width) = values.shape, block
    padded = torch.nn.functional.pad(values, (0, -columns % width, 0, -rows % height))
    tiled = padded.reshape(-(-rows // height), height, -(-columns // width), width)
    return tiled.sum((1, 3), dtype=torch.float64)


def spread(blocks: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Return a weight's mask in which each block has the entry of blocks.

    Examples
    --------
    >>> spread(torch.tensor([[True, False]]), (2, 2), torch.Size([2, 3])).tolist()
    [[True, True, False], [True, True, False]]
    """
    rows = shape[0]
    columns = shape.numel() // rows if rows else 0
    down, across = blocks.shape
    tiled = blocks[:, None, :, None].expand(down, block[0], across, block[1])
    return tiled.reshape(down * block[0], across * block[1])[:rows, :columns].reshape(shape)


def outside_n_of_m(values: Tensor, pattern: NM) -> Tensor:
    """Mask of what N:M prunes: True outside the n largest of each m consecutive entries of a row.

    Examples
    --------
    >>> outside_n_of_m(torch.tensor([[4.0, 1.0, 3.0, 2.0, 5.0]]), NM(2, 4)).tolist()
    [[False, True, False, True, False]]
    """
    rows, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -columns % pattern.m), value=-torch.inf)
    groups = padded.reshape(rows, -(-columns // pattern.m), pattern.m)
    # What pads the last group is the smallest there, and of equal scores the lower index goes first.
    order = groups.argsort(dim=-1, stable=True)[..., : pattern.m - pattern.n]
    gone = torch.zeros(groups.shape, dtype=torch.bool, device=values.device).scatter_(-1, order, True)
    return gone.reshape(padded.shape)[:, :columns].contiguous()
