"""Names and data as a terminal may show them."""

import re

_HASH = re.compile("[0-9a-f]{64}")
# Control characters, among them the one that begins a terminal's commands; marks that turn the direction of writing;
# and bytes of file names that are no characters.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Return a text on one line, with an escape in place of each character that would steer a terminal."""
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def changed(name: str, before: object, now: object) -> str:
    """Return in words what a setting was and is; of a hash only that it changed."""
    if _HASH.fullmatch(str(before)):
        return f"{name} changed"
    return f"{name} was {before} and is {now}"
