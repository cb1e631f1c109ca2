"""When a row has settled.

A policy is a frozen dataclass that answers three questions about layers: which are tested, from which one on a row may
leave, and what the exit step is told there. It knows neither torch nor the kernels, and nobody asks for its class.
"""

from pabee_fast.policies.base import Among, AnswerKind, Policy, Rule, Stepping, require_policy
from pabee_fast.policies.exiting import (
    Confidence,
    Entropy,
    Exiting,
    Patience,
    PatientConfidence,
    PatientDivergence,
    Vote,
)
from pabee_fast.policies.given import FixedDepth, FullDepth, Scheduled
from pabee_fast.policies.listwise import Shortlist
from pabee_fast.policies.text import COMMAND_LINE, parse_policy

__all__ = [
    "COMMAND_LINE",
    "Among",
    "AnswerKind",
    "Confidence",
    "Entropy",
    "Exiting",
    "FixedDepth",
    "FullDepth",
    "Patience",
    "PatientConfidence",
    "PatientDivergence",
    "Policy",
    "Rule",
    "Scheduled",
    "Shortlist",
    "Stepping",
    "Vote",
    "parse_policy",
    "require_policy",
]
