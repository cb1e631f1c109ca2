"""The packages of the extra `evaluation`, imported where they are used: the core does without them."""

import importlib
from typing import Any

from pabee_fast.errors import PabeeFastError


def require(module: str) -> Any:
    """Import a module of scipy, scikit-learn or matplotlib.

    Raises:
        PabeeFastError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        name = {"sklearn": "scikit-learn"}.get(package, package)
        raise PabeeFastError(f"this needs {name}: pip install 'pabee-fast[evaluation]'") from error
