"""Artifacts on disk: keys, manifests, the workspace and array stores. Knows nothing of vision."""
