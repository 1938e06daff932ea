"""Config base, errors, registry, seeds and the progress protocol: what every layer may use."""
