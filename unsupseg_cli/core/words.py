"""Counts in messages."""


def counted(count: int, noun: str) -> str:
    """Return a number of things with their noun, such as '1 image', '1,204 classes'."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def are(count: int) -> str:
    """Return the verb that goes with a number of things."""
    return "is" if count == 1 else "are"
