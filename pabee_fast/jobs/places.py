"""Where a job is to be computed, by name. Knows no torch."""

from pabee_fast.arguments import require_device, require_one_of
from pabee_fast.errors import InputError


def check_places(devices: str | None, engine: str, workers: int | None) -> None:
    """Raise InputError for names that no machine can have, and for options that do not go together; see
    `pabee_fast.jobs.executors.open_executor`."""
    require_one_of("engine", engine, ("local", "ray"))
    if engine == "ray" and devices is not None:
        raise InputError("devices are for engine=local: Ray gives each worker its own; use --workers")
    if engine == "local" and workers is not None:
        raise InputError("workers are for engine=ray: name devices instead (--devices cpu,cpu)")
    if devices not in (None, "all"):
        for name in devices.split(","):
            require_device(name.strip())
