"""One folder per system: pure torch and numpy, no disk, no terminal."""
