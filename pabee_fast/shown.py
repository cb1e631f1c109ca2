"""Names and data as a terminal may show them."""

import re

# Control characters, among them the one that begins a terminal's commands; marks that turn the direction of writing;
# and bytes of file names that are no characters.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Return a text on one line, with an escape in place of each character that would steer a terminal."""
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], str(text))
