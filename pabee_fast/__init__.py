"""pabee_fast: early exit that really makes batches faster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pabee_fast.errors import CheckpointError, InputError, PabeeFastError, UnsupportedError
from pabee_fast.policies import (
    Confidence,
    Entropy,
    FixedDepth,
    FullDepth,
    Patience,
    PatientConfidence,
    PatientDivergence,
    Policy,
    Scheduled,
    Shortlist,
    Vote,
    parse_policy,
)

if TYPE_CHECKING:
    from pabee_fast.calibration.calibrate import Calibration, calibrate
    from pabee_fast.calibration.guarantee import Guarantee, guarantee_of
    from pabee_fast.calibration.replay import Replay, Replayer, replay
    from pabee_fast.calibration.scorer import Scorer
    from pabee_fast.calibration.trace import Trace, trace
    from pabee_fast.jobs.batches import BatchScorer
    from pabee_fast.jobs.table import TableSummary, score_table
    from pabee_fast.modeling.early_exit import accelerate, attach_heads, restore
    from pabee_fast.modeling.load import from_pretrained
    from pabee_fast.modeling.pabee_checkpoint import load_pabee_checkpoint
    from pabee_fast.models import register_family
    from pabee_fast.models.family import Family
    from pabee_fast.reranking.guarantee import ListGuarantee, list_guarantee_of
    from pabee_fast.reranking.reranker import Reranker, rerank
    from pabee_fast.scoring.answers import RowResult
    from pabee_fast.scoring.conditions import Conditions
    from pabee_fast.training.fit import fit

__version__ = "0.2.0"

__all__ = [
    "BatchScorer",
    "Calibration",
    "CheckpointError",
    "Conditions",
    "Confidence",
    "Entropy",
    "Family",
    "FixedDepth",
    "FullDepth",
    "Guarantee",
    "InputError",
    "ListGuarantee",
    "PabeeFastError",
    "Patience",
    "PatientConfidence",
    "PatientDivergence",
    "Policy",
    "Replay",
    "Replayer",
    "Reranker",
    "RowResult",
    "Scheduled",
    "Scorer",
    "Shortlist",
    "TableSummary",
    "Trace",
    "UnsupportedError",
    "Vote",
    "accelerate",
    "attach_heads",
    "calibrate",
    "fit",
    "from_pretrained",
    "guarantee_of",
    "list_guarantee_of",
    "load_pabee_checkpoint",
    "parse_policy",
    "register_family",
    "replay",
    "rerank",
    "restore",
    "score_table",
    "trace",
]

# What needs torch or transformers is imported when it is first asked for, so that `import pabee_fast` costs nothing
# and works where a part of the dependencies is missing. The same names as above, for the interpreter.
_MODULES = {
    "calibration.calibrate": ("Calibration", "calibrate"),
    "calibration.guarantee": ("Guarantee", "guarantee_of"),
    "calibration.replay": ("Replay", "Replayer", "replay"),
    "calibration.scorer": ("Scorer",),
    "calibration.trace": ("Trace", "trace"),
    "jobs.batches": ("BatchScorer",),
    "jobs.table": ("TableSummary", "score_table"),
    "modeling.early_exit": ("accelerate", "attach_heads", "restore"),
    "modeling.load": ("from_pretrained",),
    "modeling.pabee_checkpoint": ("load_pabee_checkpoint",),
    "models": ("register_family",),
    "models.family": ("Family",),
    "reranking.guarantee": ("ListGuarantee", "list_guarantee_of"),
    "reranking.reranker": ("Reranker", "rerank"),
    "scoring.answers": ("RowResult",),
    "scoring.conditions": ("Conditions",),
    "training.fit": ("fit",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
