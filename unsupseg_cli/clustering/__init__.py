"""Clustering of features: spherical k-means, prototypes, the linear probe, neighbours. No disk, no terminal."""
