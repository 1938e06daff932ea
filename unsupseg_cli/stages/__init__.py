"""One file per command that makes an artifact; each ends in its `STAGE` and begins with ``NAME: what it does``.

A file is imported for its options alone, so that the command line answers at once: what it works with is imported where
it works.
"""
