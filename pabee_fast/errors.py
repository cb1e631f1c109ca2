"""What can go wrong, as types a caller can catch. Every message names the argument, what was given, and the fix."""


class PabeeFastError(Exception):
    """Base of the errors that pabee_fast raises on purpose."""


class InputError(PabeeFastError, ValueError):
    """An argument, option, table or row that cannot be used as given."""


class UnsupportedError(PabeeFastError, ValueError):
    """A request that early exit cannot honour without changing the result."""


class CheckpointError(PabeeFastError, ValueError):
    """A model directory or state dict whose heads are absent, broken, or of another model."""
