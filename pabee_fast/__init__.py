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
    Vote,
    parse_policy,
)

if TYPE_CHECKING:
    from pabee_fast.evaluation.calibrate import Calibration, calibrate
    from pabee_fast.evaluation.conditions import Conditions
    from pabee_fast.evaluation.guarantee import Guarantee, guarantee_of
    from pabee_fast.evaluation.replay import Replay, Replayer, replay
    from pabee_fast.evaluation.trace import Trace, trace
    from pabee_fast.models import register_family
    from pabee_fast.models.family import Family
    from pabee_fast.models.heads import attach_heads
    from pabee_fast.models.load import from_pretrained
    from pabee_fast.models.pabee_checkpoint import load_pabee_checkpoint
    from pabee_fast.runtime.forward import accelerate, restore
    from pabee_fast.scoring.answers import RowResult
    from pabee_fast.scoring.scorer import Scorer
    from pabee_fast.training.fit import fit

__version__ = "0.1.0"

__all__ = [
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
    "calibrate",
    "fit",
    "from_pretrained",
    "guarantee_of",
    "load_pabee_checkpoint",
    "parse_policy",
    "register_family",
    "replay",
    "restore",
    "trace",
]

# What needs torch or transformers is imported when it is first asked for, so that `import pabee_fast` costs nothing
# and works where a part of the dependencies is missing. The same names as above, for the interpreter.
_MODULES = {
    "evaluation.calibrate": ("Calibration", "calibrate"),
    "evaluation.conditions": ("Conditions",),
    "evaluation.guarantee": ("Guarantee", "guarantee_of"),
    "evaluation.replay": ("Replay", "Replayer", "replay"),
    "evaluation.trace": ("Trace", "trace"),
    "models": ("register_family",),
    "models.family": ("Family",),
    "models.heads": ("attach_heads",),
    "models.load": ("from_pretrained",),
    "models.pabee_checkpoint": ("load_pabee_checkpoint",),
    "runtime.forward": ("accelerate", "restore"),
    "scoring.answers": ("RowResult",),
    "scoring.scorer": ("Scorer",),
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
