"""Unsupervised semantic segmentation as a staged pipeline on disk."""
