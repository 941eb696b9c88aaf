"""Numbers and file names as text."""

import sys


def plural(count: int, noun: str) -> str:
    """Return ``1 image``, ``2 images``, ``1,437 images``."""
    ending = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def drawable(name: str) -> str:
    """Return a file name for a picture or page, with invalid UTF-8 and line breaks escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def shown(text: str) -> str:
    """Return a file name for the terminal: invalid UTF-8 as ``\\xff``, and only what stdout can encode."""
    encoding = sys.stdout.encoding or "utf-8"  # a stream of a program that embeds this one may have none
    return drawable(text).replace("\\udc", "\\x").encode(encoding, "backslashreplace").decode(encoding)
