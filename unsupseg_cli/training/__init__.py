"""The one training loop, what it needs of a method, and the token sources methods read."""
