"""Label maps in the formats of other programs: one file for each format, all with the same function ``write``."""
