"""Words for numbers."""


def plural(count: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``1,437 images``."""
    ending = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"
