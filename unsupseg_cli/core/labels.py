"""What label maps have in common."""

VOID = -1
"""Label of a pixel without a class, or without a mask."""

OBJECTS = "objects"
"""The matching of clusters that an evaluation of masks named, by labels of objects."""
