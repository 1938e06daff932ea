"""Self-supervised training of a small vision transformer on plain images."""
