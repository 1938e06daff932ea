"""Frozen backbones, heads by name, and the segmenter: a chain from image to label map."""
