"""What can go wrong, as types a caller can catch. Every message names the argument, what was given, and the fix."""


class PabeeFastError(Exception):
    """Base of the errors that pabee_fast raises on purpose."""


class InputError(PabeeFastError, ValueError):
    """An argument, option, table or row that cannot be used as given."""


class UnsupportedError(PabeeFastError, ValueError):
    """A request that early exit cannot honour without changing the result."""


class CheckpointError(PabeeFastError, ValueError):
    """A model directory or state dict whose weights or heads are absent, broken, or of another model."""


class WorkerError(PabeeFastError, RuntimeError):
    """A worker that died, or failed in a way that has nothing to do with the rows it was given."""


class WorkerDied(WorkerError):
    """Rows whose worker died each time they were tried."""


class JobError(PabeeFastError, RuntimeError):
    """A job that was stopped, or whose files are not what its manifest says."""
