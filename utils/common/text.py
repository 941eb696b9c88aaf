"""Words for numbers, names as text."""

import sys


def plural(count: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``1,437 images``."""
    ending = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def drawable(name: str) -> str:
    """A file's name for a picture or a page: a byte that is no UTF-8 and a line break are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shown(text: str) -> str:
    """The same for a terminal: a byte that is no UTF-8 as ``\\xff``, and only what stdout can encode."""
    encoding = sys.stdout.encoding
    return drawable(text).replace("\\udc", "\\x").encode(encoding, "backslashreplace").decode(encoding)
