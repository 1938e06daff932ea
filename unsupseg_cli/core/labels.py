"""What label maps have in common."""

VOID = -1
"""Label of a pixel without a class, or without a mask."""
