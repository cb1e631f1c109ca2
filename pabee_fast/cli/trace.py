"""`pabee-fast trace`."""

from pabee_fast.calibration.settings import TraceSettings
from pabee_fast.cli.loading import loading, use_threads
from pabee_fast.cli.options import takes
from pabee_fast.cli.show import quieten_transformers
from pabee_fast.shown import plain


@takes(TraceSettings)
def trace_command(settings: TraceSettings) -> None:
    """Run a model once over a table, and keep what every head says of every row: tune and report read it by --trace.

    They refuse a trace of another model, tokenizer or precision, and of texts that were cut elsewhere.
    """
    with loading():
        from pabee_fast.calibration.trace_files import write_trace

    use_threads(settings.threads)
    quieten_transformers()
    made = write_trace(settings)
    print(f"{made!r}, in {made.conditions.dtype}, long texts {made.conditions.long_texts}")
    print(plain(f"wrote {settings.output}"))
