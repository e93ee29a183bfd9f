"""Move scale from one layer to the next, without changing what the float model computes, so that int8 loses less."""

from .equalizing import equalize_
from .shared import Rescaled, RescaleSummary
from .smoothing import smooth_

__all__ = ["RescaleSummary", "Rescaled", "equalize_", "smooth_"]
