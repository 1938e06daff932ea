"""Counts in messages."""


def counted(count: int, noun: str) -> str:
    """Return a number of things with their noun, such as '1 image', '1,204 classes', '2 categories'."""
    if count != 1 and noun.endswith("y") and noun[-2] not in "aeou":
        return f"{count:,} {noun[:-1]}ies"
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def are(count: int) -> str:
    """Return the verb that goes with a number of things."""
    return "is" if count == 1 else "are"
