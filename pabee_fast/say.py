"""What a model's owner should know, said once."""

import logging
import weakref

from transformers import PreTrainedModel

_said: weakref.WeakKeyDictionary[PreTrainedModel, set[str]] = weakref.WeakKeyDictionary()


def say_once(logger: logging.Logger, model: PreTrainedModel, message: str) -> None:
    """Warn of something about `model`, unless that was said before."""
    said = _said.setdefault(model, set())
    if message not in said:
        said.add(message)
        logger.warning(message)
