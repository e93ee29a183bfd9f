"""Does a compressed model still work: accuracy, statistics, privacy, cost. Compares any two models.

``metrics``, ``predictions`` and ``statistics`` may be used by themselves.
"""

from .comparison import validate
from .folds import CrossValidation, Fold, LeaveOneOut, cross_validate
from .privacy import MembershipComparison, MembershipResult, compare_membership, membership_inference
from .verdict import Verdict, compare_outputs

__all__ = [
    "CrossValidation",
    "Fold",
    "LeaveOneOut",
    "MembershipComparison",
    "MembershipResult",
    "Verdict",
    "compare_membership",
    "compare_outputs",
    "cross_validate",
    "membership_inference",
    "validate",
]
