"""Networks run over images: features, segmentations, graphs for other programs."""
