"""Clustering of features: spherical k-means, the cluster probe, the linear probe. No disk, no terminal."""
