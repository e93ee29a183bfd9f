"""Make a PyTorch model smaller and measurably faster on a CPU, with proof that it still works.

The names below are loaded when first used: ``import pycompress.kernels`` needs NumPy alone, the rest needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import kernels as kernels
    from . import observers as observers
    from . import scores as scores
    from .artifact import load as load
    from .artifact import save as save
    from .distill import distill_ as distill_
    from .dynamic import quantize_dynamic as quantize_dynamic
    from .explaining import explain as explain
    from .formats import Affine as Affine
    from .formats import BFloat16 as BFloat16
    from .formats import Binary as Binary
    from .formats import Codebook as Codebook
    from .formats import FixedPoint as FixedPoint
    from .formats import Float32 as Float32
    from .formats import Int4 as Int4
    from .formats import Int8 as Int8
    from .formats import Sparse as Sparse
    from .masks import finalize_ as finalize_
    from .packing import pack as pack
    from .pipeline import Compressed as Compressed
    from .pipeline import compress as compress
    from .profiling import profile as profile
    from .prune import NM as NM
    from .prune import Blocks as Blocks
    from .prune import Columns as Columns
    from .prune import Rows as Rows
    from .prune import Unstructured as Unstructured
    from .prune import prune_ as prune_
    from .quantize import quantize_ as quantize_
    from .rescaling import equalize_ as equalize_
    from .rescaling import smooth_ as smooth_
    from .structure import permute_channels as permute_channels
    from .structure import simplify as simplify
    from .training import cosine as cosine
    from .training import fit_ as fit_
    from .training import plateau as plateau
    from .training import reestimate_batch_norm_ as reestimate_batch_norm_
    from .training import step_schedule as step_schedule
    from .validation import LeaveOneOut as LeaveOneOut
    from .validation import Verdict as Verdict
    from .validation import compare_membership as compare_membership
    from .validation import cross_validate as cross_validate
    from .validation import membership_inference as membership_inference
    from .validation import validate as validate

_MODULES = ("kernels", "observers", "scores")

_HOME = {
    **dict.fromkeys(("load", "save"), "artifact"),
    "distill_": "distill",
    **dict.fromkeys(
        ("Affine", "BFloat16", "Binary", "Codebook", "FixedPoint", "Float32", "Int4", "Int8", "Sparse"), "formats"
    ),
    "finalize_": "masks",
    "explain": "explaining",
    "pack": "packing",
    "quantize_dynamic": "dynamic",
    **dict.fromkeys(("Compressed", "compress"), "pipeline"),
    "profile": "profiling",
    **dict.fromkeys(("Blocks", "Columns", "NM", "Rows", "Unstructured", "prune_"), "prune"),
    "quantize_": "quantize",
    **dict.fromkeys(("equalize_", "smooth_"), "rescaling"),
    **dict.fromkeys(("permute_channels", "simplify"), "structure"),
    **dict.fromkeys(("cosine", "fit_", "plateau", "reestimate_batch_norm_", "step_schedule"), "training"),
    **dict.fromkeys(
        ("LeaveOneOut", "Verdict", "compare_membership", "cross_validate", "membership_inference", "validate"),
        "validation",
    ),
}

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise ModuleNotFoundError(
                f"pycompress.{name} needs PyTorch: pip install 'pycompress-nn[torch]'", name="torch"
            ) from None
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
