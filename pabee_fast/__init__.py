"""pabee_fast: early exit that really makes batches faster."""

from pabee_fast.errors import CheckpointError, InputError, PabeeFastError, UnsupportedError
from pabee_fast.evaluation.replay import Replay, Replayer, replay
from pabee_fast.evaluation.trace import Trace, trace
from pabee_fast.models.heads import attach_heads, from_pretrained
from pabee_fast.models.pabee_checkpoint import load_pabee_checkpoint
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
    Vote,
    parse_policy,
)
from pabee_fast.runtime.forward import accelerate, restore
from pabee_fast.scoring.answers import RowResult
from pabee_fast.scoring.scorer import Scorer

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Confidence",
    "Entropy",
    "FixedDepth",
    "FullDepth",
    "InputError",
    "PabeeFastError",
    "Patience",
    "PatientConfidence",
    "PatientDivergence",
    "Policy",
    "Replay",
    "Replayer",
    "RowResult",
    "Scheduled",
    "Scorer",
    "Trace",
    "UnsupportedError",
    "Vote",
    "accelerate",
    "attach_heads",
    "from_pretrained",
    "load_pabee_checkpoint",
    "parse_policy",
    "replay",
    "restore",
    "trace",
]
