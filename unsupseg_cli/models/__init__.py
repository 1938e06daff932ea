"""Frozen backbones, heads and networks by name, and dense models: from image to label map."""
