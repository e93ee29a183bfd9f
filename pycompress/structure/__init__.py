"""Simplification: whole neurons and channels are really removed, and a smaller dense model is left."""

from .removal import simplify

__all__ = ["simplify"]
