"""Saving and loading: one safetensors file with a digest, which FORMAT.md describes. Never pickle."""

from .container import ArtifactError
from .contents import Description, TensorDescription, describe
from .loading import load
from .saving import save, stored_bytes, to_bytes

__all__ = [
    "ArtifactError",
    "Description",
    "TensorDescription",
    "describe",
    "load",
    "save",
    "stored_bytes",
    "to_bytes",
]
