"""Simplification: whole neurons and channels are really removed, or put into an order that suits blocks."""

from .removal import simplify
from .reordering import permute_channels

__all__ = ["permute_channels", "simplify"]
