"""What artifacts of each kind hold: reading and writing them."""
