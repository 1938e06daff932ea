"""The systems that this tool unites: a folder each, which the others do not import."""
