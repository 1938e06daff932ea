"""Config base, errors, labels, seeds and the progress protocol: what every layer may use."""
